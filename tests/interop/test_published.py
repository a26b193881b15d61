"""Published checkpoints evaluate to their published error, to the last digit, through a weights file.

`RESODE_DATA` names the folder with the checkpoints and CIFAR-10.
"""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from resode import weights
from resode.interop import convert

pytestmark = pytest.mark.slow


@pytest.fixture
def real(real_data):
    if not (real_data / "checkpoints").is_dir():
        pytest.skip("needs published checkpoints: put them into $RESODE_DATA/checkpoints")
    return real_data


def cifar10(folder):
    """The test images (N, 3, 32, 32) in uint8 and their labels, decoded by other means than ours."""
    files = sorted(folder.glob("test-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    images = [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    assert pixels.shape == (10_000, 3, 32, 32)
    return pixels, torch.tensor([row["label"] for row in rows])


@pytest.mark.parametrize(
    ("format", "file", "wrong"),
    [("akamaster", "akamaster-resnet20.th", 827), ("fattorib", "fattorib-resnet20.pth", 853)],
)
@torch.inference_mode()
def test_the_error_is_the_published_one(tmp_path, real, format, file, wrong):
    conversion = convert(format, real / "checkpoints" / file, model="he_resnet20")
    weights.save(conversion.module, tmp_path / "resnet20.safetensors", conversion.card)
    module = weights.load(tmp_path / "resnet20.safetensors").to(memory_format=torch.channels_last)
    pixels, labels = cifar10(real / "cifar10")
    predicted = [module(module.preprocessing(batch)).argmax(1) for batch in pixels.split(100)]
    assert int((torch.cat(predicted) != labels).sum()) == wrong


def test_fattoribs_unused_parameters_are_97536(real):
    path = real / "checkpoints" / "fattorib-resnet20.pth"
    conversion = convert("fattorib", path, model="he_resnet20")
    assert conversion.unused_parameters == 97_536
    assert all("conv_block" in name or "_block.bn." in name for name in conversion.unused)
