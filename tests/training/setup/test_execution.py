"""Execution: compiled code lies in a folder of the user's own, one for each set of instructions."""

import os
from pathlib import Path

import torch

from resode.training.setup.execution import own_compiler_cache


def folder(monkeypatch, capability):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    own_compiler_cache()
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def test_code_of_other_instructions_lies_in_another_private_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "restored after the test")
    first, again, other = (folder(monkeypatch, each) for each in ("AVX2", "AVX2", "AVX512"))
    assert first == again != other
    assert first.parent == other.parent == tmp_path
    assert {each.stat().st_mode & 0o777 for each in (first, other)} == {0o700}


def test_a_folder_that_the_user_names_is_kept(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    own_compiler_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
