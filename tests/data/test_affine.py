import math

import numpy as np
import pytest
import torch

from resode.data import Dataset, Images, load, random_affine, sources
from resode.data.affine import affine_uint8
from resode.errors import InputError
from tests.data.conftest import random_pixels


def still(count: int, angle: float = 0.0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((count,), angle, dtype=torch.float64), torch.full((count,), scale, dtype=torch.float64)


def smooth(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of pixels, x to the right and y down, in units of the side and from the centre."""
    line = (np.arange(side) + 0.5) / side - 0.5
    return np.meshgrid(line, line)


def pixels_of(u: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.round(u * 255).astype(np.uint8))[None, :, :, None]


def two_splits(count: int = 40) -> Dataset:
    pixels = random_pixels(count, side=12)
    images = Images.of(pixels, np.arange(count) % 2)
    return Dataset.of("small", ("cat", "dog"), images, images)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_rotation_at_scale_one_changes_nothing(channels):
    images = torch.from_numpy(random_pixels(5, channels=channels))
    assert torch.equal(affine_uint8(images, *still(5)), images)


def test_a_right_angle_is_rot90():
    images = torch.from_numpy(random_pixels(5, side=9))
    turned = affine_uint8(images, *still(5, math.pi / 2))
    assert (turned.int() - torch.rot90(images, 1, (1, 2)).int()).abs().max() <= 1


def test_a_smooth_image_is_read_where_the_equation_says():
    x, y = smooth(64)

    def u(x, y):
        return 0.5 + 0.2 * np.sin(5 * x) + 0.2 * np.cos(4 * y - x)

    angle, scale = 0.4, 1.3
    seen = affine_uint8(pixels_of(u(x, y)), *still(1, angle, scale))[0, :, :, 0].numpy() / 255
    # seen counterclockwise with y down: the point at (x, y) came from R(-a) (x, y) / s
    back_x = (math.cos(angle) * x - math.sin(angle) * y) / scale
    back_y = (math.sin(angle) * x + math.cos(angle) * y) / scale
    inside = np.maximum(np.abs(back_x), np.abs(back_y)) < 0.48
    assert inside.mean() > 0.5
    assert np.abs(seen - u(back_x, back_y))[inside].max() < 0.01


def test_an_oblong_image_turns_without_shear():
    images = torch.zeros(1, 40, 80, 1, dtype=torch.uint8)
    images[0, 20, 40:60] = 255  # a line of 20 pixels to the right of the centre
    turned = affine_uint8(images, *still(1, math.pi / 2))[0, :, :, 0]
    rows, columns = torch.nonzero(turned > 100, as_tuple=True)
    assert 19 <= len(set(rows.tolist())) <= 21
    assert rows.max() <= 21  # up
    assert len(set(columns.tolist())) <= 2


def test_the_draws_belong_to_the_content_not_to_the_order():
    dataset = two_splits()
    order = np.random.default_rng(0).permutation(40)
    shuffled = Images.of(dataset.test.pixels[order], dataset.test.labels[order])
    other = Dataset.of("small", dataset.classes, dataset.train, shuffled)
    one, two = random_affine(dataset, "w"), random_affine(other, "w")
    assert np.array_equal(one.test.pixels[order], two.test.pixels)
    assert one.fingerprint == two.fingerprint != dataset.fingerprint
    assert one.fingerprint != random_affine(dataset, "w", seed=1).fingerprint
    assert one.train is dataset.train


def test_images_get_draws_of_their_own_over_the_whole_range():
    x, y = smooth(33)
    disc = pixels_of((x**2 + y**2 < 0.2**2) * 1.0).expand(300, -1, -1, -1).numpy().copy()
    disc[:, 0, 0, 0] = np.arange(300) % 256
    disc[:, 0, 1, 0] = np.arange(300) // 256  # or they would be equal in content
    images = Images.of(disc, np.zeros(300, dtype=np.int64))
    seen = random_affine(Dataset.of("discs", ("disc",), images, images), "w", degrees=0).test.pixels
    middle = seen[:, 8:25, 8:25, 0].astype(float)
    area = middle.reshape(300, -1).sum(1) / 255 / (disc[0, 8:25, 8:25, 0] / 255).sum()
    assert 0.45 < area.min() < 0.55  # 0.7^2
    assert 1.5 < area.max() < 1.75  # 1.3^2
    assert np.median(area) == pytest.approx(0.91, abs=0.1)  # 0.7 x 1.3, the middle in logarithms


@pytest.mark.parametrize(
    "options", [{"degrees": -1}, {"degrees": math.nan}, {"scales": (0, 1)}, {"scales": (1.3, 0.7)}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="give degrees of at least 0 and an interval above 0"):
        random_affine(two_splits(), "w", **options)


def test_a_data_set_without_test_images_is_refused():
    dataset = two_splits()
    with pytest.raises(InputError, match="no test images"):
        random_affine(Dataset.of("small", dataset.classes, dataset.train), "w")


@pytest.mark.slow
def test_cifar10_warped(cifar10, monkeypatch):
    monkeypatch.setitem(sources._entries, "cifar10", _constant(cifar10))
    dataset = load("cifar10-warped")
    assert len(dataset.test) == 10_000
    assert np.array_equal(dataset.test.labels, cifar10.test.labels)
    assert dataset.train is cifar10.train
    assert dataset.fingerprint == "515c62deb43570f89b8f7ef5092843def6cfdfed8b9bba984287eabae116df79"


def _constant(dataset: Dataset):
    entry = sources.entry("cifar10")
    return type(entry)(
        entry.name, lambda image_size=None, on_bad_image="error": dataset, entry.summary, entry.shape
    )
