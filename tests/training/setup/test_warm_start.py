"""Warm start: the classes of the data are found among those of the weights, or the last layer is new."""

import pytest
import torch
from torch import nn

import resode
from resode import weights
from resode.errors import InputError
from resode.training import Experiment
from resode.training.optim import optimizers
from resode.training.setup.preparation import prepare

OTHER = tuple("5170328946")  # the digits in another order
LETTERS = tuple("abcdefghij")


@pytest.fixture
def tiny():
    overrides = ["epochs=1", "batch_size=256", "model.widths=[4,4,8]", "precision=fp32"]
    return Experiment.from_recipe("quickstart", overrides)


def started(tiny, file, **init):
    return prepare(tiny.replace(init={"path": str(file), **init}))


def saved(tmp_path, names, **training):
    """A weights file of a network of digits, for classes of these names."""
    torch.manual_seed(1)
    net = resode.create("digits_resnet8", widths=(4, 4, 8))
    preprocessing = weights.Preprocessing((0.5,), (0.5,), (8, 8), 1, names)
    specification = weights.Specification("digits_resnet8", {"widths": [4, 4, 8]})
    weights.save(net, tmp_path / "net.safetensors", weights.Card(specification, preprocessing, training))
    return net, tmp_path / "net.safetensors"


def test_equal_classes_in_another_order_are_permuted_by_name(tiny, tmp_path):
    net, file = saved(tmp_path, OTHER)
    setup = started(tiny, file)
    index = [OTHER.index(name) for name in setup.data.classes]
    assert torch.equal(setup.module.fc.weight, net.fc.weight[index])
    assert torch.equal(setup.module.fc.bias, net.fc.bias[index])
    assert torch.equal(setup.module.conv1.weight, net.conv1.weight)
    assert setup.card.preprocessing.classes == tuple("0123456789")


def test_the_state_of_the_optimizer_is_permuted_too(tiny, tmp_path):
    net, file = saved(tmp_path, OTHER)
    state = {f"momentum_buffer/{name}": torch.randn_like(p) for name, p in net.named_parameters()}
    optimizers.write_state(file, state)
    setup = started(tiny, file, optimizer=True)
    index = [OTHER.index(name) for name in setup.data.classes]
    for name, tensor in state.items():
        expected = tensor[index] if ".fc." in f".{name.partition('/')[2]}" else tensor
        assert torch.equal(setup.optimizer_state[name], expected), name


def test_the_state_of_a_new_head_is_zero(tiny, tmp_path):
    net, file = saved(tmp_path, LETTERS)
    state = {f"momentum_buffer/{name}": torch.ones_like(p) for name, p in net.named_parameters()}
    optimizers.write_state(file, state)
    setup = started(tiny, file, optimizer=True, new_head=True)
    for name, tensor in setup.optimizer_state.items():
        assert tensor.eq(0 if name.endswith(("fc.weight", "fc.bias")) else 1).all(), name


@pytest.mark.parametrize("classes", [LETTERS, OTHER, tuple("0123456789")])
def test_a_new_head_is_fresh_though_the_number_of_classes_agrees(tiny, tmp_path, classes):
    net, file = saved(tmp_path, classes)
    setup, fresh = started(tiny, file, new_head=True), prepare(tiny)
    assert torch.equal(setup.module.fc.weight, fresh.module.fc.weight)
    assert not torch.equal(setup.module.fc.weight, net.fc.weight)
    assert torch.equal(setup.module.conv1.weight, net.conv1.weight)


def test_other_names_of_equal_number_are_refused_with_the_ways_out(tiny, tmp_path):
    net, file = saved(tmp_path, LETTERS)
    with pytest.raises(InputError) as error:
        started(tiny, file)
    assert "its classes (0, 1, 2, 3, 4, ...) are not the network's (a, b, c, d, e, ...)" in str(error.value)
    for way in ("--set init.new_head=true", "init.classes=by-position", "init.classes={...}"):
        assert way in str(error.value)
    assert torch.equal(started(tiny, file, classes="by-position").module.fc.weight, net.fc.weight)
    backwards = dict(zip("0123456789", reversed(LETTERS), strict=True))
    setup = started(tiny, file, classes=backwards)
    assert torch.equal(setup.module.fc.weight, net.fc.weight.flip(0))
    assert setup.experiment.init.classes == backwards  # the run records it
    with pytest.raises(InputError, match="maps two classes of digits to one"):
        started(tiny, file, classes=backwards | {"0": "a"})


def test_assumed_names_pass_and_the_run_says_so(tiny, tmp_path):
    net, file = saved(tmp_path, LETTERS, classes="assumed")
    setup = started(tiny, file)
    assert torch.equal(setup.module.fc.weight, net.fc.weight)
    assert any("class names are assumed" in note for note in setup.notes)


def test_numbers_of_arrays_given_in_python_are_positions(tiny, tmp_path):
    net, file = saved(tmp_path, LETTERS)
    train = resode.load_data("digits").train
    arrays = resode.data.dataset_of((train.pixels, train.labels))
    experiment = tiny.replace(init={"path": str(file)}, data={"source": arrays.name})
    setup = prepare(experiment, dataset=arrays)
    assert torch.equal(setup.module.fc.weight, net.fc.weight)
    assert any("by position" in note for note in setup.notes)


class Backwards(nn.Module):
    """A network whose last layer with parameters does not give the logits."""

    def __init__(self):
        super().__init__()
        self.head, self.stem = nn.Linear(10, 10), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.stem(x.flatten(1)))


def test_a_network_whose_last_layer_is_no_head_is_not_permuted(tiny, tmp_path):
    preprocessing = weights.Preprocessing((0.5,), (0.5,), (8, 8), 1, OTHER)
    weights.save(Backwards(), tmp_path / "net.safetensors", weights.Card(None, preprocessing))
    experiment = tiny.replace(init={"path": str(tmp_path / "net.safetensors")})
    with pytest.raises(InputError, match=r"stem.weight, does not give its logits; --set init.new_head=true"):
        prepare(experiment, Backwards())
