"""Batches against a slow reference: one image at a time, straight from the definitions."""

import math

import numpy as np
import pytest
import torch

from resode import randomness
from resode.data import Augmentation, Images, Loader
from resode.data.augment import beta_quantile
from resode.errors import InputError, ResourceError
from tests.data.conftest import random_pixels

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CROP = Augmentation(crop=2, flip=True)
EVERYTHING = Augmentation(crop=2, padding="reflect", flip=True, cutout=3, mixup=0.4)


def images(count=20, height=6, width=9, channels=3) -> Images:
    pixels = random_pixels(count, side=max(height, width), channels=channels)[:, :height, :width]
    return Images.of(pixels, np.arange(count) % 10)


SOME = images()


def loader(augmentation=CROP, some=SOME, index=None, batch_size=8, **options) -> Loader:
    channels = some.pixels.shape[3]
    index = np.arange(len(some)) if index is None else np.array(index)
    return Loader(
        some, index, batch_size=batch_size, mean=MEAN[:channels], std=STD[:channels], device="cpu",
        augmentation=augmentation, **options,
    )  # fmt: skip


def draw(purpose, epoch, rank, below, seed=0) -> int:
    return int(randomness.integers(seed, purpose, epoch, torch.tensor([rank]), below))


def augmented(some: Images, sample: int, epoch: int, plan: Augmentation) -> np.ndarray:
    """One image, (H, W, C) float64."""
    image, rank = some.pixels[sample], np.argsort(some.digests).tolist().index(sample)
    height, width, channels = image.shape
    mode = "reflect" if plan.padding == "reflect" else "constant"
    image = np.pad(image, ((plan.crop, plan.crop), (plan.crop, plan.crop), (0, 0)), mode)
    top = draw("crop_rows", epoch, rank, 2 * plan.crop + 1)
    left = draw("crop_columns", epoch, rank, 2 * plan.crop + 1)
    image = image[top : top + height, left : left + width]
    if plan.flip == "alternate":
        mirrored = draw("flip", 0, rank, 2) != epoch % 2
    else:
        mirrored = plan.flip and draw("flip", epoch, rank, 2)
    if mirrored:
        image = image[:, ::-1]
    result = (image / 255 - MEAN[:channels]) / STD[:channels]
    if plan.cutout:
        row = draw("cutout_rows", epoch, rank, height) - plan.cutout // 2
        column = draw("cutout_columns", epoch, rank, width) - plan.cutout // 2
        result[max(row, 0) : max(row + plan.cutout, 0), max(column, 0) : max(column + plan.cutout, 0)] = 0
    return result


def reference(some: Images, index: list[int], epoch: int, plan: Augmentation):
    """The whole epoch: inputs (n, C, H, W), targets, partners, weights."""
    rows = []
    by_rank = np.argsort(some.digests).tolist()  # randomness knows a sample by its rank
    ranks = sorted(by_rank.index(sample) for sample in index)
    for rank in randomness.order(0, epoch, torch.tensor(ranks)).tolist():
        sample = by_rank[rank]
        partner, weight, image = sample, 1.0, augmented(some, sample, epoch, plan)
        if plan.mixup:
            partner = by_rank[ranks[draw("mixup_partner", epoch, rank, len(index))]]
            uniform = randomness.uniform(0, "mixup_weight", epoch, torch.tensor([rank]))
            weight = float(beta_quantile(plan.mixup, uniform))
            image = weight * image + (1 - weight) * augmented(some, partner, epoch, plan)
        rows.append((image.transpose(2, 0, 1), some.labels[sample], some.labels[partner], weight))
    return [np.array(column) for column in zip(*rows, strict=True)]


