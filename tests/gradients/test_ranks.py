"""Gradient methods under DistributedDataParallel: two ranks give the gradient of one process."""

import pytest
import torch

from resode.models import create
from tests import ranks

STAGE = {"width": 4, "field": {"name": "preactivation", "norm": "group"}, "states": 5}
NETWORKS = {
    "units, checkpointed": {"name": "he_resnet20", "widths": [4, 4, 8], "gradient": "checkpointed"},
    "units, two levels": {
        "name": "he_resnet20",
        "widths": [4, 4, 8],
        "gradient": {"name": "checkpointed", "levels": 2},
    },
    "steps, checkpointed": {
        "name": "dynamic",
        "stages": [{**STAGE, "integrator": "rk4", "gradient": "checkpointed", "controls": [0, 5]}],
    },
    "steps, reversible": {
        "name": "dynamic",
        "stages": [{**STAGE, "integrator": "coupling", "gradient": {"name": "reversible", "anchor": 2}}] * 2,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_two_ranks_give_the_gradient_of_one_process(name):
    torch.manual_seed(0)
    network = create(**NETWORKS[name]).double().eval()  # with the same statistics in every part of a batch
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    alone, together = ranks.gradients(network, x), ranks.gradients(network, x, ranks=2)
    assert alone.keys() == together.keys()
    for key, gradient in alone.items():
        torch.testing.assert_close(together[key], gradient, rtol=1e-9, atol=1e-12)
