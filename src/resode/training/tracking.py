"""Tracking: a run's metrics as events of TensorBoard in `RUN/tensorboard`, a step an epoch (extra `track`).

Tracking is not part of the experiment: it may start at any epoch, or after the run is finished, and always
covers all epochs.
"""

import csv
import importlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resode import atomic
from resode.errors import InputError
from resode.training.loop.callbacks import Callback
from resode.training.records.run import Run
from resode.training.setup.preparation import Setup


class TensorBoard(Callback):
    """Writes each column of metrics.csv by epoch, the test error, and the resolved experiment.

    Args:
        run: the run directory.

    Raises:
        InputError: the package `tensorboard` is missing.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Run(Path(run))
        self.folder = self.run.path / "tensorboard"
        self.writer: Any = None
        self.written: dict[str, set[int]] = {}  # by tag: the steps in event files of earlier processes
        try:
            self.write_to = importlib.import_module("torch.utils.tensorboard").SummaryWriter
            processing = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        except (ImportError, RuntimeError):
            raise InputError("tracking needs tensorboard: pip install 'resode[track]'") from None
        self.read_from = processing.EventAccumulator

    def started(self, setup: Setup, epoch: int) -> None:
        """Open the event file after `epoch` epochs; events of later ones, from a killed run, are purged."""
        self._open(epoch)

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Write the row."""
        self._write(row)
        self.writer.flush()

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Write the error on the test images, if there are any."""
        if self.writer is None:  # the run had been finished before
            self._open(summary["epochs"])
        if summary["test"] and "test_error" not in self.written:
            epochs = summary.get("stopped", {}).get("epoch", summary["epochs"])
            self.writer.add_scalar("test_error", summary["test"]["top1_error"], epochs)

    def close(self) -> None:
        """Flush and close the event file."""
        if self.writer is not None:
            self.writer.close()

    def _open(self, epochs: int) -> None:
        self.written = self._steps()
        with atomic.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.writer = self.write_to(self.folder, purge_step=epochs + 1 if self.written else None)
        if not self.written:
            text = (self.run.path / "experiment.yaml").read_text(encoding="utf-8")
            self.writer.add_text("experiment", textwrap.indent(text, "    "), 0)
        metrics = self.run.path / "metrics.csv"
        rows = csv.DictReader(metrics.read_text(encoding="utf-8").splitlines()) if metrics.is_file() else ()
        for row in rows:
            if int(row["epoch"]) not in self.written.get("train_loss", ()):
                self._write(row)

    def _steps(self) -> dict[str, set[int]]:
        """The steps in the event files, by tag."""
        if not self.folder.is_dir():
            return {}
        events = self.read_from(str(self.folder), {"scalars": 0}, purge_orphaned_data=False).Reload()
        return {tag: {event.step for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}

    def _write(self, row: Mapping[str, Any]) -> None:
        for column, value in row.items():
            if column != "epoch" and value not in (None, ""):  # empty: not measured
                self.writer.add_scalar(column, float(value), int(row["epoch"]))
