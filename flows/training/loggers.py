"""Where the figures of a run go: a file of lines always, other places as mirrors."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from flows.files import replacing
from flows.training.mirrors import Guarded, Mirror, Outcome, Row


class Logger(ABC):
    """Receives one row of figures now and then."""

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take one row; `row["step"]` counts gradient steps over the whole run."""

    @abstractmethod
    def close(self) -> None:
        """Finish writing."""


class Tee(Logger):
    """Passes every row to the record first, then to mirrors.

    Args:
        record: What must be written: its errors end the run.
        mirrors: Start the others, each of which may fail without harm to the run.
    """

    def __init__(self, record: Logger, mirrors: Sequence[Callable[[], Mirror]] = ()) -> None:
        self._record = record
        self._mirrors = [Guarded(start) for start in mirrors]

    def log(self, row: Row) -> None:
        """Pass the row on."""
        self._record.log(row)
        for mirror in self._mirrors:
            mirror.log(row)

    def conclude(self, outcome: Outcome) -> None:
        """Show mirrors what the run has come to; the record has files of its own for that."""
        for mirror in self._mirrors:
            mirror.conclude(outcome)

    def close(self) -> None:
        """Close all of them."""
        try:
            self._record.close()
        finally:
            for mirror in self._mirrors:
                mirror.close()


class JsonLines(Logger):
    """One JSON object a line, flushed at once: what was logged survives whatever comes.

    A run that goes on from a checkpoint repeats the steps after it. Rows of these steps, and a
    line that a killed process left unfinished, make way for the new ones, so that the file reads
    as that of a run which nothing interrupted.

    Args:
        path: The file, gone on with if it exists.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file: TextIO | None = None

    def log(self, row: Row) -> None:
        """Append the row; numbers that JSON does not know become null."""
        if self._file is None:
            _cut(self._path, row["step"])
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps({k: _plain(v) for k, v in row.items()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_rows(path: Path) -> list[Row]:
    """Read the rows that `JsonLines` wrote; a line that was cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _cut(path: Path, step: int) -> None:
    """Leave the rows before `step`, whole, in the file."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = "".join(json.dumps(row) + "\n" for row in read_rows(path) if row["step"] < step)
    if kept != text:
        with replacing(path) as temporary:
            temporary.write_text(kept, encoding="utf-8")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
