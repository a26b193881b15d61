import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resode.data import Images, channel_statistics, validation_split
from resode.errors import InputError
from tests.data.conftest import random_pixels


def images(labels, seed: int = 0) -> Images:
    return Images.of(random_pixels(len(labels), side=2, seed=seed), np.array(labels))


UNEVEN = images([0] * 50 + [1] * 30 + [2] * 13 + [3] * 7)


def test_both_parts_are_sorted_and_disjoint():
    train, validation = validation_split(UNEVEN, 20, seed=1)
    assert train.dtype == validation.dtype == np.int64
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(100))
    assert np.array_equal(train, np.sort(train))
    assert np.array_equal(validation, np.sort(validation))


def test_shares_are_rounded_by_largest_remainder():
    """20 % of 50, 30, 13 and 7 is 10, 6, 2.6 and 1.4."""
    _, validation = validation_split(UNEVEN, 20, seed=1)
    assert np.bincount(UNEVEN.labels[validation]).tolist() == [10, 6, 3, 1]


@given(st.integers(0, 96), st.integers(0, 5))
def test_every_count_is_met_and_every_share_is_within_one(count, seed):
    _, validation = validation_split(UNEVEN, count, seed)
    sizes = np.bincount(UNEVEN.labels)
    shares = np.bincount(UNEVEN.labels[validation], minlength=4)
    assert len(validation) == count
    assert (shares < sizes).all()
    if count < 80:
        assert (np.abs(shares - count * sizes / 100) < 1).all()


def test_a_fraction_is_a_count():
    for fraction, count in ((0.2, 20), (0.125, 12), (0.0, 0)):
        assert len(validation_split(UNEVEN, fraction, 0)[1]) == count


def test_none_is_empty():
    train, validation = validation_split(UNEVEN, 0, seed=0)
    assert len(validation) == 0
    assert np.array_equal(train, np.arange(100))


def test_the_choice_follows_the_content_not_the_order():
    order = np.random.default_rng(0).permutation(100)
    permuted = Images.of(UNEVEN.pixels[order], UNEVEN.labels[order])
    chosen = UNEVEN.digests[validation_split(UNEVEN, 20, 7)[1]]
    again = permuted.digests[validation_split(permuted, 20, 7)[1]]
    assert np.array_equal(np.sort(chosen), np.sort(again))


def test_seeds_choose_independently():
    """Two choices of 30 of 100 share 9 on average; 6 standard deviations are 10."""
    first, second = (validation_split(UNEVEN, 30, seed)[1] for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert len(np.intersect1d(first, second)) < 19
    assert np.array_equal(first, validation_split(UNEVEN, 30, 0)[1])


def test_every_image_is_chosen_equally_often():
    chosen = np.zeros(100)
    for seed in range(200):
        chosen[validation_split(UNEVEN, 20, seed)[1]] += 1
    expected = 200 * np.array([10, 6, 3, 1])[UNEVEN.labels] / np.array([50, 30, 13, 7])[UNEVEN.labels]
    assert (np.abs(chosen - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("validation", [-1, 100, 200, 1.0, 1.5, -0.1, float("nan"), True])
def test_impossible_values(validation):
    with pytest.raises(InputError, match="is impossible"):
        validation_split(UNEVEN, validation, 0)


def test_a_class_keeps_an_image_to_train_on():
    one = images([0] * 9 + [1])
    assert np.bincount(one.labels[validation_split(one, 8, 0)[0]], minlength=2).tolist() == [1, 1]
    with pytest.raises(InputError, match="leaves some class without a training image"):
        validation_split(one, 9, 0)
    with pytest.raises(InputError, match="of 10 images is none"):
        validation_split(one, 0.01, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_channel_statistics_are_exact(channels):
    some = Images.of(random_pixels(1500, side=5, channels=channels), np.zeros(1500, np.int64))
    index = np.arange(0, 1500, 2)
    mean, std = channel_statistics(some, index)
    reference = some.pixels[index].astype(np.longdouble) / 255
    assert np.abs(np.array(mean) - reference.mean((0, 1, 2))).max() < 1e-15
    assert np.abs(np.array(std) - reference.std((0, 1, 2))).max() < 1e-15


def test_statistics_of_a_flat_image_and_of_none():
    flat = Images.of(np.full((2, 3, 3, 1), 51, np.uint8), np.array([0, 0]))
    assert channel_statistics(flat, np.array([0])) == ((0.2,), (0.0,))
    with pytest.raises(InputError, match="of no image"):
        channel_statistics(flat, np.array([], np.int64))
