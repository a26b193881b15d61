"""Every setting is described in words, and every mistake in it is answered by what to write."""

import re

import pytest

from resode.errors import InputError
from resode.study import read as read_study
from resode.study.definition import Study
from resode.training import Experiment
from resode.training.recipe.commented import commented
from resode.training.recipe.keys import every_key, find

PYDANTIC = re.compile(
    r"input should|valid (integer|number|string|list|dictionary|boolean|tuple)|extra inputs|field required"
    r"|pydantic|unable to|discriminator|\btag\b|type=|function-",
    re.IGNORECASE,
)
WRONG = ("zero", None, [], [1.5], -1, -1.5, float("nan"), float("inf"), {}, {"x": 1}, "", 10**30)


@pytest.mark.parametrize("section", [Experiment, Study])
def test_every_key_has_words_and_a_sentence(section):
    for key in every_key(section):
        assert key.values, key.path
        assert "a value" not in key.values, key.path
        assert re.fullmatch(r"[^\n]+\.", key.description), key.path


def test_words_name_type_bounds_and_alternatives():
    words = {key.path: key.values for key in every_key(Experiment)}
    assert words["epochs"] == "a whole number above 0"
    assert words["optimizer.lr"] == "a number above 0"
    assert words["augment.flip"] == "true, false or alternate"
    assert words["data.validation"] == "a whole number at least 0 or a number at least 0 and below 1"
    assert words["data.std"] == "a list, each a number above 0 or null"
    assert words["optimizer"].startswith("a section whose name is sgd, adamw or muon")
    assert [key.default for key in find(Experiment, "optimizer.lr")] == ["0.1", "0.001", "0.05"]
    assert find(Experiment, "optimizer.nothing") == []


@pytest.mark.parametrize("path", dict.fromkeys(key.path for key in every_key(Experiment)))
def test_no_wrong_value_is_answered_in_pydantics_words(path):
    name = {key.variant for key in find(Experiment, path)} - {""}
    head = path.partition(".")[0]
    variant = [(f"{head}.name", sorted(name)[0])] if name and not path.endswith(".name") else []
    for value in WRONG:
        changed = {**dict(variant), path: value}
        lines = mistakes(lambda changed=changed: Experiment.from_recipe("quickstart", changed))
        assert not [line for line in lines if "\n" in line or PYDANTIC.search(line)], (value, lines)


@pytest.mark.parametrize("key", ["about", "recipe", "set", "arms", "grid", "seeds", "choose", "slurm", "foo"])
def test_no_wrong_value_of_a_study_is_answered_in_pydantics_words(key, tmp_path):
    file = tmp_path / "study.yaml"
    for value in ("3", "[x]", "null", "{x: 1}", "[]", ".nan", "text"):
        file.write_text(
            f"arms: {{a: {{}}}}\n{key}: {value}\n" if key != "arms" else f"arms: {value}\nseeds: [0]"
        )
        lines = mistakes(lambda: read_study(file))
        assert not [line for line in lines if PYDANTIC.search(line)], (value, lines)


def mistakes(read):
    """The lines of the error of a reading; none if it succeeds."""
    try:
        read()
    except InputError as error:
        return list(error.messages)
    return []


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("lr=0.1", "optimizer.lr"),
        ("optimizer.learning_rate=0.1", "optimizer.lr"),
        ("learning_rate=0.1", "optimizer.lr"),
        ("momentum=0.9", "optimizer.momentum"),
        ("optimizer.epochs=3", "epochs"),
        ("batchsize=3", "batch_size"),
        ("flip=true", "augment.flip"),
        ("validation=0.1", "data.validation"),
        ("recipe=quickstart", "base"),
        ("optimizer.lrr=1", "optimizer.lr"),
    ],
)
def test_the_key_that_was_meant_is_named(setting, meant):
    with pytest.raises(InputError) as error:
        Experiment.from_recipe("quickstart", [setting])
    (line,) = error.value.messages
    assert f"did you mean '{meant}'?" in line


@pytest.mark.parametrize(
    "recipe", ["quickstart", "he2016/resnet20", "dynamicblocks/rk4", "fast/resnet20-cpu"]
)
def test_commented_yaml_reads_back_to_the_same_experiment(recipe, tmp_path):
    experiment = Experiment.from_recipe(recipe, {"refine": [{"at": 0.5}]} if "dynamic" in recipe else {})
    text = commented(experiment, ["a fact", "another: with a colon"])
    (tmp_path / "my.yaml").write_text(text)
    assert Experiment.from_recipe(tmp_path / "my.yaml") == experiment
    assert text.startswith("# a fact\n# another: with a colon\n")
    assert re.search(r"^  lr: \S+ +# Learning rate", text, re.MULTILINE)


def test_a_base_is_a_recipe_or_a_file_beside(tmp_path):
    (tmp_path / "base.yaml").write_text("base: quickstart\nepochs: 7\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\noptimizer: {lr: 0.02}\n")
    experiment = Experiment.from_recipe(tmp_path / "mine.yaml")
    expected = Experiment.from_recipe("quickstart", {"epochs": 7, "optimizer.lr": 0.02})
    assert experiment.name == "mine"
    assert experiment.replace(name="quickstart") == expected
    (tmp_path / "lost.yaml").write_text("base: he2016/resnt20\n")
    with pytest.raises(InputError, match=r"lost.yaml: base: .*did you mean 'he2016/resnet20'"):
        Experiment.from_recipe(tmp_path / "lost.yaml")
    (tmp_path / "self.yaml").write_text("base: self.yaml\n")
    with pytest.raises(InputError, match="leads back to itself"):
        Experiment.from_recipe(tmp_path / "self.yaml")
    (tmp_path / "list.yaml").write_text("base: [quickstart]\n")
    with pytest.raises(InputError, match="'base' is the name of a recipe or of a file"):
        Experiment.from_recipe(tmp_path / "list.yaml")


def test_a_base_on_other_data_has_no_published_figure(tmp_path):
    (tmp_path / "other.yaml").write_text("base: he2016/resnet20\ndata: {source: cifar100}\n")
    (tmp_path / "shorter.yaml").write_text("base: he2016/resnet20\nseed: 3\n")
    assert Experiment.from_recipe(tmp_path / "other.yaml").about.published is None
    assert Experiment.from_recipe(tmp_path / "shorter.yaml").about.published is not None
