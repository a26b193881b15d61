"""A lifted network beside the one that it comes from: test error against controls, parameters and cost."""

from dataclasses import dataclass

from torch import nn

from resode import cost, inference
from resode.blocks import dynamic_blocks
from resode.inference.trained import Network, trained_network


@dataclass(frozen=True)
class Compared:
    """One network of the table.

    Args:
        network: as it was given.
        controls: nodes of theta(t), over all blocks; None for a network without blocks.
        parameters: their number.
        multiply_adds: of one image.
        top1_error: on the test images, in percent.
    """

    network: str
    controls: int | None
    parameters: int
    multiply_adds: int
    top1_error: float


def compare(*networks: Network, data: str | None = None, device: str = "auto") -> list[Compared]:
    """A row for each network, evaluated on the same test images.

    Args:
        networks: modules, runs, files or names of pretrained weights.
        data: as for `resode.evaluate`.
        device: where they are evaluated.

    Raises:
        InputError: as `resode.evaluate`.
    """
    rows = []
    for network in networks:
        error = inference.evaluate(network, data=data, device=device).top1_error
        known = trained_network(network, device)
        preprocessing = known.preprocessing
        shape = (3, 32, 32) if preprocessing is None else (preprocessing.channels, *preprocessing.size)
        label = known.model if isinstance(network, nn.Module) else str(network)
        rows.append(
            Compared(
                label,
                sum(len(block.controls) for block in dynamic_blocks(known.module)) or None,
                cost.parameters(known.module),
                cost.multiply_adds(known.module, shape),
                error,
            )
        )
    return rows
