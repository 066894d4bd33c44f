"""Where the figures of a run go: a file of lines always, other places as mirrors."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows.training.mirrors import Guarded, Mirror, Outcome, Row


class Logger(ABC):
    """Receives one row of figures now and then."""

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take one row; `row["step"]` counts gradient steps over the whole run."""

    def rewind(self, step: int) -> None:  # noqa: B027  # what cannot be taken back stays
        """Forget the rows after a step: training goes on from there, and they come again."""

    @abstractmethod
    def close(self) -> None:
        """Finish writing."""


class Tee(Logger):
    """Passes every row to the records first, then to mirrors.

    Args:
        records: What must be written: their errors end the run.
        mirrors: Start the others, each of which may fail without harm to the run.
    """

    def __init__(
        self, records: Sequence[Logger], mirrors: Sequence[Callable[[], Mirror]] = ()
    ) -> None:
        self._mirrors = [Guarded(start) for start in mirrors]
        self._all: list[Logger | Mirror] = [*records, *self._mirrors]

    def log(self, row: Row) -> None:
        """Pass the row on."""
        for logger in self._all:
            logger.log(row)

    def rewind(self, step: int) -> None:
        """Pass it on."""
        for logger in self._all:
            logger.rewind(step)

    def conclude(self, outcome: Outcome) -> None:
        """Show mirrors what the run has come to; records have files of their own for that."""
        for mirror in self._mirrors:
            mirror.conclude(outcome)

    def close(self) -> None:
        """Close all of them, also if one cannot be."""
        with ExitStack() as stack:
            for logger in reversed(self._all):
                stack.callback(logger.close)


class JsonLines(Logger):
    """One JSON object a line, flushed at once: what was logged survives whatever comes.

    Args:
        path: The file, appended to.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        """Append the row; numbers that JSON does not know become null."""
        self._file.write(json.dumps({k: _plain(v) for k, v in row.items()}) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Cut off the rows after `step`, and a line that was cut short."""
        size = 0
        for row, end in _whole_rows(self._path):
            if row["step"] > step:
                break
            size = end
        self._file.truncate(size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """Read the rows that `JsonLines` wrote; a last line that was cut short is left out."""
    return [row for row, _ in _whole_rows(path)]


def _whole_rows(path: Path) -> Iterator[tuple[Row, int]]:
    """Yield rows, and where in the file each ends, up to the first that is not whole."""
    end = 0
    for line in path.read_bytes().splitlines(keepends=True):
        end += len(line)
        try:
            row = json.loads(line)
        except ValueError:  # not JSON, or not even text
            return
        if not (line.endswith(b"\n") and isinstance(row, dict) and "step" in row):
            return
        yield row, end


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
