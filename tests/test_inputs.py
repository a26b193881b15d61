"""Images and shapes that a network cannot take are refused where a function of resode receives them."""

import pytest
import torch

import resode
from resode import DynamicNet, Stage, cost
from resode.errors import InputError
from resode.inputs import check_images, check_shape

X = torch.zeros(2, 3, 8, 8)


@pytest.fixture(scope="module")
def net():
    return DynamicNet([Stage(4, "parabolic", "rk4", 2)], classes=3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (5, r"a tensor \(N, C, H, W\) is needed, not int"),
        (X[0], r"a tensor \(N, C, H, W\) is needed, its shape is \(3, 8, 8\)"),
        (X[:0], r"its shape is \(0, 3, 8, 8\)"),
        (X[:, :1], "have 1 channels, the network takes 3"),
        (X.double(), r"are float64, the network computes in float32; images.to\(torch.float32\)"),
        (X.byte(), "are uint8, the network computes in float32; normalise them first"),
        (X.to("meta"), r"are on meta, the network is on cpu; images.to\('cpu'\)"),
    ],
)
def test_images(net, images, message):
    calls = (
        lambda: check_images(net, images, channels=3),
        lambda: net.trajectory(images),
        lambda: resode.regrid(net, states="double", images=images),
    )
    for call in calls:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert len(error.value.messages) == 1


@pytest.mark.parametrize("shape", [32, (32, 32), (3.0, 32, 32), "3x32", (3, 32, 0), None])
def test_a_shape_is_three_positive_integers(net, shape):
    calls = [lambda: check_shape(shape), lambda: cost.estimate(net, shape, batch=1)]
    calls += [lambda: net.explain(shape)] * (shape is not None)
    for call in calls:
        with pytest.raises(InputError, match=r"\(channels, height, width\) is needed, such as \(3, 32, 32\)"):
            call()


def test_what_fits_is_returned(net):
    assert check_images(net, X, channels=3) is X
    assert check_shape(X.shape[1:]) == (3, 8, 8)
    with pytest.raises(InputError, match="has 1 channels, the network takes 3"):
        net.explain((1, 8, 8))
