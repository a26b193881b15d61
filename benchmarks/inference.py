"""Inference of trained networks, in turns within one process.

    plain            fp32, NCHW, eager, under no_grad
    bf16             autocast on channels-last memory, eager
    compiled         the same, every BatchNorm folded into its convolution, by torch's compiler
    frozen           `resode.inference.Frozen` under bf16, as `resode evaluate --precision bf16
                     --compile on`: a program in bf16 where a processor multiplies it and the network fits
    onnxruntime      ONNX Runtime on the exported graph, fp32 (its CPU provider has no bf16 convolution)
    openvino         OpenVINO on the same graph, fp32
    openvino, bf16   the same with INFERENCE_PRECISION_HINT bf16, where the processor multiplies it

ONNX Runtime and OpenVINO get as many threads as torch and a graph of fixed batch size. A round times each
form for a while on batches that are already there; the figure of a form is the median of its rate over that
of the plain form in the same round. The error of a form is the largest difference of its logits to the plain
ones, over the largest of those; in fp32 it must stay below 1e-4.

    python benchmarks/inference.py [--models he_resnet20,he_resnet56,he_resnet110,cifar_resnet18]
                                   [--batch 128] [--rounds 9] [--seconds 2] [--json]
"""

import argparse
import copy
import importlib
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

import resode
from resode.inference import Frozen
from resode.training.records.environment import environment

LAST = torch.channels_last
MODELS = "he_resnet20,he_resnet56,he_resnet110,cifar_resnet18"
TOLERANCE = 1e-4  # of logits in fp32, which other libraries sum in another order
FP32 = ("onnxruntime", "openvino")

Forward = Callable[[Tensor], Tensor]


def forms(name: str) -> dict[str, Forward]:
    """Images to logits, by name of the form."""
    torch.manual_seed(0)
    network = resode.create(name).eval()
    last, frozen = copy.deepcopy(network), Frozen(copy.deepcopy(network))
    last.to(memory_format=LAST)  # type: ignore[call-overload]  # unknown to torch's types
    folded = torch.compile(copy.deepcopy(last), options={"freezing": True}, dynamic=False)

    def half(module: Forward, layout: torch.memory_format = LAST) -> Forward:
        def forward(x: Tensor) -> Tensor:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                return module(x.contiguous(memory_format=layout))

        return forward

    return {
        "plain": torch.no_grad()(network),
        "bf16": half(last),
        "compiled": half(folded),
        "frozen": half(frozen, torch.contiguous_format),
    }


def library_forms(network: nn.Module, x: Tensor) -> tuple[dict[str, Forward], dict[str, str]]:
    """ONNX Runtime and OpenVINO on the exported network; and the forms that are missing here, with why."""
    made: dict[str, Forward] = {}
    needs = {"onnxruntime": "resode[export]", "openvino": "resode[openvino]"}
    missing = {
        name: f"not installed: pip install '{extra}'"
        for name, extra in needs.items()
        if importlib.util.find_spec(name) is None
    }
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        missing = dict.fromkeys(needs, "the graph needs onnx and onnxscript: pip install 'resode[export]'")
    if len(missing) == len(needs):
        return made, missing
    graph = onnx_graph(network, x)
    if "onnxruntime" not in missing:
        made["onnxruntime"] = onnx_runtime(graph)
    if "openvino" not in missing:
        core = importlib.import_module("openvino").Core()
        made["openvino"] = openvino(core, graph, "f32")
        if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            made["openvino, bf16"] = openvino(core, graph, "bf16")
        else:
            missing["openvino, bf16"] = "this processor does not multiply bf16"
    return made, missing


def onnx_graph(network: nn.Module, x: Tensor) -> bytes:
    """The network as ONNX, for batches of this size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = torch.onnx.export(network, (x,), input_names=["images"], dynamo=True, verbose=False)
    graph: bytes = made.model_proto.SerializeToString()
    return graph


def onnx_runtime(graph: bytes) -> Forward:
    """ONNX Runtime, fp32."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def openvino(core: Any, graph: bytes, precision: str) -> Forward:
    """OpenVINO, in "f32" or "bf16"."""
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = core.compile_model(core.read_model(graph), "CPU", settings)
    used = str(model.get_property("INFERENCE_PRECISION_HINT"))
    if precision not in used and {"f32": "float", "bf16": "bfloat16"}[precision] not in used:
        raise RuntimeError(f"OpenVINO computes in {used}, {precision} was asked for")
    return lambda x: torch.from_numpy(model(x.numpy(), share_inputs=True)[0])


def rate(do: Forward, x: Tensor, seconds: float) -> float:
    """Images a second."""
    begin, images = time.perf_counter(), 0
    while images == 0 or time.perf_counter() - begin < seconds:
        do(x)
        images += len(x)
    return images / (time.perf_counter() - begin)


def measure(name: str, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """The rates of all forms, and their errors.

    Raises:
        RuntimeError: the logits of an fp32 form differ from the plain ones by more than `TOLERANCE`.
    """
    made, x = forms(name), torch.randn(batch, 3, 32, 32)
    torch.manual_seed(0)
    others, missing = library_forms(resode.create(name).eval(), x)
    made |= others
    plain = made["plain"](x)
    errors = {
        form: float((do(x).float() - plain).abs().max() / plain.abs().max()) for form, do in made.items()
    }
    for form in FP32:
        if errors.get(form, 0.0) > TOLERANCE:
            raise RuntimeError(f"{name}: the logits of {form} are off by {errors[form]:.1e} of the largest")
    for do in made.values():
        rate(do, x, 0.0)
        rate(do, x, 0.2)
    rates = [{form: rate(do, x, seconds) for form, do in made.items()} for _ in range(rounds)]
    found: dict[str, Any] = {}
    for form in made:
        ratios = sorted(each[form] / each["plain"] for each in rates)
        found[form] = {
            "images_per_second": round(statistics.median(each[form] for each in rates), 1),
            "ratio": round(statistics.median(ratios), 3),
            "lowest": round(ratios[0], 3),
            "highest": round(ratios[-1], 3),
            "error": float(f"{errors[form]:.1e}"),
        }
    return {"model": name, "batch_size": batch, "forms": found, "missing": missing}


def versions() -> dict[str, str]:
    """Versions of the installed libraries."""
    names = [name for name in FP32 if importlib.util.find_spec(name) is not None]
    return {name: metadata.version(name) for name in names}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How fast trained networks infer.")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [
        measure(name, options.batch, options.rounds, options.seconds) for name in options.models.split(",")
    ]
    if options.json:
        command = (
            f"python benchmarks/inference.py --models {options.models} --batch {options.batch} "
            f"--rounds {options.rounds} --seconds {options.seconds:g} --json"
        )
        print(
            json.dumps(
                {
                    "command": command,
                    "rows": rows,
                    "libraries": versions(),
                    "environment": environment(torch.device("cpu")),
                },
                indent=2,
            )
        )
        return
    for row in rows:
        print(f"{row['model']}, batch {row['batch_size']}")
        for form, found in row["forms"].items():
            spread = f"({found['lowest']:.2f} to {found['highest']:.2f})"
            print(
                f"  {form:<14} {found['images_per_second']:>8,.0f} images/s   {found['ratio']:>6.2f} {spread}"
                f"  error {found['error']:.0e}"
            )
        for form, why in row["missing"].items():
            print(f"  {form:<14} {why}")


if __name__ == "__main__":
    main()
