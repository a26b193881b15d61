"""Foreign checkpoints are read without executing anything in them."""

import os
import pickle
import warnings

import pytest
import torch

from resode.errors import InputError, IntegrityError
from resode.interop import convert
from resode.interop.checkpoints import read


class Hostile:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def hostile_files(tmp_path, folder):
    content = {"state_dict": {"conv1.weight": Hostile(folder)}}
    torch.save(content, tmp_path / "zip.th")
    torch.save(content, tmp_path / "legacy.th", _use_new_zipfile_serialization=False)
    for protocol in range(6):
        (tmp_path / f"{protocol}.th").write_bytes(pickle.dumps(content, protocol=protocol))
    return sorted(tmp_path.glob("*.th"))


def test_a_hostile_pickle_is_refused_and_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder = tmp_path / "executed"
    for path in hostile_files(tmp_path, folder):
        with pytest.raises(IntegrityError) as caught:
            convert("akamaster", path, model="he_resnet20")
        assert caught.value.exit_code == 3
        assert str(path) in caught.value.messages[0]
        assert "\n" not in caught.value.messages[0]
        assert "weights_only" not in caught.value.messages[0]
        assert not folder.exists()
    pickle.loads((tmp_path / "2.th").read_bytes())
    assert folder.exists()  # it would have been executed


def test_a_whole_pickled_module_is_refused_with_its_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(IntegrityError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "module.pt")


@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_checkpoint_is_refused_wherever_it_ends(tmp_path, new):
    whole = tmp_path / "whole.pt"
    torch.save({"weight": torch.ones(100)}, whole, _use_new_zipfile_serialization=new)
    data = whole.read_bytes()
    for length in range(0, len(data) - 1, 61):
        whole.write_bytes(data[:length])
        with pytest.raises(IntegrityError):
            read(whole)


def test_random_bytes_are_a_corrupt_file(tmp_path):
    for seed in range(20):
        noise = torch.randint(256, (300,), generator=torch.Generator().manual_seed(seed)).tolist()
        (tmp_path / "noise.pt").write_bytes(bytes(noise))
        with pytest.raises(IntegrityError):
            read(tmp_path / "noise.pt")


def test_a_scripted_module_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls TorchScript deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(IntegrityError):
        read(tmp_path / "script.pt")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [torch.ones(1)],
        torch.ones(1),
        {1: torch.ones(1)},
        {"epoch": 3},
        {"weight": torch.ones(2).to_sparse()},
        {"weight": torch.ones(2, device="meta")},
    ],
)
def test_files_without_named_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match="does not hold tensors by name"):
        read(tmp_path / "other.pt")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "missing.pt")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize("wrapper", ["state_dict", "net", "model", "model_state_dict", None])
@pytest.mark.parametrize(
    "prefix",
    ["module.", "", "_orig_mod.", "module.module.module.", "module._orig_mod.module.", "_orig_mod.module."],
)
def test_wrappers_and_the_prefix_of_data_parallel_are_removed(tmp_path, wrapper, prefix):
    state = {prefix + "conv1.weight": torch.ones(2)}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "checkpoint.pt")
    assert list(read(tmp_path / "checkpoint.pt")) == ["conv1.weight"]


def test_names_of_parts_that_were_compiled_are_their_own(tmp_path):
    state = {"module.layer1._orig_mod.conv.weight": torch.ones(2), "module.module.bias": torch.ones(1)}
    torch.save({"model_state_dict": state}, tmp_path / "checkpoint.pt")
    assert list(read(tmp_path / "checkpoint.pt")) == ["layer1.conv.weight", "module.bias"]
