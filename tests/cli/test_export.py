"""`resode export`: a trained network as other programs take it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import resode as library
from resode import weights
from resode.interop import exporting
from resode.training import Run


def test_onnx_runtime_alone_gets_the_error_of_evaluate(resode, run, tmp_path):
    answer = resode("export", run, "--out", "net.onnx")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    name, takes, parity = answer.out.splitlines()
    size = Path("net.onnx").stat().st_size
    assert re.fullmatch(rf"net\.onnx: digits_resnet8, onnx \(opset \d+\), {size:,} bytes", name)
    assert takes == "takes normalised images (N, 1, 8, 8)"
    assert float(parity.split()[1].rstrip(":")) <= 1e-5

    session = onnxruntime.InferenceSession("net.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    mean, std = (np.array(json.loads(metadata[key]), np.float32) for key in ("mean", "std"))
    test = library.load_data("digits").test
    images = (np.float32(test.pixels.transpose(0, 3, 1, 2)) / 255 - mean) / std
    (logits,) = session.run(None, {"images": images})
    error = 100 * np.mean(logits.argmax(1) != test.labels)
    of_evaluate = json.loads(resode("evaluate", run, "--json").out)["top1_error"]
    assert error == pytest.approx(of_evaluate, abs=1e-4)
    assert 0 < error < 90  # it has learned something, and not all


def test_a_checkpoint_goes_into_new_folders_and_other_formats(resode, run, tmp_path):
    checkpoint = max(Run(run).checkpoints.iterdir())
    assert resode("export", checkpoint, "--format", "safetensors", "--out", "a/b/net.safetensors").code == 0
    errors = [
        json.loads(resode("evaluate", path, "--json").out)["loss"]
        for path in (checkpoint, "a/b/net.safetensors")
    ]
    assert errors[0] == errors[1]
    answer = resode("export", "a/b/net.safetensors", "--input", "uint8", "--out", run / "net.pt2")
    assert answer.code == 0, answer.err
    assert "takes uint8 images (N, 1, 8, 8)" in answer.out
    images = torch.tensor(library.load_data("digits").test.pixels[:9]).permute(0, 3, 1, 2)
    network = library.load(checkpoint)
    with torch.no_grad():
        logits = torch.export.load(run / "net.pt2").module()(images)
        torch.testing.assert_close(logits, network(network.preprocessing(images)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run",), "Missing option '--out'"),
        (("run", "--out", "net.bin"), "net.bin: the file must end in .onnx or .pt2 or .safetensors"),
        (("run", "--out", "net.onnx", "--format", "onx"), "unknown format 'onx'; did you mean 'onnx'"),
        (("run", "--out", "net.pt2", "--format", "onnx"), "net.pt2: the file must end in .onnx"),
        (("run", "--out", "net.pt2", "--input", "unint8"), "unknown input 'unint8'; did you mean 'uint8'"),
        (("run", "--out", "n.safetensors", "--input", "unit"), "weights and no graph"),
        (("run", "--out", "there.pt2"), "there.pt2: exists already; choose another name or add --force"),
        (("run", "--out", "there.safetensors"), "exists already"),
        (("there.safetensors", "--out", "there.safetensors", "--force"), "is the file that is read"),
        (("run", "--out", "run/net.safetensors"), "among the files of a run"),
        (("nowhere", "--out", "net.onnx"), "nowhere: no such run"),
        ((".", "--out", "net.onnx"), "holds no run"),
        (("run/summary.json", "--out", "net.onnx"), "is not a complete safetensors file"),
    ],
)
def test_mistakes_are_a_line_each_and_nothing_is_written(resode, run, tmp_path, words, message):
    shutil.copy(run / "model.safetensors", "there.safetensors")
    Path("there.pt2").write_bytes(b"of before")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    answer = resode("export", *words)
    assert answer.code == (3 if "summary.json" in words[0] else 2)
    assert message in answer.err
    assert len(answer.lines) == 1
    assert answer.out == ""
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_an_adaptive_solver_is_refused(resode, tmp_path):
    options = {"widths": [4, 4, 4], "in_channels": 1}
    network = library.create("neural_ode", **options)
    preprocessing = weights.Preprocessing((0.5,), (0.5,), (8, 8), 1, tuple("0123456789"))
    card = weights.Card(weights.Specification("neural_ode", options), preprocessing)
    weights.save(network, "ode.safetensors", card)
    for name in ("net.onnx", "net.pt2"):
        answer = resode("export", "ode.safetensors", "--out", name)
        assert answer.code == 2
        assert "Adaptive dopri5" in answer.err
        assert len(answer.lines) == 1
        assert not Path(name).exists()


def test_what_was_stopped_or_is_damaged_leaves_what_was_there(resode, run, tmp_path, monkeypatch):
    Path("net.pt2").write_bytes(b"of before")
    damaged = weights.load(run / "model.safetensors")
    torch.nn.init.constant_(damaged.fc.bias, torch.nan)
    weights.save(damaged, "damaged.safetensors", damaged.card)
    before = set(tmp_path.iterdir())
    answer = resode("export", "damaged.safetensors", "--out", "net.pt2", "--force")
    assert (answer.code, len(answer.lines)) == (3, 1)
    assert "not finite" in answer.err

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "_parity", interrupted)
    answer = resode("export", run, "--out", "net.pt2", "--force")
    assert answer.code == 130
    assert set(tmp_path.iterdir()) == before
    assert Path("net.pt2").read_bytes() == b"of before"
