"""Networks of other libraries, twisted, read, fitted into memory; a twist under DistributedDataParallel."""

import copy

import pytest
import torch
from torch import nn

import resode
from resode import analysis
from resode.models.twisting import twisted_convolutions
from tests import ranks


@pytest.fixture(scope="module")
def hugging_face() -> nn.Module:
    """A small ResNet of transformers, from a config, with statistics of its own."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=10
    )
    network = transformers.ResNetForImageClassification(config)
    network(torch.randn(8, 3, 32, 32))
    return network.eval()


def images(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_a_hugging_face_resnet_is_twisted_and_changes_nothing(hugging_face):
    twisted = resode.twist(hugging_face, form="separate")
    assert len(twisted_convolutions(twisted)) == 6
    assert torch.equal(twisted(images()).logits, hugging_face(images()).logits)
    kept = twisted.state_dict()
    for name, tensor in hugging_face.state_dict().items():
        assert torch.equal(kept.pop(name), tensor)
    assert all(name.endswith(".convolution.twist") for name in kept)


def test_stages_of_a_hugging_face_resnet(hugging_face):
    twisted = resode.twist(hugging_face, 2, tie="free")
    names = [item.name for item in twisted_convolutions(twisted)]
    assert len(names) == 4
    assert all(name.startswith("resnet.encoder.stages.1.") for name in names)


def test_a_twisted_hugging_face_resnet_learns(hugging_face):
    twisted = resode.twist(hugging_face).train()
    optimizer = torch.optim.SGD(twisted.parameters(), 0.1, momentum=0.9)
    x, labels = images(8), torch.arange(8)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(twisted(x).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(item.layer.twist.abs().max() > 0 for item in twisted_convolutions(twisted))


def test_a_hugging_face_resnet_is_read_as_a_pde(hugging_face):
    rows = analysis.pde(hugging_face)
    assert len(rows) == 6
    assert {row.stage for row in rows} == {1, 2}
    assert all(sum(row.shares.values()) == pytest.approx(1) for row in rows)


def test_a_hugging_face_resnet_fits_in_less_memory(hugging_face):
    plain = copy.deepcopy(hugging_face).double().train()
    network = copy.deepcopy(plain)
    stored = resode.fit_memory(network, "1GB", (3, 64, 64), 16)
    fitted = resode.fit_memory(network, stored.predicted_bytes - 10**5, (3, 64, 64), 16)
    assert [stage.name for stage in fitted.gradient.stages] == [
        "resnet.encoder.stages.0.layers",
        "resnet.encoder.stages.1.layers",
    ]
    assert fitted.gradient.recomputed > 0
    x = images(16, 64).double()
    for each in (plain, network):
        nn.functional.cross_entropy(each(x).logits, torch.arange(16) % 10).backward()
    for (name, expected), found in zip(plain.named_parameters(), network.parameters(), strict=True):
        assert (found.grad - expected.grad).abs().max() <= 1e-12 * expected.grad.abs().max(), name
    for (name, expected), found in zip(plain.named_buffers(), network.buffers(), strict=True):
        assert torch.equal(found, expected), name


@pytest.mark.slow
def test_the_resnet50_of_torchvision():
    try:
        from torchvision.models import resnet50
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import here: {error}")
    network = resnet50(weights=None).eval()
    twisted = resode.twist(network, [1, 2, 3], form="separate")
    assert len(twisted_convolutions(twisted)) == 3 + 4 + 6
    x = images(1, 64)
    assert torch.equal(twisted(x), network(x))


# ---------------------------------------------------------------- several processes


@pytest.mark.slow
@pytest.mark.parametrize("form", ["separate", "stacked", "fused"])
def test_gradients_under_ddp_are_those_of_one_process(form):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, stride=2)).double()
    network = resode.twist(plain, form=form)
    for item in twisted_convolutions(network):
        nn.init.normal_(item.layer.twist)
    x = images(4, 8).double()
    alone, together = ranks.gradients(network, x), ranks.gradients(network, x, ranks=2)
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-10, atol=1e-12)