PLANS = {
    "nothing": Augmentation(),
    "crop": Augmentation(crop=2),
    "reflect": Augmentation(crop=3, padding="reflect"),
    "flip": Augmentation(flip=True),
    "alternate": Augmentation(flip="alternate"),
    "cutout": Augmentation(cutout=4),
    "mixup": Augmentation(mixup=0.4),
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_equal_the_slow_reference(plan, channels):
    some, index = images(channels=channels), [1, 3, 4, 7, 8, 11, 12, 13, 17, 19, 2]
    inputs, targets, partners, weights = reference(some, index, 5, plan)
    made = loader(plan, some, index, batch_size=4)
    for step in range(3):
        batch, part = made.batch(5, step), slice(4 * step, 4 * step + 4)
        assert np.abs(batch.inputs.numpy() - inputs[part]).max() < 2e-6
        assert np.array_equal(batch.targets, targets[part])
        if plan.mixup:
            assert np.array_equal(batch.partners, partners[part])
            assert np.abs(batch.weight.numpy() - weights[part]).max() < 1e-7
        else:
            assert batch.partners is None
            assert batch.weight is None


def equal(one, two) -> bool:
    pairs = [(getattr(one, name), getattr(two, name)) for name in ("inputs", "targets", "partners", "weight")]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("plan", [CROP, EVERYTHING])
def test_a_batch_is_a_function_of_epoch_and_step(plan):
    first, second = loader(plan), loader(plan)
    calls = [(0, 0), (0, 1), (1, 2), (0, 2), (3, 0)]
    found = {call: first.batch(*call) for call in calls}
    for call in reversed(calls):
        assert equal(second.batch(*call), found[call])
        assert equal(first.batch(*call), found[call])


@pytest.mark.parametrize("plan", [CROP, EVERYTHING])
def test_the_division_into_batches_does_not_matter(plan):
    whole = loader(plan, batch_size=20).batch(2, 0)
    parts = [loader(plan, batch_size=6).batch(2, step) for step in range(4)]
    assert [len(part.targets) for part in parts] == [6, 6, 6, 2]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_later_batches_leave_earlier_ones_alone():
    made = loader(EVERYTHING)
    batch = made.batch(0, 0)
    kept = batch.inputs.clone()
    for step in (1, 2, 1):
        made.batch(0, step)
    list(made)
    assert torch.equal(batch.inputs, kept)


def unique_labels(count=50) -> Images:
    return Images.of(random_pixels(count, side=2), np.arange(count))


def test_an_epoch_is_each_sample_once():
    index = np.arange(3, 50, 2)
    made = loader(some=unique_labels(), index=index, batch_size=7)
    assert (made.samples, made.steps) == (24, 4)
    orders = []
    for epoch in range(3):
        seen = torch.cat([made.batch(epoch, step).targets for step in range(made.steps)])
        orders.append(tuple(seen.tolist()))
    assert len(set(orders)) == 3
    assert all(sorted(order) == index.tolist() for order in orders)


def test_another_seed_gives_another_order_and_other_crops():
    one, two = (loader(some=unique_labels(), seed=seed).batch(0, 0) for seed in (0, 1))
    assert not torch.equal(one.targets, two.targets)
    plain = Augmentation(crop=2)
    by_seed = [loader(plain, seed=seed, batch_size=20).batch(0, 0).inputs.sum() for seed in (0, 1)]
    assert by_seed[0] != by_seed[1]


def test_half_of_the_images_are_flipped_and_every_shift_is_as_likely():
    """An image of column numbers says where it came from."""
    count = 4000
    pixels = np.broadcast_to(np.arange(1, 9, dtype=np.uint8)[None, None, :, None], (count, 8, 8, 1)).copy()
    some = Images(pixels, np.zeros(count, np.int64), np.zeros(count, np.uint64))
    made = Loader(
        some, np.arange(count), batch_size=count, mean=[0], std=[1 / 255], device="cpu",
        augmentation=Augmentation(crop=2, padding="reflect", flip=True),
    )  # fmt: skip
    middle = made.batch(0, 0).inputs[:, 0, 0, 2:6].round()
    flipped = middle[:, 0] > middle[:, 1]
    assert abs(int(flipped.sum()) - count / 2) < 5 * math.sqrt(count / 4)
    shifts = torch.where(flipped, middle[:, 3], middle[:, 0]).to(torch.int64)
    frequencies = torch.bincount(shifts - 1, minlength=5)
    assert (frequencies - count / 5).abs().max() < 5 * math.sqrt(count * 0.16)
    assert not torch.equal(flipped, made.batch(1, 0).inputs[:, 0, 0, 2] > made.batch(1, 0).inputs[:, 0, 0, 3])


def test_alternate_flips_show_every_image_both_ways_in_any_two_epochs_and_half_of_them_mirrored_in_each():
    count = 1000
    left = np.zeros((count, 1, 2, 1), np.uint8)
    left[:, :, 0] = 255
    some = Images(left, np.arange(count) % 2**31, np.arange(count, dtype=np.uint64))
    made = Loader(
        some, np.arange(count), batch_size=count, mean=[0], std=[1], device="cpu",
        augmentation=Augmentation(flip="alternate"),
    )  # fmt: skip
    mirrored = []
    for epoch in (0, 1, 2, 7):
        batch = made.batch(epoch, 0)
        mirrored.append(batch.inputs[:, 0, 0, 1][batch.targets.argsort()] > 0.5)
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[0], mirrored[2])
    assert torch.equal(mirrored[1], mirrored[3])
    assert abs(int(mirrored[0].sum()) - count / 2) < 5 * math.sqrt(count / 4)


