"""Stages: values from objects and plain data, and what they refuse."""

import json

import pytest

from resode.errors import InputError
from resode.fields import Parabolic, fields
from resode.gradients import Checkpointed
from resode.grids import TimeGrid
from resode.integrators import RK4, Momentum
from resode.stages import Stage
from tests.integrators.problems import with_defaults


def test_names_mappings_and_objects_say_the_same():
    by_name = Stage(8, "parabolic", "rk4", 4)
    assert by_name == Stage(8, {"name": "parabolic"}, {"name": "rk4"}, [0, 1, 2, 3, 4], gradient="stored")
    assert by_name == Stage(8, Parabolic(), RK4(), TimeGrid.uniform(4))
    assert hash(by_name) == hash(Stage(8, "parabolic", "rk4", {"steps": 4}))
    assert by_name != Stage(8, "parabolic", "heun", 4)


@pytest.mark.parametrize("name", with_defaults())
@pytest.mark.parametrize("field", fields.names())
def test_plain_data_give_the_same_stage(name, field):
    stage = Stage(4, field, name, {"steps": 6, "end": 3.0}, interpolation="shared")
    assert Stage(**json.loads(json.dumps(stage.to_data()))) == stage


def test_plain_data_hold_every_option():
    stage = Stage(
        6,
        Parabolic(norm={"name": "tv", "eps": 1e-4}, activation="tanh"),
        Momentum(0.5),
        [0, 0.5, 2],
        [0, 1, 3, 4],
        interpolation="constant",
        gradient=Checkpointed(2),
        keep_unused=True,
    )
    assert Stage(**json.loads(json.dumps(stage.to_data()))) == stage


GOOD = {"width": 4, "field": "parabolic", "integrator": "euler", "states": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width 0: a positive integer"),
        ({"width": "16"}, "width '16': a positive integer"),
        ({"width": True}, "width True: a positive integer"),
        ({"width": 4.0}, "width 4.0: a positive integer"),
        ({"width": 5, "integrator": "stormer_verlet"}, "StormerVerlet splits the state in 2: the width 5"),
        ({"states": [0, 1, 1]}, "a time grid has to increase: 1 is followed by 1"),
        ({"states": [0]}, "needs at least two nodes"),
        ({"controls": [1, 0]}, "a time grid has to increase"),
        ({"states": [0, 1, 3], "integrator": "two_step_midpoint"}, "TwoStepMidpoint needs equal steps"),
        ({"field": "parabolik"}, "unknown field 'parabolik'; did you mean 'parabolic'"),
        ({"field": {"name": "parabolic", "nrom": "tv"}}, "no option 'nrom'; did you mean 'norm'"),
        ({"field": {"norm": "tv"}}, "a field needs a name"),
        ({"field": {"name": "parabolic", 3: 1}}, "no option '3'"),
        ({"field": None}, "field .*: expected a name"),
        ({"field": Parabolic}, r"field Parabolic: a class where its value is needed; write Parabolic\(\)"),
        ({"integrator": "rk5"}, "unknown integrator 'rk5'; did you mean 'rk4'"),
        ({"integrator": RK4}, r"integrator RK4: a class where its value is needed; write RK4\(\)"),
        ({"integrator": 4}, "integrator .*: expected a name"),
        ({"integrator": "runge_kutta"}, "runge_kutta needs the option 'a'"),
        ({"interpolation": "linaer"}, "unknown interpolation 'linaer'; did you mean 'linear'"),
        ({"interpolation": None}, "unknown interpolation 'None'"),
        ({"gradient": "reversibel"}, "unknown gradient 'reversibel'; did you mean 'reversible'"),
        ({"gradient": None}, "gradient .*: expected a name"),
        ({"gradient": "reversible"}, "Euler has no inverse"),
        ({"gradient": "adjoint", "integrator": "leapfrog"}, "is no Runge-Kutta scheme"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        Stage(**{**GOOD, **change})
    assert all("\n" not in message for message in caught.value.messages)


def test_all_mistakes_of_a_stage_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        Stage("4", "parabolik", "rk5", [0, 0], [1, 0], "linaer", "storedd")
    assert len(caught.value.messages) == 7
