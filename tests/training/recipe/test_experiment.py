"""Configuration is data; every mistake is reported at once with the nearest valid name."""

import re
import typing

import pytest

from resode import recipes
from resode.errors import InputError
from resode.training import Experiment
from resode.training.recipe import reading
from resode.training.recipe.optimizer import AdamW
from resode.training.recipe.schedule import MultiStep
from resode.training.recipe.section import Section


@pytest.mark.parametrize("name", list(recipes.files()))
def test_every_recipe_is_valid_and_describes_itself(name):
    experiment = Experiment.from_recipe(name)
    assert experiment.name == name
    about = experiment.about
    assert about.summary
    assert about.source
    assert about.equation
    assert about.cost
    assert about.expected
    assert about.command.startswith(f"resode train {name}")


def test_a_resolved_experiment_reads_back_to_itself(tmp_path):
    experiment = Experiment.from_recipe("he2016/resnet110", {"optimizer.lr": 1e-5, "data.validation": 0.1})
    path = tmp_path / "recipe.yaml"
    path.write_text(experiment.to_yaml())
    assert Experiment.from_recipe(path) == experiment


def test_the_papers_recipe_is_64000_iterations():
    experiment = Experiment.from_recipe("he2016/resnet20")
    steps = -(-(50_000 - experiment.data.validation) // experiment.batch_size)
    assert abs(steps * experiment.epochs - 64_000) < steps
    assert isinstance(experiment.schedule, MultiStep)
    assert [round(m * steps * experiment.epochs) for m in experiment.schedule.milestones] == [32_032, 48_048]


@pytest.mark.parametrize(
    ("name", "epochs", "held_out", "drops"),
    [
        ("akamaster/resnet20", 200, 0, [100, 150]),
        ("akamaster/resnet110", 200, 0, [100, 150]),
        ("fattorib/resnet20", 180, 2500, [90, 135]),
        ("fattorib/resnet32", 180, 2500, [90, 135]),
        ("fattorib/resnet44", 200, 2500, [90, 135, 180]),
        ("fattorib/resnet56", 200, 2500, [90, 135, 180]),
    ],
)
def test_recipes_of_public_checkpoints_drop_the_rate_where_their_source_does(name, epochs, held_out, drops):
    experiment = Experiment.from_recipe(name)
    assert isinstance(experiment.schedule, MultiStep)
    assert (experiment.epochs, experiment.data.validation) == (epochs, held_out)
    assert [round(m * experiment.epochs) for m in experiment.schedule.milestones] == drops
    assert experiment.model.options.get("stride") == ("last" if name.startswith("fattorib") else None)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(InputError) as error:
        Experiment.from_recipe(
            "quickstart",
            ["optimizer.lrr=1", "epoch=4", "schedule.name=cosin", "precision=fp8", "augment.crop=-1"],
        )
    text = "\n".join(error.value.messages)
    assert len(error.value.messages) == 5
    for part in (
        "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?",
        "unknown key 'epoch'; did you mean 'epochs'?",
        "'schedule' cannot be 'cosin'; did you mean 'cosine'?",
        "'precision' cannot be 'fp8'; did you mean 'fp32'?",
        "'augment.crop'",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.name=he_resnt20", "did you mean 'he_resnet20'"),
        ("model.width=3", "has no option 'width'"),
        ("epochs", "expected key=value"),
        ("epochs=", "'epochs'"),
        ("epochs=[", "not valid YAML"),
        ("data.validation=-1", "'data.validation'"),
        ("data.validation=1.5", "'data.validation'"),
        ("schedule.peak=2", "'schedule.peak'"),
        ("optimizer=3", "'optimizer'"),
        ("schedule.warmup.epochs=1", "'schedule.warmup'"),
        ("optimizer.lr=nan", "'optimizer.lr'"),
        ("optimizer={name: adamw, betas: [0.9, 1.0]}", "'optimizer.betas.1'"),
    ],
)
def test_a_mistake_is_named(setting, message):
    with pytest.raises(InputError) as error:
        Experiment.from_recipe("quickstart", [setting])
    assert message in "\n".join(error.value.messages)


