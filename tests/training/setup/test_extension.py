"""The interface between a network and the loop: what is offered is called, and nothing else is known."""

import dataclasses

import torch

from resode.models import create
from resode.training.loop.step import Trainer
from resode.training.setup.extension import DynamicExtension, ExtensionSettings
from resode.training.setup.preparation import prepare


class Offering:
    """An extension of a network that no library knows; lists its calls."""

    def __init__(self, module):
        self.module, self.calls = module, []

    def reset_counters(self):
        self.calls.append("reset_counters")

    def penalty(self):
        self.calls.append("penalty")
        return 0.5 * sum(p.square().sum() for p in self.module.parameters())

    def project(self):
        self.calls.append("project")
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.clamp_(-1e-3, 1e-3)

    def evaluations(self):
        self.calls.append("evaluations")
        return 7

    def skips_parameters(self):
        return False


def test_a_step_calls_what_a_network_offers(tiny):
    setup = prepare(tiny)
    offering = Offering(setup.module)
    trainer = Trainer(dataclasses.replace(setup, extension=offering))
    plain = Trainer(prepare(tiny))
    before = {name: p.detach().clone() for name, p in setup.module.named_parameters()}
    for each in (trainer, plain):
        each.step()
    assert offering.calls == ["reset_counters", "penalty", "project", "evaluations"]
    assert trainer.position.function_evaluations == 7
    assert max(p.abs().max() for p in trainer.module.parameters()) <= 1e-3
    for (name, p), q in zip(trainer.module.named_parameters(), plain.module.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad + before[name])  # the gradient of the penalty


def test_a_network_without_dynamic_blocks_offers_nothing(tiny):
    setup, module = prepare(tiny), create("digits_resnet8")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    extension = DynamicExtension(module, setup.memory, ExtensionSettings(None, None, ()))
    extension.project()
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert extension.penalty() is None
    assert extension.evaluations() is None
    assert extension.drift(torch.randn(2, 1, 8, 8)) is None
