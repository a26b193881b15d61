"""Golden tensors of HaberGroup/SemiImplicitDNNs: `python imexnet.py FOLDER`, the original at commit 0cb7f3b.

Runs `IMEXnet` of networks/IMEXnet.py on `network_geometry` of blocks of two steps and widths 4-6, with h = 1
and 8x8 images of three channels, in float64; and trains it as synth.py does, by its three groups of SGD with
lr 1e-3, for three batches of four images. synth.py classifies pixels; here its classifier W is applied to the
mean over the pixels, and the cross-entropy is that of one label an image. The network never leaves training
mode, and the scales and biases of its batch normalisations are no parameters of the optimizer. What NumPy and
torch have renamed since (`asscalar`, `rfft`, `irfft`) is given under the old names.

    state.K.j, state.L.j, state.W   kernels of layer j; an opening layer's L is not used
    images, labels                  of each step; as they enter the network
    logits, pixel_logits            of the first step's images: of the mean, and of each pixel
    losses                          of each step
    gradient.*                      of the first loss; none of an opening layer's L
    after.*                         after the third step, K and L as the next forward pass projects them
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch
from recording import write
from torch import Tensor, nn
from torch.nn import functional as F

COMMIT = "0cb7f3bb108c5c4167164ea9c543fa810e3f3673"
CLASSES, STEPS, BATCH = 5, 3, 4


def old_names() -> None:
    """What the original calls, and what has other names by now."""
    for name in ("torchvision", "torchvision.transforms", "datasets", "datasets.mytransforms"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].transforms = None  # type: ignore[attr-defined]
    for name in ("ToLabel", "Relabel", "OneHot", "Squeeze"):
        setattr(sys.modules["datasets.mytransforms"], name, None)
    np.asscalar = lambda value: value.item()  # type: ignore[attr-defined]
    torch.rfft = lambda x, dims, onesided: torch.view_as_real(torch.fft.fft2(x))  # type: ignore[attr-defined]
    torch.irfft = lambda x, dims, onesided: torch.fft.ifft2(torch.view_as_complex(x)).real  # type: ignore[attr-defined]


def main(folder: Path) -> None:
    """Run the original, and write the file."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    old_names()
    sys.path.insert(0, str(folder))
    from networks.IMEXnet import IMEXnet
    from networks.network_utils import conv1x1, projectTorchTensor
    from utils import network_geometry

    geometry = network_geometry([(3, 4), (3, 6)], features_in=3)
    net = IMEXnet(1, geometry, use_gpu=False)
    K, L = net.init_weights()
    # Kernels of 1e-3 would hide the field behind the state: 300 times as large, and of both signs.
    kernels = [nn.Parameter(projectTorchTensor(300 * (k - k.mean((1, 2, 3), keepdim=True)))) for k in K]
    smoothing = [nn.Parameter(kernel) for kernel in L]
    W = nn.Parameter(torch.rand(CLASSES, 6, 1, 1) - 0.5)
    for index in (0, 3):  # opening layers are not projected
        kernels[index].data += 0.05 * torch.rand_like(kernels[index])
    steps = [j for j in range(6) if j not in (0, 3)]
    images = torch.randn(STEPS, BATCH, 3, 8, 8)
    labels = torch.randint(CLASSES, (STEPS, BATCH))

    def tensors() -> dict[str, Tensor]:
        found = {f"K.{j}": k for j, k in enumerate(kernels)}
        return found | {f"L.{j}": smoothing[j] for j in steps} | {"W": W}

    def projected() -> dict[str, Tensor]:
        made = {name: t.detach().clone() for name, t in tensors().items()}
        return {n: projectTorchTensor(t) if n[2:] in map(str, steps) else t for n, t in made.items()}

    made = {f"state.{name}": t for name, t in projected().items()}
    with torch.no_grad():
        made["pixel_logits"] = conv1x1(net(images[0], kernels, smoothing), W)
    made["logits"] = made["pixel_logits"].mean((2, 3))
    optimizer = torch.optim.SGD(
        [{"params": kernels}, {"params": smoothing}, {"params": W}], lr=1e-3, momentum=0.0
    )
    losses = []
    for x, y in zip(images, labels, strict=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(conv1x1(net(x, kernels, smoothing), W).mean((2, 3)), y)
        loss.backward()
        if not losses:
            made |= {
                f"gradient.{name}": t.grad.clone() for name, t in tensors().items() if t.grad is not None
            }
        optimizer.step()
        losses.append(loss.detach())
    made |= {f"after.{name}": t for name, t in projected().items()}
    made |= {"images": images, "labels": labels, "losses": torch.stack(losses)}
    about = {
        "repository": "HaberGroup/SemiImplicitDNNs", "commit": COMMIT,
        "what": "IMEXnet of widths 4-6, two steps of h = 1 each, three steps of SGD at lr 1e-3",
    }  # fmt: skip
    write("imexnet", made, about)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
