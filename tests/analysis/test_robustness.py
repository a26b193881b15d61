"""Robustness: attacks computed by hand, exact gradients by every method, and nothing left behind."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import resode
from resode.analysis.robustness import (
    PERTURBATIONS,
    STEPS,
    Preprocessed,
    corruption_errors,
    fgsm,
    mean_error,
    pgd,
    random_subset,
    robustness,
    rotated,
    scaled,
)
from resode.blocks import dynamic_blocks
from resode.data import Images
from resode.data.affine import affine_uint8
from resode.data.corruptions import EXTRA, STANDARD, Corruptions
from resode.errors import InputError
from resode.fields import Preactivation
from resode.integrators import Leapfrog
from resode.models.transitions import Head, Stem
from resode.weights import Preprocessing
from tests.data.conftest import random_pixels

LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


class Linear(nn.Module):
    """Logits W u of images of so many pixels."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, images):
        return images.flatten(1).to(self.weight) @ self.weight.T


def pixels(*values):
    """One image of a row of pixels."""
    return torch.tensor(values, dtype=torch.float64)[None, None, None]


def images_of(count=6, side=6, channels=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, channels, side, side, dtype=dtype, generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def loss(network, images, labels):
    with torch.no_grad():
        return nn.functional.cross_entropy(network.eval()(images), labels, reduction="none")


# ---------------------------------------------------------------- by hand


def test_fgsm_of_a_linear_model_by_hand():
    """z_0 - z_1 = 2 a - 2 b of the pixels a, b, c: of label 0 the loss is log(1 + exp(2 b - 2 a))."""
    network, u = Linear([[2, -1, 0], [0, 1, 0]]), pixels(0.5, 0.25, 0.7)
    v = fgsm(network, u, torch.tensor([0]), 0.1)
    torch.testing.assert_close(v, pixels(0.4, 0.35, 0.7))  # c has no influence
    assert loss(network, u, torch.tensor([0])).item() == pytest.approx(math.log1p(math.exp(-0.5)))
    assert loss(network, v, torch.tensor([0])).item() == pytest.approx(math.log1p(math.exp(-0.1)))
    torch.testing.assert_close(fgsm(network, u, torch.tensor([1]), 0.1), pixels(0.6, 0.15, 0.7))
    torch.testing.assert_close(fgsm(network, pixels(0.05, 0.95, 0), torch.tensor([0]), 0.1), pixels(0, 1, 0))


def test_pgd_of_a_linear_model_by_hand():
    """Steps that are too short stop on the way; then, to the corner and no further."""
    network, u, eps = Linear([[2, -1, 0], [0, 1, 0]]), pixels(0.5, 0.05, 0.7), 0.1
    start = u + eps * (2 * torch.rand(u.shape, dtype=u.dtype, generator=seeded()) - 1)
    start = start.clamp(0, 1)
    one = pgd(network, u, torch.tensor([0]), eps, 1, 0.03, seeded())
    wanted = start + 0.03 * pixels(-1, 1, 0)
    torch.testing.assert_close(one, wanted.clamp(u - eps, u + eps))
    assert 0 < (one - u).abs()[..., :2].max() < eps  # so it was on the way
    many = pgd(network, u, torch.tensor([0]), eps, 10, 0.03, seeded())
    torch.testing.assert_close(many[..., :2], pixels(0.4, 0.15))
    torch.testing.assert_close(many[..., 2], start[..., 2])


def test_pgd_is_never_weaker_than_fgsm_on_a_linear_model():
    weight = torch.randn(2, 3 * 36, generator=seeded(), dtype=torch.float64).tolist()
    network, u = Linear(weight), images_of()
    for eps in (1 / 255, 8 / 255, 0.3):
        by_fgsm = loss(network, fgsm(network, u, LABELS, eps), LABELS)
        by_pgd = loss(network, pgd(network, u, LABELS, eps, STEPS, 2.5 * eps / STEPS, seeded()), LABELS)
        assert (by_fgsm > loss(network, u, LABELS)).all()
        assert (by_pgd >= by_fgsm - 1e-12).all()


class Valley(nn.Module):
    """z_1 - z_0 = (a - 0.6)^2 of images of one pixel a."""

    def forward(self, images):
        z = (images.flatten(1) - 0.6).square()
        return torch.cat([torch.zeros_like(z), z], 1)


def test_pgd_goes_uphill_from_where_it_is():
    """Of label 0 the loss rises away from 0.6: from u = 0.55 down, but from a start beyond 0.6 up."""
    u = torch.full((8, 1, 1, 1), 0.55, dtype=torch.float64)
    start = u + 0.2 * (2 * torch.rand(u.shape, dtype=u.dtype, generator=seeded()) - 1)
    assert 0 < (start > 0.6).sum() < 8
    v = pgd(Valley(), u, torch.zeros(8, dtype=torch.int64), 0.2, STEPS, 0.05, seeded())
    torch.testing.assert_close(v, torch.where(start > 0.6, 0.75, 0.35).double())
    torch.testing.assert_close(fgsm(Valley(), u, torch.zeros(8, dtype=torch.int64), 0.2), u - 0.2)


# ---------------------------------------------------------------- of any network


def convolutional(gradient="stored", integrator=None, norm="batch", activation="tanh", steps=3):
    """A small network of one dynamic block, with generic numbers; smooth, where a sign is compared."""
    field = Preactivation(norm=norm, activation=activation)
    stage = resode.Stage(
        8, field, integrator or Leapfrog(), states=resode.TimeGrid.uniform(steps), gradient=gradient
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem, head = Stem(3, norm=norm, activation="tanh"), Head(norm=norm, activation="tanh")
        network = resode.DynamicNet([stage], stem=stem, head=head, classes=2).double()
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        for name, buffer in network.named_buffers():
            if name.endswith(("mean", "var")):
                buffer += 0.3 * torch.rand_like(buffer)
    return network


def test_attacks_stay_near_and_within_the_colours_and_raise_the_loss():
    network, u, eps = convolutional(), images_of(), 8 / 255
    u[0], u[1, :, 0] = 1.0, 0.0
    steps = (STEPS, 2.5 * eps / STEPS, seeded())
    found = {"fgsm": fgsm(network, u, LABELS, eps), "pgd": pgd(network, u, LABELS, eps, *steps)}
    for v in found.values():
        assert ((v - u).abs() <= eps + 1e-15).all()
        assert v.min() >= 0
        assert v.max() <= 1
        assert (loss(network, v, LABELS) > loss(network, u, LABELS)).all()
        assert v.dtype == u.dtype
        assert not v.requires_grad
    assert loss(network, found["pgd"], LABELS).mean() >= loss(network, found["fgsm"], LABELS).mean()


def test_eps_0_changes_nothing():
    network, u = convolutional(), images_of()
    assert torch.equal(fgsm(network, u, LABELS, 0), u)
    assert torch.equal(pgd(network, u, LABELS, 0, 3, 0.1, seeded()), u)


def test_the_start_is_drawn_from_the_generator_alone_in_the_order_of_the_images():
    network, u = convolutional(), images_of()
    whole = pgd(network, u, LABELS, 0.1, 2, 0.01, seeded())
    one = seeded()
    parts = [pgd(network, u[p], LABELS[p], 0.1, 2, 0.01, one) for p in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(pgd(network, u, LABELS, 0.1, 2, 0.01, seeded(1)), whole)


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "all"])
def test_a_network_is_afterwards_as_before(attack):
    network, u = convolutional().train(), images_of(dtype=torch.float32)
    network.stem.eval()
    network.float()
    modes = [part.training for part in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if attack == "fgsm":
        fgsm(network, u, LABELS, 0.1)
    elif attack == "pgd":
        pgd(network, u, LABELS, 0.1, 2, 0.1, seeded())
    else:
        robustness(network, some_images(side=6, channels=3))
    assert [part.training for part in network.modules()] == modes
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_a_network_is_attacked_in_evaluation_mode():
    network, u = convolutional(), images_of()
    assert torch.equal(fgsm(network.train(), u, LABELS, 0.1), fgsm(network.eval(), u, LABELS, 0.1))


@pytest.mark.parametrize("gradient", ["checkpointed", "reversible"])
def test_an_attack_is_that_of_the_stored_gradient(gradient):
    u, steps = images_of(), (4, 0.01, 0.03)
    networks = [convolutional(kind) for kind in ("stored", gradient)]
    ours, stored = (pgd(n, u, LABELS, steps[2], *steps[:2], seeded()) for n in networks)
    torch.testing.assert_close(ours, stored, rtol=0, atol=1e-14)
    assert not torch.allclose(stored, u, atol=0.02)


def test_a_checkpointed_resnet_is_attacked_as_a_stored_one():
    u = images_of(side=8, channels=1, dtype=torch.float32)
    found = []
    for gradient in ("stored", "checkpointed"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = resode.create("digits_resnet8", gradient=gradient)
        found.append(fgsm(network, u, LABELS, 0.1))
    assert torch.equal(*found)
    assert not torch.equal(found[0], u)


def adaptive(gradient):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"widths": (4, 4, 4), "classes": 2, "rtol": 0.3, "atol": 0.3}
        network = resode.create("neural_ode", gradient=gradient, **options).double()
        for p in network.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return network


@pytest.mark.parametrize("kind", ["euler", "heun", "adaptive"])
def test_an_attack_on_the_adjoint_takes_the_gradient_of_the_steps(kind):
    """The adjoint's own gradient has other signs; a network attacked by it would look stronger."""

    def made(gradient):
        if kind == "adaptive":
            return adaptive(gradient)
        return convolutional(gradient, kind, norm=None)

    u = images_of(side=8).requires_grad_()
    signs = []
    for gradient in ("stored", "adjoint"):
        of_loss = nn.functional.cross_entropy(made(gradient).eval()(u), LABELS)
        signs.append(torch.autograd.grad(of_loss, u)[0].sign())
    assert not torch.equal(*signs)
    network = made("adjoint")
    assert torch.equal(fgsm(network, u.detach(), LABELS, 0.1), fgsm(made("stored"), u.detach(), LABELS, 0.1))
    assert [block.stage.gradient.name for block in dynamic_blocks(network)].count("adjoint") == 1
    with pytest.raises(IndexError):
        fgsm(network, u.detach(), LABELS + 7, 0.1)
    assert [block.stage.gradient.name for block in dynamic_blocks(network)].count("adjoint") == 1


class Closed(nn.Module):
    """Lets no gradient of the image through."""

    def __init__(self):
        super().__init__()
        self.inner = Linear([[1.0] * 108, [0.0] * 108])

    def forward(self, images):
        return self.inner(images.detach())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u: fgsm(Closed(), u, LABELS, 0.1), "which this network lacks"),
        (lambda u: fgsm(Closed().requires_grad_(False), u, LABELS, 0.1), "which this network lacks"),
        (lambda u: fgsm(Closed(), 255 * u, LABELS, 0.1), r"in \[0, 1\]"),
        (lambda u: fgsm(Closed(), u / 0 * 0, LABELS, 0.1), r"in \[0, 1\]"),
        (lambda u: fgsm(Closed(), u[0], LABELS, 0.1), r"images \(3, 6, 6\)"),
        (lambda u: fgsm(Closed(), (255 * u).byte(), LABELS, 0.1), "floating-point"),
        (lambda u: fgsm(Closed(), u, LABELS, -0.1), "eps is -0.1"),
        (lambda u: pgd(Closed(), u, LABELS, 0.1, -1, 0.1, seeded()), "steps is -1"),
        (lambda u: pgd(Closed(), u, LABELS, 0.1, 1, math.inf, seeded()), "step is inf"),
        (lambda u: rotated(u, math.nan), "finite numbers"),
        (lambda u: scaled(u, 0), "above 0"),
        (lambda u: scaled(2 * u, 1), r"in \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(images_of())


# ---------------------------------------------------------------- rotation and scale


def test_rotation_and_scale_are_those_of_affine_uint8():
    levels = torch.from_numpy(random_pixels(4, side=9))
    u = levels.permute(0, 3, 1, 2) / 255
    both = torch.full((4,), math.radians(20), dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    expected = affine_uint8(levels, *both).permute(0, 3, 1, 2)
    assert torch.equal((255 * rotated(u, 20)).round().byte(), expected)
    torch.testing.assert_close(rotated(u, 90), torch.rot90(u, 1, (2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled(u, 1), u, rtol=0, atol=1e-5)
    larger = scaled(u, 3)[:, :, 3:6, 3:6]  # the middle pixel is three wide
    torch.testing.assert_close(larger[:, :, 1, 1], u[:, :, 4, 4], rtol=0, atol=1e-5)
    assert scaled(images_of(), 1.3).dtype == torch.float64


# ---------------------------------------------------------------- the whole


class Brightness(nn.Module):
    """Class 1 where the mean of an image is above a half."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(9.0))

    def forward(self, images):
        z = self.scale * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([torch.zeros_like(z), z], 1)


def grey(levels, side=4):
    """Images of one level each, labelled by whether it is above a half."""
    levels = np.asarray(levels, dtype=np.uint8)
    return Images.of(
        np.tile(levels[:, None, None, None], (1, side, side, 1)), (levels > 127).astype(np.int64)
    )


def some_images(count=6, side=8, channels=1):
    return Images.of(random_pixels(count, side=side, channels=channels), np.arange(count) % 2)


def test_the_errors_of_a_network_by_hand():
    """Of levels 120 ... 135 an attack of k levels takes the 2 k nearest over the border at 127.5."""
    shares = []
    rows = robustness(Brightness(), grey(range(120, 136)), batch_size=5, on_progress=shares.append)
    assert [(row.change, row.amount) for row in rows] == list(PERTURBATIONS)
    for row in rows:
        attacked = row.change in ("fgsm", "pgd")
        assert row.top1_error == (100 * 2 * row.amount / 16 if attacked else 0), row
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) == 4 * len(PERTURBATIONS)


def test_each_error_is_of_its_change():
    images = some_images(200)
    u = torch.from_numpy(images.pixels).permute(0, 3, 1, 2) / 255
    weight = torch.randn(2, 64, generator=seeded(), dtype=torch.float64)
    network = Linear((weight - weight.mean(1, keepdim=True)).tolist())
    rows = {(row.change, row.amount): row.top1_error for row in robustness(network, images)}
    expected = {("rotation", a): rotated(u, a) for a in (-30, -20, -10, 10, 20, 30)}
    expected |= {("scale", s): scaled(u, s) for s in (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)}
    wrong = {key: network(v).argmax(1) != torch.from_numpy(images.labels) for key, v in expected.items()}
    assert {key: rows[key] for key in expected} == {key: float(w.sum()) / 2 for key, w in wrong.items()}
    assert len({rows[key] for key in expected}) > 6


class Waves(nn.Module):
    """z_1 - z_0 = sin(300 a) of images of one pixel a: where PGD ends depends on where it starts."""

    def forward(self, images):
        z = (300 * images.flatten(1)).sin()
        return torch.cat([torch.zeros_like(z), z], 1)


def test_the_random_starts_depend_on_the_seed_and_not_on_the_batches():
    images = some_images(200, side=1)
    rows = robustness(Waves(), images)
    assert robustness(Waves(), images, batch_size=7) == rows
    other = robustness(Waves(), images, seed=1)
    assert {(a.change, a.amount) for a, b in zip(rows, other, strict=True) if a != b} <= {
        ("pgd", levels) for levels in (1, 2, 4, 8)
    }
    assert rows != other


def test_the_clean_error_is_told():
    images = grey([10, 20, 200, 250])
    wrong = Images.of(images.pixels, 1 - images.labels)
    rows = {(row.change, row.amount): row.top1_error for row in robustness(Brightness(), wrong)}
    assert rows["clean", 0] == rows["rotation", 30] == 100


def test_the_choice_of_images_belongs_to_the_content_not_to_the_order():
    images = some_images(40)
    order = np.random.default_rng(0).permutation(40)
    shuffled = Images.of(images.pixels[order], images.labels[order])
    some = random_subset(images, 10)
    assert len(some) == 10
    assert np.array_equal(some.digests, random_subset(shuffled, 10).digests)
    assert np.array_equal(random_subset(images).digests[:10], some.digests)
    assert sorted(random_subset(images, 99).digests) == sorted(images.digests)
    assert not np.array_equal(random_subset(images, 10, seed=1).digests, some.digests)


def test_preprocessing_comes_behind_the_attack():
    """eps is of pixels: behind a normalisation by a small std the same change is many times as large."""
    network = Brightness()
    preprocessing = Preprocessing((0.25,), (0.1,), (4, 4), 1, ("dark", "bright"))
    u = torch.full((1, 1, 4, 4), 0.3)
    of_pixels = Preprocessed(network, preprocessing)
    torch.testing.assert_close(of_pixels(u), network((u - 0.25) / 0.1))
    v = fgsm(of_pixels, u, torch.tensor([0]), 0.01)
    torch.testing.assert_close(v, torch.full_like(u, 0.31))


class Red(nn.Module):
    """The class is a tenth of the level of red."""

    def forward(self, images):
        level = (255 * images[:, 0].mean((1, 2)) / 10).floor()
        return -(level[:, None] - torch.arange(10.0)).abs()


def corruptions_of(*names):
    """Image i is of class i; severity s makes s of the ten images one class too large."""
    levels = np.tile(10 * np.arange(10) + 5, (5, 1))
    for severity in range(5):
        levels[severity, : severity + 1] += 10
    array = np.broadcast_to(levels.astype(np.uint8)[:, :, None, None, None], (5, 10, 32, 32, 3))
    return Corruptions("somewhere", np.arange(10), dict.fromkeys(names, array))


def test_the_errors_of_corruptions_by_hand():
    shares = []
    errors = corruption_errors(Red(), corruptions_of("snow", "fog"), batch_size=4, on_progress=shares.append)
    assert errors == dict.fromkeys(("snow", "fog"), (10, 20, 30, 40, 50))
    assert shares == pytest.approx([n / 10 for n in range(1, 11)])
    few = corruption_errors(Red(), corruptions_of("fog"), number=1)["fog"]
    assert sorted(few) == list(few)  # the same image at each severity
    assert set(few) <= {0, 100}


def test_the_mean_is_of_the_fifteen_standard_corruptions():
    errors = {name: (float(number),) * 5 for number, name in enumerate(STANDARD)}
    assert mean_error(errors) == 7
    assert mean_error(errors | dict.fromkeys(EXTRA, (100.0,) * 5)) == 7
    del errors["fog"]
    assert mean_error(errors) is None
