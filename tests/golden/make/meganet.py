"""Golden tensors of XtractOpen/Meganet.m: `python meganet.py FOLDER`, with the original at commit 1b3b0de.

That commit, "Examples from JMIV Paper", has the drivers of Ruthotto & Haber; later ones cannot differentiate
networks with convMCN (its JthetaTmv does not take the argument reduceDim). GNU Octave runs `meganet.m`, which
builds the network of `cnnDriver.m` for each dynamic, with widths 4-6-6, three steps of h = 1 and 8x8 images,
and trains it by `sgd.m` for three batches of four images, in float64, with the loss, penalties, momentum and
bounds of `runCIFAR10.m`. MatConvNet's convolution and pooling, and three functions that Octave lacks, are
replaced; images keep their order.

    state.theta, state.W   weights of the network and of the classifier, in Meganet's order
    state.running          mean and variance of each batch normalisation, in its order
    images, labels         of each step; as they enter the network
    logits                 of the first step's images, in evaluation mode, before the steps
    losses, fits           of each step: all that is minimised, and its cross-entropy alone
    gradient.*             of the first loss
    after.*                weights and statistics after the third step
    after_logits           of the first step's images, in evaluation mode, after the steps
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from recording import write
from scipy.io import loadmat
from torch import Tensor

COMMIT = "1b3b0de4d8ad52d628110418592f99b362e1defc"
WEIGHTS_OF_CLASSIFIER = 5 * 7


def main(original: Path) -> None:
    """Run the original, and write a file for each dynamic."""
    with tempfile.TemporaryDirectory() as made:
        script = Path(__file__).with_suffix(".m")
        subprocess.run(["octave-cli", "--no-gui", script, original, made], check=True)
        for path in sorted(Path(made).glob("*.mat")):
            about = {
                "repository": "XtractOpen/Meganet.m", "commit": COMMIT, "how": "run under GNU Octave",
                "what": f"{path.stem}: widths 4-6-6, three steps of h = 1, three steps of its sgd.m",
            }  # fmt: skip
            found = {k: v for k, v in loadmat(path).items() if isinstance(v, np.ndarray)}
            write(f"meganet-{path.stem}", tensors(found), about)


def tensors(found: dict[str, NDArray[np.float64]]) -> dict[str, Tensor]:
    """Images and logits as torch has them; vectors as they are."""
    images = found["Y"].transpose(3, 2, 0, 1)
    values = {
        "images": images.reshape(3, -1, *images.shape[1:]), "logits": found["logits"].T,
        "after_logits": found["trained_logits"].T, "losses": found["losses"], "fits": found["fits"],
        "state.running": found["stats"], "after.running": found["trained_stats"],
    }  # fmt: skip
    vectors = {"state": found["x0"], "gradient": found["gradient"], "after": found["states"][:, -1]}
    for name, vector in vectors.items():
        values[f"{name}.theta"] = vector.ravel()[:-WEIGHTS_OF_CLASSIFIER]
        values[f"{name}.W"] = vector.ravel()[-WEIGHTS_OF_CLASSIFIER:]
    made = {
        name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float64))
        for name, value in values.items()
    }
    vectors_of = ("losses", "fits", "state.running", "after.running")
    made |= {name: made[name].ravel() for name in vectors_of}
    made["labels"] = torch.from_numpy(found["labels"].astype(np.int64).reshape(3, -1) - 1)
    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]))