def test_padding_is_black_before_normalisation():
    white = Images.of(np.full((4, 2, 2, 1), 255, np.uint8), np.zeros(4, np.int64))
    made = loader(Augmentation(crop=2), white)
    values = torch.cat([made.batch(epoch, 0).inputs.flatten() for epoch in range(20)])
    assert torch.allclose(values.unique(), torch.tensor([-0.4 / 0.2, 0.6 / 0.2]))


def test_cutout_blanks_its_square():
    white = Images.of(np.full((200, 7, 7, 1), 255, np.uint8), np.zeros(200, np.int64))
    batch = loader(Augmentation(cutout=3), white, batch_size=200).batch(0, 0)
    blank = (batch.inputs == 0).flatten(1).sum(1)
    assert set(blank.tolist()) == {4, 6, 9}  # at a corner, at an edge, inside
    assert loader(Augmentation(cutout=99), white).batch(0, 0).inputs.count_nonzero() == 0


def test_mixup_weights_are_beta():
    some = unique_labels(50)
    made = loader(Augmentation(mixup=0.3), some, batch_size=50)
    batches = [made.batch(epoch, 0) for epoch in range(40)]
    weight = torch.cat([batch.weight for batch in batches]).double()
    assert abs(weight.mean() - 0.5) < 5 * math.sqrt(1 / (4 * 1.6) / 2000)
    assert abs(weight.var() - 1 / (4 * 1.6)) < 0.02
    partners = torch.cat([batch.partners for batch in batches])
    assert len(partners.unique()) == 50
    assert not torch.equal(batches[0].partners, batches[1].partners)


def test_evaluation_is_in_order_and_untouched():
    index = [5, 2, 19, 7, 11]
    made = loader(EVERYTHING, index=index, batch_size=2)
    batches = list(made)
    assert [len(batch.targets) for batch in batches] == [2, 2, 1]
    inputs = torch.cat([batch.inputs for batch in batches])
    expected = (SOME.pixels[index] / 255 - MEAN) / STD
    assert np.abs(inputs.permute(0, 2, 3, 1).numpy() - expected).max() < 2e-6
    assert torch.cat([batch.targets for batch in batches]).tolist() == SOME.labels[index].tolist()
    assert all(batch.partners is None for batch in batches)
    assert all(equal(one, two) for one, two in zip(batches, made, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_channels_last(channels):
    made = loader(EVERYTHING, images(channels=channels))
    for batch in (made.batch(0, 0), next(iter(made))):
        assert batch.inputs.shape == (8, channels, 6, 9)
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
        assert batch.targets.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("plan", [CROP, EVERYTHING])
def test_other_types_are_rounded_from_exact_values(dtype, plan):
    exact, rounded = (loader(plan, dtype=kind).batch(0, 0).inputs for kind in (torch.float32, dtype))
    assert rounded.dtype == dtype
    if dtype == torch.float64:
        assert (rounded - exact).abs().max() < 2e-6
    else:
        assert torch.equal(rounded, exact.to(dtype))


def test_memory_mapped_pixels_are_copied(tmp_path):
    np.save(tmp_path / "pixels.npy", SOME.pixels)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    some = Images(mapped, SOME.labels, SOME.digests)
    assert equal(loader(some=some).batch(0, 0), loader().batch(0, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": np.array([], np.int64)}, "at least one position"),
        ({"index": [0, 20]}, "exceeds the 20 images"),
        ({"index": [-1]}, "exceeds the 20 images"),
        ({"index": [3, 3]}, "repeats a position"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        loader(**options)


def test_normalisation_must_fit():
    for mean, std in (((0.5,), (0.5,)), (MEAN, (0.2, 0.0, 0.2)), (MEAN, (0.2, float("nan"), 0.2))):
        with pytest.raises(InputError, match="do not match 3 channels"):
            Loader(SOME, np.arange(20), batch_size=4, mean=mean, std=std, device="cpu")


def test_a_step_beyond_the_epoch():
    with pytest.raises(IndexError):
        loader().batch(0, 3)


def test_a_device_that_is_too_small(monkeypatch):
    real = torch.empty

    def empty(shape, **options):
        if options.get("dtype") == torch.uint8:
            raise RuntimeError("out of memory")
        return real(shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ResourceError, match=r"20 images need 0\.0 GiB on cpu"):
        loader()
