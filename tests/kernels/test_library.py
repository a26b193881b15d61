"""Compiled kernels are loaded from files of this user with the recorded hash, and built again otherwise."""

import os
import shutil

import pytest

from resode import atomic
from resode.kernels import library

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)

COMPILER, OPTIONS = os.environ.get("CXX", "c++"), ("-shared", "-fPIC")


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A cache with a library of one function, built from that source and not loaded."""
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(library, "SOURCES", (source,))
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path / "cache"))
    name = library.version(COMPILER, OPTIONS)
    return library._build(COMPILER, OPTIONS, atomic.private_folder("kernels"), name)


def load():
    return library._load(COMPILER, OPTIONS)


def test_an_intact_library_is_not_built_again(built):
    before = built.stat().st_mtime_ns
    assert load().one() == 1
    assert built.stat().st_mtime_ns == before


@pytest.mark.parametrize("harm", ["empty", "truncated", "another", "writable", "linked", "renamed"])
def test_a_file_that_is_not_as_it_was_built_is_built_again(built, tmp_path, harm):
    content = built.read_bytes()
    if harm == "empty":
        built.write_bytes(b"")
    elif harm == "truncated":
        built.write_bytes(content[:1000])
    elif harm == "another":
        built.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "writable":
        built.chmod(0o777)
    elif harm == "linked":
        built.rename(tmp_path / "planted.so")
        built.symlink_to(tmp_path / "planted.so")
    else:
        built = built.rename(built.with_name(f"{built.stem[:-1]}x.so"))
    assert library._load_intact(built) is None
    assert load().one() == 1
    (intact,) = (p for p in built.parent.glob("*.so") if not p.is_symlink() and library._load_intact(p))
    assert intact.stem.endswith(atomic.sha256(intact))


def test_without_a_compiler_there_is_no_library_and_the_version_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library.version() == "none"
    assert library.library.__wrapped__() is None


def test_a_compiler_that_fails_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such header' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.warns(UserWarning, match="cannot be built .no such header.: plain torch is used"):
        assert library.library.__wrapped__() is None
