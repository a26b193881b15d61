"""akamaster: He's CIFAR ResNets with shortcut A, as in the paper.

`{"state_dict": ...}` with `conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear`; only `linear` has
another name here (`fc`). Test errors: ResNet-20 8.27 %, 32 7.37 %, 44 6.90 %, 56 6.61 %, 110 6.32 %, 1202
6.18 %, those of the weights in the files: of the last epoch, which is not the best one (`best_prec1`).
"""

from resode.interop.formats import Format, State, Translation, count, rename

RULES = {
    r"(conv1\.\w+|bn1\.\w+|layer[123]\.\d+\.(conv|bn)[12]\.\w+)": r"\1",
    r"linear\.(\w+)": r"fc.\1",
}


def translate(state: State) -> Translation:
    """The tensors are the same; the number of units in the first stage gives the depth."""
    tensors = rename(state, RULES)
    depth = 6 * count(state, r"layer1\.(\d+)\.") + 2
    return Translation(f"he_resnet{depth}", tensors)


FORMAT = Format(
    name="akamaster",
    summary="he_resnet{20,32,44,56,110,1202}: He's CIFAR ResNets, shortcut A",
    translate=translate,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
