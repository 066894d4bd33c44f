"""status.json: how a run stands, in a line that programs and people can read at a glance."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from flows.files import is_locked, write_json

State = Literal["queued", "running", "done", "failed", "nan"]

NAME, LOCK = "status.json", ".lock"


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
