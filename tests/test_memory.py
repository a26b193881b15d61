"""Memory: the bytes predicted on fake tensors against those of a real step."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resode import memory
from resode.blocks import DynamicBlock
from resode.errors import InputError
from resode.models import create
from resode.stages import Stage

SMALL = {
    "he_resnet8": {"widths": (4, 8, 16)},
    "he_preact_resnet14": {"widths": (4, 8, 16), "shortcut": "B", "stride": "last"},
    "cifar_resnet50": {"widths": (4, 4, 6, 6)},
}


def kept(module, x, dtype):
    """The bytes that a real forward pass keeps."""
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    autocast = torch.autocast("cpu", dtype, enabled=dtype != x.dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        module.train()(x)
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    return sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in own)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_kept_is_what_autograd_keeps(name):
    network, x = create(name, **SMALL[name]), torch.randn(6, 3, 16, 16)
    counted = memory.profile(network, (3, 16, 16), 6).kept()
    assert counted == kept(network, x, torch.float32)
    assert memory.profile(network.double(), (3, 16, 16), 6).kept() == kept(network, x.double(), torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_kept_under_autocast(name):
    network, x = create(name, **SMALL[name]), torch.randn(6, 3, 16, 16)
    counted = memory.profile(network, (3, 16, 16), 6, torch.bfloat16).kept()
    assert counted == pytest.approx(kept(network, x, torch.bfloat16), rel=0.01)  # statistics: a few bytes
    assert counted < 0.7 * memory.profile(network, (3, 16, 16), 6).kept()


def test_what_is_kept_by_hand():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x):
            return F.relu(self.linear(x.flatten(1)))

    inputs, outputs = 4 * 6 * 7, 4 * 5 * 7  # the input for the weight's gradient, the output for the ReLU's
    assert memory.profile(Layer(), (1, 2, 3), 7).kept() == inputs + outputs
    frozen = Layer()
    frozen.linear.requires_grad_(False)
    assert memory.profile(frozen, (1, 2, 3), 7).kept() == 0


def test_a_precision_that_autocast_does_not_take_is_refused():
    with pytest.raises(InputError, match="bfloat16 or float16"):
        memory.profile(create("he_resnet8"), (3, 8, 8), 2, torch.float64)


TWO_LEVELS = {"name": "checkpointed", "levels": 2}
STEPS = [
    ("he_resnet20", "stored"), ("he_resnet20", "checkpointed"), ("he_resnet56", TWO_LEVELS),
    ("he_preact_resnet32", {"name": "checkpointed", "plan": [[3, 2], 4, 6]}),
    ("cifar_resnet50", "checkpointed"), ("dynamicblocks", "stored"),
    ("dynamicblocks", {"name": "checkpointed", "every": 1}), ("revnet38", "reversible"),
    ("revnet110", {"name": "reversible", "anchor": 3}), ("revnet110", "checkpointed"),
    ("momentum_resnet32", "reversible"), ("imex_net", "checkpointed"),
]  # fmt: skip


def predicted_and_measured(name, gradient, precision, batch, size):
    """Peak bytes of a step."""
    options = {"widths": (16, 16, 32, 32)} if name == "cifar_resnet50" else {}
    network = create(name, gradient=gradient, **options).to(memory_format=torch.channels_last)
    predicted = memory.profile(network, (3, size, size), batch, precision).peak()
    x = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    with memory.measured(network.parameters()) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = F.cross_entropy(network(x).float(), torch.zeros(batch, dtype=torch.long))
        loss.backward()
    return predicted, live.peak


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "gradient"), STEPS, ids=str)
def test_the_peak_of_a_step_is_predicted_to_ten_percent(name, gradient, precision):
    predicted, measured = predicted_and_measured(name, gradient, precision, 16, 24)
    assert measured == pytest.approx(predicted, rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "gradient"), STEPS, ids=str)
def test_the_allocator_of_a_gpu_holds_what_is_predicted_to_ten_percent(name, gradient, precision):
    """Beside parameters, gradients and the workspaces of libraries, which a first step makes."""
    options = {"widths": (16, 16, 32, 32)} if name == "cifar_resnet50" else {}
    network = create(name, gradient=gradient, **options).to("cuda", memory_format=torch.channels_last)
    predicted = memory.profile(network, (3, 32, 32), 128, precision).peak()
    x = torch.randn(128, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    for _ in range(2):
        network.zero_grad(set_to_none=False)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = F.cross_entropy(network(x).float(), torch.zeros(128, dtype=torch.long, device="cuda"))
        loss.backward()
        del loss
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize(("name", "gradient"), STEPS, ids=str)
def test_the_copies_of_parameters_that_autocast_makes_are_predicted(name, gradient):
    """With two small images parameters dominate; recomputed segments do not keep their casts.

    (A node of theta(t) that two steps share is counted in both.)
    """
    predicted, measured = predicted_and_measured(name, gradient, torch.bfloat16, 2, 8)
    assert 0.75 * predicted < measured < 1.1 * predicted


def test_what_is_measured_is_what_lives():
    with memory.measured(()) as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # no memory of its own
        del a
        assert live.now == 4000
        c = b + 1
        assert live.now == 8000
        del b
        c.add_(1)
        assert live.now == 4000
    assert live.peak == 8000


def test_gradients_of_parameters_are_not_measured():
    layer, x = nn.Linear(100, 100), torch.randn(1, 100)
    with memory.measured(layer.parameters()) as live:
        layer(x).sum().backward()
        assert live.now < 100 * 100
    assert layer.weight.grad is not None


def test_a_profile_touches_nothing():
    network = create("he_resnet8", gradient="checkpointed")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    memory.profile(network, (3, 32, 32), 4, torch.bfloat16)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(tensor.grad is None for tensor in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert memory.active_profiler() is None


@pytest.mark.parametrize("name", ["revnet38", "chang"])
def test_activations_of_a_reversible_block_do_not_grow_with_its_steps(name):
    """The anchor-free peak of 8 and of 64 steps is the same; that of stored steps is not."""
    scheme = {"revnet38": "coupling", "chang": "symplectic_euler"}[name]

    def peak(steps, gradient):
        stage = Stage(
            8, "hamiltonian" if name == "chang" else "preactivation", scheme, steps, gradient=gradient
        )
        return memory.profile(DynamicBlock(stage), (8, 16, 16), 4).peak()

    assert peak(64, "reversible") == peak(8, "reversible")
    assert peak(64, "stored") > 7 * peak(8, "stored")


@pytest.mark.parametrize("name", ["he_resnet8", "dynamicblocks"])
def test_a_counted_network_is_freed(name):
    """Nothing that is counted keeps the network, not even a cycle through autograd."""
    network = create(name)
    gone = weakref.ref(network)
    memory.profile(network, (3, 32, 32), 2)
    del network
    gc.collect()
    assert gone() is None
