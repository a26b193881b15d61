"""An exported file gives the logits of the network for any number of images, or is not written."""

import json
import logging
import sys
from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import resode
from resode.blocks import dynamic_blocks
from resode.errors import InputError, IntegrityError
from resode.interop import export
from resode.models import name_and_options
from resode.weights import Card, Preprocessing, Specification, load

SIZE = (8, 8)
PREPROCESSING = Preprocessing((0.3, 0.4, 0.5), (0.2, 0.25, 0.3), SIZE, 3, tuple("abcde"))


def dynamic(field, integrator, steps=2, **options):
    """A network of one block."""
    steps = resode.TimeGrid.uniform(steps, end=1.0)
    return resode.DynamicNet([resode.Stage(4, field, integrator, states=steps, **options)], stem=3, classes=5)


def he(**options):
    return resode.create("he_resnet8", widths=(3, 4, 5), classes=5, **options)


def turned():
    twisted = resode.twist(he(), ["layer2.0.conv1"])
    for name, parameter in twisted.named_parameters():
        if name.endswith(".twist"):
            nn.init.normal_(parameter)
    return twisted


PARABOLIC = {"name": "parabolic", "norm": "tv"}
NETWORKS = {
    "he, checkpointed": lambda: he(gradient="checkpointed"),
    "twisted": turned,
    "parabolic, rk4": lambda: dynamic(PARABOLIC, "rk4", 1, controls=[0, 1]),
    "hamiltonian, reversible": lambda: dynamic("hamiltonian", "symplectic_euler", gradient="reversible"),
}


class Mine(nn.Module):
    """A linear classifier whose logits go through `end`."""

    def __init__(self, end):
        super().__init__()
        self.linear, self.end = nn.Linear(3 * 64, 5), end

    def forward(self, x):
        return self.end(self.linear(x.flatten(1)))


def made(network):
    """A network in training mode, whose running statistics are not those of the start, and its card."""
    torch.manual_seed(0)
    module = network().train()
    with torch.no_grad():
        module(torch.randn(16, 3, *SIZE))
    return module, Card(Specification(*name_and_options(module)), PREPROCESSING, {"recipe": "none"})


def onnx_logits(file):
    session = onnxruntime.InferenceSession(file)
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


READERS = {"onnx": onnx_logits, "pt2": lambda file: torch.export.load(file).module()}


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_logits_equal_those_in_evaluation_mode_for_any_batch_size(network, format, tmp_path, capfd, caplog):
    module, card = made(NETWORKS[network])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    exported = export(module, tmp_path / f"net.{format}", card=card)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    read = READERS[format](exported.path)
    for number in (1, 2, 7, 12):
        x = torch.randn(number, 3, *SIZE)
        with torch.no_grad():
            wanted, found = module.eval()(x), read(x)
        assert found.shape == (number, 5)
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert exported.parity <= 1e-5
    assert exported.size == exported.path.stat().st_size
    assert list(tmp_path.iterdir()) == [exported.path]
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    if format == "onnx":
        is_unrolled(module, onnx.load(exported.path), exported.opset)


