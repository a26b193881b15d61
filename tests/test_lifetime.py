"""No public function keeps the network that it was given."""

import gc
import weakref

import numpy as np
import pytest
import torch

import resode
from resode import cost, memory
from resode.analysis import pde, terms, vector_fields
from resode.analysis.operations import count_operations
from resode.analysis.robustness import fgsm
from resode.inference import Frozen
from resode.models.twisting import explain
from resode.statistics import estimate_statistics

SHAPE = (1, 8, 8)
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 1), np.uint8)
LABELS = np.arange(12) % 3
X = torch.randn(4, 1, 8, 8)


def resnet():
    return resode.create("digits_resnet8", classes=3, widths=(4, 4, 8))


def blocks():
    stages = [resode.Stage(width, "parabolic", "leapfrog", 2, gradient="reversible") for width in (4, 8)]
    return resode.DynamicNet(stages, stem=1, classes=3)


def within_budget(net):
    smallest = resode.fit_memory(net, "1GB", SHAPE, 4)
    net(X).sum().backward()
    return smallest


def trained(net, tmp_path, **options):
    data = (PIXELS, LABELS, PIXELS, LABELS)
    options |= {"epochs": 1, "batch_size": 4, "precision": "fp32", "data.validation": 0, "progress": False}
    return resode.train(net, data=data, out=tmp_path / "run", **options).summary


USES = {
    "forward": lambda net, path: net(X).sum().backward(),
    "memory.profile": lambda net, path: memory.profile(net, SHAPE, 2),
    "cost.multiply_adds": lambda net, path: cost.multiply_adds(net, SHAPE),
    "count_operations": lambda net, path: count_operations(net, SHAPE),
    "set_gradient": lambda net, path: (resode.set_gradient(net, "checkpointed"), net(X).sum().backward()),
    "fit_memory": lambda net, path: within_budget(net),
    "twist": lambda net, path: explain(net, resode.twist(net), SHAPE),
    "estimate_statistics": lambda net, path: estimate_statistics(net, [X]),
    "evaluate": lambda net, path: resode.evaluate(net, (PIXELS, LABELS)).top1_error,
    "predict": lambda net, path: resode.predict(net, PIXELS).classes,
    "train": trained,
    "train within a budget": lambda net, path: trained(net, path, memory_budget="1GB"),
    "pde": lambda net, path: pde(net),
    "terms": lambda net, path: terms(net, SHAPE),
    "vector_fields": lambda net, path: vector_fields(resode.twist(net)),
    "fgsm": lambda net, path: fgsm(
        net.eval(), torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), 0.1
    ),
    "Frozen": lambda net, path: Frozen(net),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("make", [resnet, blocks])
def test_a_network_is_freed_after_its_use(make, use, tmp_path):
    net = make()
    gone = weakref.ref(net)
    use(net, tmp_path)
    del net
    gc.collect()
    assert gone() is None


def test_a_network_of_blocks_is_freed_after_a_regrid():
    net = blocks()
    gone = weakref.ref(net)
    new = resode.regrid(net, states="double", images=X)
    assert new is not net
    del net
    gc.collect()
    assert gone() is None
