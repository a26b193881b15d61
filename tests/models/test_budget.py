"""Budgets: gradient methods that keep a network within a number of bytes, predicted and measured."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resode import memory
from resode.blocks import DynamicBlock
from resode.errors import InputError
from resode.gradients import Adjoint, Checkpointed, Reversible, Stored
from resode.integrators import Momentum
from resode.models import create
from resode.models.budget import Budget, chain_owners, gradient_of, set_gradients
from resode.stages import Stage

NETWORKS = {
    "he_resnet32": {},
    "cifar_resnet50": {"widths": (8, 8, 16, 16)},
    "dynamicblocks": {},
    "revnet38": {},
    "momentum_resnet20": {},
}
SHAPE, BATCH = (3, 16, 16), 16


def measured(network):
    x = torch.randn(BATCH, *SHAPE).to(memory_format=torch.channels_last)
    with memory.measured(network.parameters()) as live:
        F.cross_entropy(network(x), torch.zeros(BATCH, dtype=torch.long)).backward()
    return live.peak


@pytest.mark.parametrize("name", NETWORKS)
def test_a_choice_fits_and_recomputes_no_more_than_it_must(name):
    torch.manual_seed(0)
    network = create(name, **NETWORKS[name]).to(memory_format=torch.channels_last)
    budget = Budget(network, SHAPE, BATCH)
    least = min(choice.activation_bytes for choice in budget.smallest_by_kind())
    most = budget.stored.peak()
    recomputed = []
    for share in (0, 0.1, 0.3, 0.6, 1):
        room = int(1.01 * (least + share * (most - least)))
        choice = budget.fastest(room)
        assert choice.activation_bytes <= room
        set_gradients(network, choice.methods)
        assert measured(network) <= 1.1 * room
        recomputed.append(choice.recomputed)
    assert recomputed == sorted(recomputed, reverse=True)
    assert recomputed[-1] == 0
    assert budget.fastest(int(0.95 * least)) is None


def test_the_choices_of_a_reversible_network():
    budget = Budget(create("revnet38"), SHAPE, BATCH)
    kinds = {choice.name: choice for choice in budget.smallest_by_kind()}
    assert list(kinds) == ["stored", "checkpointed", "reversible", "checkpointed, two levels"]
    assert set(kinds["reversible"].methods) == {Reversible()}
    assert kinds["reversible"].recomputed == 1
    assert set(kinds["stored"].methods) == {Stored()}
    assert kinds["checkpointed"].activation_bytes < kinds["stored"].activation_bytes


def test_counting_does_not_change_the_gradient_methods():
    network = create("revnet38")
    budget = Budget(network, SHAPE, BATCH)
    assert [gradient_of(owner) for owner in chain_owners(network)] == [Reversible()] * 4
    assert budget.current_bytes() < budget.stored.peak()


def test_a_method_that_loses_the_states_to_rounding_is_not_chosen():
    """momentum with g = 1/2 amplifies rounding: 15 steps are too many in float32."""
    network = create("dynamic", stages=[Stage(8, "preactivation", Momentum(0.5), 15)])
    assert "reversible" not in [choice.name for choice in Budget(network, SHAPE, BATCH).smallest_by_kind()]


def test_an_adjoint_gradient_is_kept():
    stages = [
        {
            "width": 4,
            "field": {"name": "parabolic", "norm": None},
            "integrator": "rk4",
            "states": 4,
            "gradient": g,
        }
        for g in ("adjoint", "stored")
    ]
    network = create("dynamic", stages=stages)
    for choice in Budget(network, SHAPE, BATCH).smallest_by_kind():
        assert choice.methods[0] == Adjoint()


def test_a_block_that_is_used_twice_keeps_its_method():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            stage = Stage(4, {"name": "preactivation", "norm": "group"}, "coupling", 3, gradient="reversible")
            self.stem, self.block = nn.Conv2d(3, 4, 3, padding=1), DynamicBlock(stage)

        def forward(self, x):
            return self.block(self.block(self.stem(x)))

    network = Twice()
    budget = Budget(network, SHAPE, BATCH)
    (choice,) = budget.smallest_by_kind()
    assert choice.name == "as it is"
    assert choice.methods == (Reversible(),)
    assert choice.activation_bytes == budget.current_bytes() == memory.profile(network, SHAPE, BATCH).peak()
    set_gradients(network, budget.fastest(10**9).methods)


def test_choices_without_reversible_gradients():
    budget = Budget(create("revnet38"), SHAPE, BATCH)
    assert "reversible" not in [choice.name for choice in budget.smallest_by_kind(allow_reversible=False)]
    least = min(choice.activation_bytes for choice in budget.smallest_by_kind(allow_reversible=False))
    assert set(map(type, budget.fastest(least, allow_reversible=False).methods)) <= {Checkpointed, Stored}


def test_a_network_without_chains_is_stored_or_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))
    budget = Budget(network, SHAPE, BATCH)
    assert [choice.name for choice in budget.smallest_by_kind()] == ["stored"]
    assert budget.fastest(1000) is None
    with pytest.raises(InputError, match="1 methods given, the network takes 0"):
        set_gradients(network, ["stored"])
