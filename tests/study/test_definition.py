"""A study file is arms x grid x seeds, and every mistake in it is reported at once."""

import subprocess
import sys

import pytest

from resode.errors import InputError
from resode.study import read
from resode.training import Experiment

WIDTHS = """
recipe: quickstart
set: {epochs: 2, data.validation: 0.2}
arms:
  plain:
  wide: {set: {model.widths: [32, 64, 128]}}
grid: {optimizer.lr: [0.05, 0.1], batch_size: [32]}
seeds: [0, 3]
"""


@pytest.fixture
def study(tmp_path):
    def written(text):
        (tmp_path / "widths.yaml").write_text(text)
        return read(tmp_path / "widths.yaml")

    return written


def test_every_arm_has_every_combination_and_seed(study):
    plan = study(WIDTHS)
    jobs = plan.jobs()
    assert plan.name == "widths"
    assert [job.arm for job in jobs[:4]] == [
        "plain,lr=0.05,batch_size=32", "plain,lr=0.1,batch_size=32", "wide,lr=0.05,batch_size=32",
        "wide,lr=0.1,batch_size=32",
    ]  # fmt: skip
    assert [job.seed for job in jobs] == [0] * 4 + [3] * 4
    assert len({job.folder for job in jobs}) == 8
    assert str(jobs[4].folder) == "plain,lr=0.05,batch_size=32/seed3"


def test_an_arm_is_named_by_the_shortest_unique_suffix_of_each_path(study):
    text = "recipe: dynamicblocks/rk4\nset: {model.states: {steps: 2}, model.controls: {steps: 2}}\n"
    plan = study(text + "grid: {model.states.steps: [2], model.controls.steps: [1], seed_of.steps: [1]}")
    names = [name for name, *_ in plan._arms()]
    assert names == ["states.steps=2,controls.steps=1,seed_of.steps=1"]


def test_the_arguments_of_a_run_are_its_experiment(study):
    """What `resode train` reads from the command line is what the plan says."""
    from resode.training.recipe.reading import parse_overrides

    job = study(WIDTHS).jobs()[-1]
    recipe, *words = job.arguments
    assert words[::2] == ["--set"] * (len(words) // 2)
    experiment = Experiment.from_recipe(recipe, dict(parse_overrides(words[1::2])))
    assert experiment == Experiment.from_recipe(recipe, job.settings)
    assert (experiment.seed, experiment.batch_size, experiment.optimizer.lr) == (3, 32, 0.1)
    assert experiment.model.options["widths"] == [32, 64, 128]


def test_an_arm_may_name_a_recipe_of_its_own(study):
    jobs = study("recipe: quickstart\narms: {a: {}, b: {recipe: quickstart-twist}}").jobs()
    assert [job.recipe for job in jobs] == ["quickstart", "quickstart-twist"]
    assert [job.arm for job in study("recipe: quickstart").jobs()] == ["quickstart"]


def test_what_chooses_on_held_out_images_sees_no_test_images(study):
    jobs = study(WIDTHS + "choose: validation").jobs()
    assert all(job.settings["evaluation.test"] is False for job in jobs)
    with pytest.raises(InputError, match="has no held-out images"):
        study("recipe: quickstart\nset: {data.validation: 0}\nchoose: validation").jobs()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: {a: {}}", "arm 'a' has no recipe"),
        ("recipe: quickstrat", "did you mean 'quickstart'"),
        ("recipe: quickstart\nset: {optimiser.lr: 1}", "did you mean 'optimizer'"),
        ("recipe: quickstart\nset: {seed: 1}", "list `seeds` instead"),
        ("recipe: quickstart\nseeds: [1, 1]", "seed 1 is listed twice"),
        ("recipe: quickstart\ngrid: {epochs: [1, 1]}", "two arms are called 'epochs=1'"),
        ("recipe: quickstart\narms: {a b: , a_b: }", "two arms would share the folder a_b/seed0"),
        ("recipe: quickstart\nseeds: []", "seeds"),
        ("recipe: quickstart\nchoose: test", "choose"),
        ("recipe: quickstart\nsede: [1]", "sede"),
        ("recipe: [", "is not valid YAML"),
    ],
)
def test_mistakes_are_reported(study, text, message):
    with pytest.raises(InputError, match=message):
        study(text).jobs()


def test_all_mistakes_are_reported_at_once(study):
    with pytest.raises(InputError) as error:
        study("recipe: quickstart\narms: {a: {set: {epochs: none}}, b: {set: {model.width: 3}}}").jobs()
    assert len(error.value.messages) == 2


def test_no_arm_leaves_the_folder_of_the_study(study):
    (job,) = study("recipe: quickstart\narms: {..: }").jobs()
    assert job.folder.parts[0] == "_"


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "widths.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        read(tmp_path / "widths.yaml")


def test_a_dry_run_lists_and_writes_nothing(tmp_path):
    (tmp_path / "widths.yaml").write_text(WIDTHS)
    words = [sys.executable, "-m", "resode", "study", "widths.yaml", "--dry-run"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("to do") == 8
    assert [path.name for path in tmp_path.iterdir()] == ["widths.yaml"]


def test_a_name_that_no_folder_can_have_is_refused(study):
    plan = study(f"recipe: quickstart\narms: {{{'x' * 250}: {{}}}}")
    with pytest.raises(InputError, match="has 250 bytes, too many for a folder's name"):
        plan.jobs()
