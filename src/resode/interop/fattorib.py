"""fattorib: He's CIFAR ResNets with shortcut A and the stride in the last unit of a stage.

A bare `state_dict` with `first_layer`, `bn`, `fc` and, in each of `first_block`, `second_block` and
`third_block`, `residual_block.{i}.{0,1,3,4}` and `final_block.{0,1,3,4}`: 0 and 3 are convolutions, 1 and 4
their norms. The second convolution of `final_block` widens and strides in the first two stages. Each stage
also has a `conv_block` and a `bn` that its forward pass never calls. Test errors, counted over images:
ResNet-20 8.53 %, 32 7.84 %, 44 7.21 %, 56 7.56 % (published as means over batches: 8.57 %, 7.82 %, 7.20 %,
7.50 %).
"""

from resode.interop.formats import Format, State, Translation, count, rename

STAGES = {"first": 1, "second": 2, "third": 3}
LAYERS = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2"}
UNUSED = ("conv_block", "bn")


def translate(state: State) -> Translation:
    """`residual_block` holds all units of a stage but the last, which is `final_block`."""
    unused = tuple(name for name in state if name.partition("_block.")[2].startswith(UNUSED))
    last = count(state, r"first_block\.residual_block\.(\d+)\.")
    used = {name: tensor for name, tensor in state.items() if name not in unused}
    return Translation(
        model=f"he_resnet{6 * (last + 1) + 2}",
        tensors=rename(used, _rules(last)),
        options={"stride": "last"},
        unused=unused,
    )


def _rules(last: int) -> dict[str, str]:
    rules = {r"first_layer\.(\w+)": r"conv1.\1", r"bn\.(\w+)": r"bn1.\1", r"(fc\.\w+)": r"\1"}
    for word, stage in STAGES.items():
        for index, layer in LAYERS.items():
            residual, final = (rf"{word}_block\.{name}" for name in (r"residual_block\.(\d+)", "final_block"))
            rules[rf"{residual}\.{index}\.(\w+)"] = rf"layer{stage}.\1.{layer}.\2"
            rules[rf"{final}\.{index}\.(\w+)"] = rf"layer{stage}.{last}.{layer}.\1"
    return rules


FORMAT = Format(
    name="fattorib",
    summary="he_resnet{20,32,44,56}: He's CIFAR ResNets, shortcut A, stride in the last unit",
    translate=translate,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
