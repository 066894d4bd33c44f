"""Keeps status.json up to date while a run goes on, and says how it ended."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flows.training.checkpoint import read_reached
from flows.training.loggers import Logger, Row
from runs.cli import ending
from runs.folder import RunFolder, git_revision
from runs.status import NAME, Status, now, read_status, write_status

log = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two writings while a run goes on."""


class StatusFile(Logger):
    """Keeps status.json up to date; what the disk refuses is said in the log and no more.

    Args:
        folder: The run folder.
        config_name: Of the command that runs.
    """

    def __init__(self, folder: RunFolder, config_name: str) -> None:
        before = read_status(folder.path) or Status("queued")
        self._folder, self._config_name, self._written = folder, config_name, 0.0
        self.status = replace(
            before, state="running", started=now(), revision=git_revision(), error=None,
            exit_status=None,
        )  # fmt: skip
        self._write()

    def plan(self, n_steps: int) -> None:
        """Take note of how many steps there will be."""
        self._write(n_steps=n_steps)

    def log(self, row: Row) -> None:
        """Take note of step and time."""
        self.status = replace(self.status, step=row["step"], time_s=row["time_s"])
        if time.monotonic() - self._written > EVERY:
            self._write()

    def close(self) -> None:
        """Write what was noted last."""
        self._write()

    def end(self, error: BaseException | None) -> None:
        """Write how it ended: with an exception, or done."""
        if (reached := read_reached(self._folder.checkpoint)) is not None:
            step, seconds = reached
            self.status = replace(self.status, step=step, time_s=round(seconds, 3))
        if error is None:
            self._write(state="done", exit_status=0)
        elif (end := ending(error, self._config_name)) is None:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self._write(state="failed", exit_status=1, error=what)
        else:
            self._write(state=end.state, exit_status=end.status, error=end.sentence)

    def _write(self, **changes: Any) -> None:
        self._written = time.monotonic()
        try:
            self.status = write_status(self._folder.path, replace(self.status, **changes))
        except OSError as error:
            log.warning("%s is not up to date: %s", self._folder.path / NAME, error)


@contextmanager
def reporting(folder: RunFolder, config_name: str) -> Iterator[StatusFile]:
    """Say in status.json that a run is going on, and how it ended.

    Args:
        folder: The run folder.
        config_name: Of the command that runs.
    """
    status = StatusFile(folder, config_name)
    try:
        yield status
    except BaseException as error:
        status.end(error)
        raise
    status.end(None)
