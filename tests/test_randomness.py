"""Randomness is a function of (seed, purpose, epoch, sample index)."""

import pytest
import torch

from resode import randomness

INDEX = torch.arange(100_000)


def test_splitmix64_gives_the_published_sequence():
    """The generator's state s + k gamma gives, from seed 1234567, the reference outputs of splitmix64."""
    state = 1234567 + torch.arange(3) * randomness._GAMMA
    outputs = [value % (1 << 64) for value in randomness._splitmix64(state).tolist()]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_draw_does_not_depend_on_the_batch():
    whole = randomness.bits(3, "flip", 7, INDEX)
    shuffled = torch.randperm(len(INDEX), generator=torch.Generator().manual_seed(0))
    assert torch.equal(randomness.bits(3, "flip", 7, INDEX[shuffled]), whole[shuffled])
    assert randomness.bits(3, "flip", 7, INDEX[5:6]) == whole[5]


@pytest.mark.parametrize("other", [(4, "flip", 7), (3, "order", 7), (3, "flip", 8)])
def test_every_word_of_the_key_counts(other):
    assert (randomness.bits(3, "flip", 7, INDEX) != randomness.bits(*other, INDEX)).all()


def test_uniform_draws_are_uniform_and_uncorrelated():
    draws = [randomness.uniform(0, "crop_rows", epoch, INDEX) for epoch in (0, 1)]
    for draw in draws:
        assert draw.min() >= 0
        assert draw.max() < 1
        counts = torch.histc(draw, 20, 0, 1)
        chi_squared = ((counts - 5000) ** 2 / 5000).sum()
        assert chi_squared < 43.8  # 99.9 % of 19 degrees of freedom
    correlation = torch.corrcoef(torch.stack([*draws, draws[0].roll(1)]))
    assert (correlation - torch.eye(3)).abs().max() < 4 / len(INDEX) ** 0.5


def test_integers_cover_their_range_evenly():
    draws = randomness.integers(0, "crop_rows", 0, INDEX, 9)
    counts = torch.bincount(draws, minlength=9)
    assert len(counts) == 9
    assert ((counts - len(INDEX) / 9) ** 2 / (len(INDEX) / 9)).sum() < 26.1  # 99.9 %, 8 degrees


def test_order_is_a_permutation_of_its_own_for_each_epoch():
    subset = INDEX[::7]
    first, second = randomness.order(0, 0, subset), randomness.order(0, 1, subset)
    assert torch.equal(first.sort().values, subset)
    assert (first == second).sum() < 10
    assert torch.equal(first, randomness.order(0, 0, subset))
