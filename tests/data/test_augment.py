import math

import pytest
import torch

from resode.data import Augmentation
from resode.data.augment import beta_quantile
from resode.errors import InputError


def test_mistakes_are_all_reported():
    with pytest.raises(InputError) as caught:
        Augmentation(crop=-1, padding="mirror", cutout=-2, mixup=float("nan"))
    assert len(caught.value.messages) == 4


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 10.0])
def test_beta_quantile_has_the_moments_of_beta(alpha):
    """Mean 1/2, variance 1 / (4 (2a + 1)), fourth central moment 3 / (16 (2a + 1) (2a + 3))."""
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    x = beta_quantile(alpha, uniform)
    assert x.min() >= 0
    assert x.max() <= 1
    assert (x.diff() >= 0).all()
    assert abs(x.mean() - 0.5) < 1e-9
    assert abs(x.var(correction=0) * 4 * (2 * alpha + 1) - 1) < 1e-3
    assert abs(((x - 0.5) ** 4).mean() * 16 * (2 * alpha + 1) * (2 * alpha + 3) / 3 - 1) < 2e-3


def test_beta_quantile_inverts_known_distributions():
    """Beta(1, 1) is uniform; Beta(1/2, 1/2) is the arcsine law; Beta(2, 2) has F = 3 x^2 - 2 x^3."""
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (beta_quantile(1.0, uniform) - uniform).abs().max() < 1e-12
    arcsine = torch.sin(math.pi * uniform / 2) ** 2
    assert (beta_quantile(0.5, uniform) - arcsine).abs().max() < 1e-4
    x = beta_quantile(2.0, uniform)
    assert (3 * x**2 - 2 * x**3 - uniform).abs().max() < 1e-4
