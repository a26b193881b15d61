"""What `auto` chooses: the fastest form that is a tenth faster than the plain one, measured once."""

import pytest
import torch

from resode.models import create
from resode.training.setup import form
from resode.training.setup.form import Form, choose, least_seconds, step_seconds

CPU = torch.device("cpu")
LONG = 10**9  # images of a run that is worth any measurement


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path))


@pytest.fixture
def network():
    return create("he_resnet8", widths=(4, 4, 8))


@pytest.fixture
def clock(monkeypatch):
    """Replaces the times of steps by given ones; lists which forms were timed."""
    asked = []

    def given(seconds):
        def timed(module, shape, form, device):
            asked.append(str(form))
            if isinstance(found := seconds[str(form)], Exception):
                raise found
            return found

        monkeypatch.setattr(form, "step_seconds", timed)
        monkeypatch.setattr(form, "probe_seconds", lambda *_: 1.0)
        return asked

    return given


@pytest.fixture
def probes(monkeypatch):
    """Replaces the times of first steps on a few images; lists their shapes and forms."""
    asked = []

    def given(seconds):
        def probed(module, shape, form, device):
            asked.append((shape, str(form)))
            return seconds[str(form)]

        monkeypatch.setattr(form, "probe_seconds", probed)
        return asked

    return given


def chosen(network, images=LONG, precision="auto", compile_="auto", batch=32):
    form = choose(
        network, (3, 32, 32), precision=precision, compile_=compile_, batch=batch, images=images, device=CPU
    )
    return str(form), form.reason


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({"fp32": 1, "bf16": 0.95, "fp32, compiled": 0.95}, "fp32"),
        ({"fp32": 1, "bf16": 2, "fp32, compiled": 0.8}, "fp32, compiled"),
        ({"fp32": 1, "bf16": 0.5, "bf16, compiled": 0.48}, "bf16"),
        ({"fp32": 1, "bf16": 0.5, "bf16, compiled": 0.4}, "bf16, compiled"),
        ({"fp32": 1, "bf16": 2, "fp32, compiled": RuntimeError("no compiler\nat all")}, "fp32"),
    ],
)
def test_another_form_is_chosen_where_it_is_a_tenth_faster(network, clock, seconds, best):
    asked = clock(seconds)
    form, reason = chosen(network)
    assert form == best
    assert asked == list(seconds)
    if isinstance(list(seconds.values())[-1], Exception):
        assert reason == "compilation fails: no compiler"
    else:
        assert all(f"{1000 * value:.0f} ms in {name}" in reason for name, value in seconds.items())


def test_a_form_that_is_far_slower_for_a_few_images_is_timed_no_further(network, clock, probes):
    asked = clock({})
    probed = probes({"fp32": 0.1, "bf16": 0.3})
    best, reason = chosen(network, compile_=False)
    assert (best, asked) == ("fp32", [])
    assert [form for _, form in probed] == ["fp32", "bf16"]
    assert reason == f"a step of {probed[0][0][0]} images takes 3.0 times as long in bf16 as in fp32"


def test_compilation_is_timed_apart_against_the_plain_form(network, clock, probes):
    asked = clock({"fp32": 1, "fp32, compiled": 0.5})
    probes({"fp32": 0.1, "bf16": 0.3})
    best, reason = chosen(network)
    assert best == "fp32, compiled"
    assert asked == ["fp32", "fp32, compiled"]
    assert "3.0 times" in reason
    assert "500 ms in fp32, compiled" in reason


def test_both_compiled_forms_are_compared_eagerly_first(network, clock, probes):
    asked = clock({"bf16, compiled": 1, "fp32, compiled": 1.5})
    probed = probes({"fp32": 0.1, "bf16": 0.1})
    assert chosen(network, compile_=True)[0] == "bf16, compiled"
    assert asked == ["fp32, compiled", "bf16, compiled"]
    assert [form for _, form in probed] == ["fp32", "bf16"]
    probes({"fp32": 0.1, "bf16": 0.2})
    assert chosen(network, compile_=True, batch=30)[0] == "fp32, compiled"
    assert len(asked) == 2


@pytest.mark.parametrize(("step", "calls"), [(0.01, 3), (0.4, 3), (0.6, 2), (6, 1)])
def test_a_slow_step_is_probed_once(step, calls):
    now, called = [0.0], []

    def slow():
        called.append(now[0])
        now[0] += step

    assert least_seconds(slow, lambda: now[0]) == pytest.approx(step)
    assert len(called) == calls


def test_the_first_step_of_a_fast_form_does_not_count():
    now, steps = [0.0], iter([0.3, 0.1, 0.2])

    def warming_up():
        now[0] += next(steps)

    assert least_seconds(warming_up, lambda: now[0]) == pytest.approx(0.1)


def test_explicit_settings_are_not_measured(network, clock):
    asked = clock({})
    assert chosen(network, precision="bf16", compile_=True)[0] == "bf16, compiled"
    assert chosen(network, precision="fp32", compile_=False)[0] == "fp32"
    assert not asked


def test_a_short_run_measures_nothing_and_a_longer_one_compiles_nothing(network, clock):
    asked = clock({"fp32": 1, "bf16": 2})
    assert chosen(network, images=1000) == ("fp32", "")
    assert not asked
    assert chosen(network, images=10**6)[0] == "fp32"
    assert asked == ["fp32", "bf16"]


def test_a_network_that_cannot_be_counted_is_measured_eagerly(clock):
    class Asking(torch.nn.Flatten):
        def forward(self, x):
            return super().forward(x) * x.sum().item()

    asked = clock({"fp32": 1, "bf16": 2})
    assert chosen(Asking())[0] == "fp32"
    assert asked == ["fp32", "bf16"]


def test_it_is_measured_once_for_each_network_and_machine(network, clock, monkeypatch):
    asked = clock({"fp32": 1, "bf16": 0.5, "bf16, compiled": 0.4})
    first = chosen(network, batch=31)
    assert len(asked) == 3
    assert chosen(network, batch=31) == first
    assert len(asked) == 3
    chosen(create("he_resnet8", widths=(4, 8, 8)), batch=31)
    assert len(asked) == 6
    here = form.environment(CPU)
    monkeypatch.setattr(form, "environment", lambda device: {**here, "threads": 1000})
    chosen(network, batch=31)
    assert len(asked) == 9


def test_timing_touches_neither_the_network_nor_the_random_numbers(network):
    before = {name: t.clone() for name, t in network.state_dict().items()}
    network.eval()
    state = torch.get_rng_state()
    for chosen in (Form("fp32", compile=False), Form("bf16", compile=False)):
        assert step_seconds(network, (2, 3, 8, 8), chosen, CPU, seconds=0.01) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_a_large_network_is_probed_on_two_small_images_and_timed_on_few(clock, probes, monkeypatch):
    shapes = []

    def timed(module, shape, form, device):
        shapes.append(shape)
        return 1.0

    monkeypatch.setattr(form, "step_seconds", timed)
    probed = probes({"fp32": 1, "bf16": 1})
    with torch.device("meta"):
        large = create("he_resnet1202")
    choose(large, (3, 32, 32), precision="auto", compile_=False, batch=128, images=LONG, device=CPU)
    assert set(shapes) == {(2, 3, 32, 32)}
    assert {shape for shape, _ in probed} == {(2, 3, 16, 16)}
