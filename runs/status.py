"""status.json: how a run stands, in a line that programs and people can read at a glance."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from flows.files import is_locked, write_json
from flows.training.checkpoint import read_reached
from flows.training.loggers import Logger, Row
from runs.cli import ending
from runs.folder import LOCK, RunFolder, git_revision

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "nan"]

NAME = "status.json"
EVERY = 5.0
"""Seconds between two writings while a run goes on."""


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        state: "queued" waits for a process to start it, or to go on after it was asked to stop;
            "running"; "done" is trained and evaluated; "failed" with `error`; "nan" lost its
            finite numbers.
        step: Gradient steps done.
        n_steps: Steps planned, if known.
        time_s: Training time over all sessions, seconds.
        started: When this session began, ISO 8601, UTC.
        updated: When this was written, ISO 8601, UTC.
        revision: Of the code, by git.
        error: Why it is not running nor done, in a sentence.
        exit_status: Of the process that ended.
    """

    state: State
    step: int = 0
    n_steps: int | None = None
    time_s: float = 0.0
    started: str | None = None
    updated: str | None = None
    revision: str | None = None
    error: str | None = None
    exit_status: int | None = None


def write_status(folder: Path, status: Status) -> Status:
    """Write status.json of a run folder whole or not at all; return it with its time."""
    status = replace(status, updated=now())
    write_json(folder / NAME, asdict(status))
    return status


def read_status(folder: Path) -> Status | None:
    """Return how the run of a folder stands; None if it never said.

    A run whose process is gone without a last word, killed or cut off, reads as failed.
    """
    file = folder / NAME
    if not file.is_file():
        return None
    try:
        status = Status(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        return Status("failed", error=f"Expected whole JSON of a run in {file}, got: {error}.")
    if status.state == "running" and not is_locked(folder / LOCK):
        return replace(
            status,
            state="failed",
            error=f"Its process ended without a word after step {status.step}, killed or cut "
            f"off; resume={folder} goes on.",
        )
    return status


def now() -> str:
    """Return the time of day, ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


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
