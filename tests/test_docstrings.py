"""Docstrings: the examples of the library do what they say, typed by someone who imported resode."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import resode

PACKAGE = Path(resode.__file__).parent
FILES = [str(each.relative_to(PACKAGE)) for each in PACKAGE.rglob("*.py") if ">>> " in each.read_text()]


def examples(module):
    known = {"np": np, "torch": torch, "nn": nn, "resode": resode, **vars(resode.models), **vars(module)}
    return [test for test in doctest.DocTestFinder().find(module, globs=known) if test.examples]


@pytest.mark.parametrize("file", FILES)
def test_examples_give_what_they_say(file):
    name = f"resode.{file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said = []
    for test in examples(importlib.import_module(name)):
        runner.run(test, out=said.append)
    assert not said, "".join(said)
