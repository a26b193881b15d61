"""The examples work as documented."""

import os
import signal
from pathlib import Path

import pytest
import torch

from resode.errors import InputError
from resode.fields import fields
from resode.grids import TimeGrid
from resode.integrators import integrators, solve
from resode.plugins import load_plugins
from resode.training import Narrator
from tests.cli.conftest import resode  # noqa: F401

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin.py"
STAGE = "{width: 4, field: {name: reaction_diffusion, diffusion: 0.05}, integrator: ralston, states: 2}"
SETTINGS = (
    "model.name=dynamic",
    f"model.stages=[{STAGE}]",
    "epochs=2",
    "batch_size=512",
    "precision=fp32",
)


@pytest.fixture
def fresh(monkeypatch):
    """Call it to remove what plug-ins have registered, as in a new process."""
    registries = (fields, integrators)
    before = [dict(registry._entries) for registry in registries]

    def forget():
        for registry, entries in zip(registries, before, strict=True):
            monkeypatch.setattr(registry, "_entries", dict(entries))

    forget()
    return forget


def test_a_plugin_trains_resumes_and_evaluates(resode, fresh, monkeypatch):  # noqa: F811
    def stop(self, epoch, step, loss):
        if (epoch, step) == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)

    words = [word for setting in SETTINGS for word in ("--set", setting)]
    with monkeypatch.context() as patch:
        patch.setattr(Narrator, "stepped", stop)
        answer = resode("train", "quickstart-parabolic", "--plugin", PLUGIN, "--out", "run", *words)
    assert answer.code == 128 + signal.SIGTERM, answer.err
    fresh()
    answer = resode("train", "--resume", "--out", "run")
    assert answer.code == 2
    assert "unknown field 'reaction_diffusion'" in answer.err
    assert f"--plugin {PLUGIN.resolve()}" in answer.err
    answer = resode("train", "--resume", "--out", "run", "--plugin", PLUGIN)
    assert answer.code == 0, answer.err
    assert "resuming at iteration 4" in answer.err
    fresh()
    answer = resode("evaluate", "run")
    assert answer.code == 2
    assert "--plugin FILE" in answer.err
    answer = resode("evaluate", "run", "--plugin", PLUGIN)
    assert answer.code == 0, answer.err
    assert "top-1 error" in answer.out
    fresh()
    text = resode("show", "run/model.safetensors", "--plugin", PLUGIN).out
    assert "ReactionDiffusion: f = d Laplace y + tanh(R y + b)" in text
    assert "Ralston, order 2" in text
    fresh()
    text = resode("list", "fields", "reaction", "--plugin", PLUGIN).out
    assert "spreads and reacts" in text


def test_the_runs_of_a_study_load_the_plugin(resode, fresh, tmp_path):  # noqa: F811
    arm = f"{{recipe: quickstart-parabolic, set: {{model: {{name: dynamic, stages: [{STAGE}]}}}}}}"
    (tmp_path / "mine.yaml").write_text(f"arms: {{spreading: {arm}}}\n")
    answer = resode("study", "mine.yaml", "--dry-run", "--plugin", PLUGIN)
    assert answer.code == 0, answer.err
    assert answer.out.rstrip().endswith(f"--plugin {PLUGIN.resolve()}")


def test_a_plugin_that_fails_is_named_in_one_line(tmp_path):
    (tmp_path / "mine.py").write_text("1 / 0")
    for file, mistake in (("mine.py", "ZeroDivisionError: division by zero"), ("none.py", "no such file")):
        with pytest.raises(InputError, match=f"^plugin {tmp_path / file}: {mistake}$"):
            load_plugins([tmp_path / file])


def test_the_plugins_scheme_has_its_order_and_the_plugins_field_its_equation(fresh):
    load_plugins([PLUGIN])
    ralston = integrators.build("ralston")
    y = torch.ones(1, 1, dtype=torch.float64)
    errors = [
        abs(solve(ralston, TimeGrid.uniform(n, 2.0), lambda t, y: -(y**3) + t, y)[-1].item() - REFERENCE)
        for n in (64, 128)
    ]
    assert torch.tensor(errors[0] / errors[1]).log2() == pytest.approx(ralston.order, abs=0.05)
    layer = fields.build("reaction_diffusion", diffusion=0.3).build(2).double()
    rows, columns = torch.meshgrid(*[torch.arange(5, dtype=torch.float64)] * 2, indexing="ij")
    state = (rows**2 + 3 * columns**2 + rows * columns).expand(1, 2, 5, 5)
    spread = layer(state) - torch.tanh(layer.reaction(state))
    torch.testing.assert_close(spread[:, :, 1:-1, 1:-1], torch.full((1, 2, 3, 3), 0.3 * 8.0).double())


def _reference() -> float:
    """y(2) of y' = -y^3 + t, y(0) = 1, by RK4 with many steps."""
    y = torch.ones(1, 1, dtype=torch.float64)
    rk4 = integrators.build("rk4")
    return solve(rk4, TimeGrid.uniform(2000, 2.0), lambda t, y: -(y**3) + t, y)[-1].item()


REFERENCE = _reference()