def test_an_older_spelling_is_refused_in_one_line_that_names_the_key():
    with pytest.raises(InputError) as error:
        Experiment.from_recipe("quickstart", {"init.path": "net.safetensors", "init.optimiser": True})
    (line,) = error.value.messages
    assert "unknown key 'init.optimiser'; did you mean 'init.optimizer'?" in line


def sections(annotation):
    """The sections that a type admits, and all within them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for argument in typing.get_args(annotation):
        yield from sections(argument)


def test_every_key_is_described_by_one_sentence():
    for section in {Experiment, *sections(Experiment)}:
        assert section.__doc__
        for key, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{key}"
            assert re.fullmatch(r"[^\n]+\.", field.description), field.description


@pytest.mark.parametrize("setting", ["data.source=cifar100", "model.shortcut=B"])
def test_a_published_figure_is_not_shown_beside_another_task(setting):
    assert Experiment.from_recipe("he2016/resnet20", ["epochs=3"]).about.published is not None
    assert Experiment.from_recipe("he2016/resnet20", [setting]).about.published is None


def test_another_variant_starts_from_its_own_defaults_whatever_the_order():
    experiment = Experiment.from_recipe("quickstart", ["optimizer.weight_decay=0.1", "optimizer.name=adamw"])
    assert experiment.optimizer == AdamW(weight_decay=0.1)


def test_a_base_recipe_lies_underneath(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: he2016/resnet20\nepochs: 3\noptimizer: {lr: 1e-2}\n")
    experiment = Experiment.from_recipe(path)
    base = Experiment.from_recipe("he2016/resnet20")
    assert experiment.epochs == 3
    assert experiment.optimizer == base.optimizer.model_copy(update={"lr": 0.01})
    assert experiment.schedule == base.schedule
    assert experiment.name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3\nseed: 1\nepochs: 4", "line 3 is not valid YAML: the key 'epochs' is given twice"),
        ("[1]: 2", "unhashable"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("- 1", "a recipe is a mapping"),
        ("a: [", "line 1 is not valid YAML"),
        ("base: mine.yaml", "back to itself"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_broken_recipe_file_is_named(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        Experiment.from_recipe("mine.yaml")


def test_a_file_that_is_no_recipe_has_a_few_lines_of_mistakes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("".join(f"key{n}: {n}\n" for n in range(3000)))
    with pytest.raises(InputError) as error:
        Experiment.from_recipe(path)
    assert len(error.value.messages) < 30
    assert error.value.messages[-1].endswith("more mistakes")


def test_a_key_of_another_optimizer_is_not_suggested_as_itself():
    with pytest.raises(InputError, match=r"unknown key 'optimizer\.momentum'") as error:
        Experiment.from_recipe("he2016/resnet20", {"optimizer": {"name": "adamw", "momentum": 0.9}})
    assert "did you mean 'optimizer.momentum'" not in str(error.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'he2016/resnet20'"):
        Experiment.from_recipe("he2016/resnt20")


def test_keys_are_texts_where_yaml_reads_a_truth_value():
    """The arms of a study may be called yes and no; values stay what YAML says."""
    assert reading.parse_yaml("arms: {yes: 1, no: 2, off: no}", "s.yaml") == {
        "arms": {"yes": 1, "no": 2, "off": False}
    }


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"stages": [{"width": 8, "field": Section}]}, r"stages\.0\.field: the field Section has no name"),
        ({"stages": [{"width": 8, "integrator": Section}]}, r"put @integrators\.register\('NAME'\) on its"),
        ({"stages": ({"width": 8, "states": range(3)},)}, "states: a value of type range is no plain data"),
        ({"stem": len}, "stem: len is no plain data; give names, numbers"),
    ],
)
def test_what_a_file_cannot_hold_needs_a_name(options, line):
    with pytest.raises(InputError, match=line) as error:
        Experiment.from_recipe("quickstart", {"model": {"name": "dynamic", **options}})
    assert len(error.value.messages) == 1
