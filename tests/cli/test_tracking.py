"""`--track tensorboard`: of a finished run, too; and nothing begins where the package is missing."""

import sys

from tests.cli.conftest import TINY
from tests.training.test_tracking import assert_tracked


def test_a_finished_run_is_written_once(resode, trained):
    for _ in range(2):
        answer = resode("train", "--resume", "--out", "run", "--track", "tensorboard")
        assert answer.code == 0, answer.err
        assert_tracked(trained)


def test_without_the_package_nothing_begins(resode, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    answer = resode("train", "quickstart", "--out", "run", "--track", "tensorboard", *TINY)
    assert answer.code == 2
    assert answer.lines == ["resode: tracking needs tensorboard: pip install 'resode[track]'"]
    assert not (tmp_path / "run").exists()