def is_unrolled(module, file, opset):
    """No loops: the convolutions of a block are those of its evaluations. The batch has a name."""
    kinds = Counter(node.op_type for node in file.graph.node)
    assert not {"Loop", "Scan", "If"} & set(kinds)
    for block in dynamic_blocks(module):
        assert kinds["Conv"] + kinds["ConvTranspose"] == 1 + 2 * len(
            block.evaluations
        )  # the stem; K, its transpose
    for value in (*file.graph.input, *file.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"
    assert opset == file.opset_import[0].version


def test_preprocessing_and_card_are_in_the_file(tmp_path):
    card = Card(None, PREPROCESSING, {"recipe": "none"})
    for format in READERS:
        export(Mine(nn.Identity()), tmp_path / f"net.{format}", card=card)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    of_onnx = session.get_modelmeta().custom_metadata_map
    of_pt2 = dict.fromkeys(("resode", "mean", "std", "size", "classes", "input"), "")
    torch.export.load(tmp_path / "net.pt2", extra_files=of_pt2)
    assert of_onnx == of_pt2
    assert Card.from_json(of_onnx["resode"]) == card
    assert json.loads(of_onnx["mean"]) == [0.3, 0.4, 0.5]
    assert json.loads(of_onnx["std"]) == [0.2, 0.25, 0.3]
    assert json.loads(of_onnx["size"]) == [8, 8]
    assert json.loads(of_onnx["classes"]) == list("abcde")
    assert json.loads(of_onnx["input"]) == "normalised"


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("takes", ["unit", "uint8"])
def test_a_graph_may_begin_with_the_normalisation(takes, format, tmp_path):
    module = Mine(nn.Tanh())
    export(module, tmp_path / f"net.{format}", card=Card(None, PREPROCESSING), takes=takes)
    images = torch.randint(256, (3, 3, *SIZE), dtype=torch.uint8)
    with torch.no_grad():
        found = READERS[format](tmp_path / f"net.{format}")(images / 255 if takes == "unit" else images)
        wanted = module(PREPROCESSING(images))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_safetensors_export_is_a_weights_file(tmp_path):
    module, card = made(turned)
    exported = export(module, tmp_path / "net.safetensors", card=card)
    loaded = load(exported.path)
    assert (exported.format, exported.parity, exported.opset) == ("safetensors", 0, None)
    assert loaded.card == card
    again = export(loaded, tmp_path / "again.safetensors")  # it has its card with it
    assert again.path.read_bytes() == exported.path.read_bytes()


# ---------------------------------------------------------------- errors


def refused(error, match, module, path, **options):
    """The export raises one line, and leaves the folder as it was."""
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(error, match=match) as raised:
        export(module, path, **options)
    assert len(raised.value.messages) == 1
    assert "\n" not in raised.value.messages[0]
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_an_adaptive_solver_goes_into_a_weights_file_only(tmp_path):
    module, card = made(lambda: dynamic({"name": "preactivation", "norm": "group"}, "adaptive"))
    for format in READERS:
        refused(InputError, "Adaptive dopri5 .* fixed steps", module, tmp_path / f"net.{format}", card=card)
    assert export(module, tmp_path / "net.safetensors", card=card).parity == 0


def test_fourier_transforms_go_into_pt2_and_not_into_onnx(tmp_path):
    module, card = made(lambda: dynamic("preactivation", "imex"))
    refused(InputError, r"Fourier transforms .* export \.pt2", module, tmp_path / "net.onnx", card=card)
    exported = export(module, tmp_path / "net.pt2", card=card)
    x = torch.randn(5, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(READERS["pt2"](exported.path)(x), module.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("end", "format", "error", "match"),
    [
        (lambda y: y + torch.rand_like(y), "pt2", IntegrityError, "differ from the network's by"),
        (lambda y: y * torch.nan, "pt2", IntegrityError, "not finite"),
        (lambda y: y if y.sum() > 0 else -y, "pt2", InputError, "cannot trace the network .*data-dependent"),
        (lambda y: y.reshape(2, 5), "pt2", InputError, "cannot trace the network"),
        (lambda y: {"logits": y}, "pt2", InputError, "does not return logits"),
        (torch.special.bessel_j1, "onnx", InputError, r"cannot express the network .*bessel.* try \.pt2"),
        (lambda y: y, "safetensors", InputError, r"the Mine is no registered model: put @models\.reg"),
    ],
)
def test_a_file_that_differs_from_the_network_is_not_written(end, format, error, match, tmp_path, capfd):
    path = tmp_path / f"net.{format}"
    if error is InputError:
        path.write_bytes(b"of before")
    refused(error, match, Mine(end), path, card=Card(None, PREPROCESSING))
    assert capfd.readouterr() == ("", "")


def test_onnx_needs_its_packages_and_float32(tmp_path, monkeypatch):
    module, card = made(he)
    refused(
        InputError,
        r"export \.pt2, or convert the network to float32",
        module.double(),
        tmp_path / "net.onnx",
        card=card,
    )
    assert export(module, tmp_path / "double.pt2", card=card).parity == 0
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(InputError, r"pip install 'resode\[export\]'", module.float(), tmp_path / "net.onnx", card=card)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("net.onn", {}, "must end in .onnx or .pt2 or .safetensors"),
        ("net", {}, "must end in"),
        ("net.onnx", {"format": "pt2"}, "must end in .pt2"),
        ("net.onnx", {"format": "onx"}, "unknown format 'onx'; did you mean 'onnx'"),
        ("net.pt2", {"takes": "unt8"}, "unknown input 'unt8'; did you mean 'uint8'"),
        ("net.safetensors", {"takes": "uint8"}, "no graph"),
        ("net.pt2", {"card": None}, "no card"),
    ],
)
def test_mistakes_are_named(name, options, match, tmp_path):
    module, card = made(he)
    refused(InputError, match, module, tmp_path / name, **{"card": card, **options})
