"""The real CIFAR-10, where RESODE_DATA has it."""

import numpy as np
import pytest

from resode.data import channel_statistics, validation_split
from tests.data.conftest import known

pytestmark = pytest.mark.slow


def test_shapes_and_classes(cifar10):
    assert cifar10.train.pixels.shape == (50_000, 32, 32, 3)
    assert cifar10.test.pixels.shape == (10_000, 32, 32, 3)
    assert cifar10.classes == known("cifar10").classes
    assert np.bincount(cifar10.train.labels).tolist() == [5000] * 10
    assert np.bincount(cifar10.test.labels).tolist() == [1000] * 10


def test_content(cifar10):
    assert cifar10.fingerprint == known("cifar10").fingerprint
    assert len(np.unique(np.concatenate([cifar10.train.digests, cifar10.test.digests]))) == 60_000


def test_channel_statistics(cifar10):
    mean, std = channel_statistics(cifar10.train, np.arange(50_000))
    assert np.abs(np.array(mean) - (0.49139968, 0.48215841, 0.44653091)).max() < 1e-7
    assert np.abs(np.array(std) - (0.24703223, 0.24348513, 0.26158784)).max() < 1e-7


def test_split_of_the_paper(cifar10):
    train, validation = validation_split(cifar10.train, 5000, seed=0)
    assert np.bincount(cifar10.train.labels[train]).tolist() == [4500] * 10
    assert np.bincount(cifar10.train.labels[validation]).tolist() == [500] * 10
