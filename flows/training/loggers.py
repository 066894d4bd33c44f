"""Where the figures of a run go: a file of lines always, other places as mirrors."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]


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
    """Passes every row to several loggers, in order.

    Args:
        loggers: The first is the record, the others are mirrors.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = loggers

    def log(self, row: Row) -> None:
        """Pass the row on."""
        for logger in self._loggers:
            logger.log(row)

    def rewind(self, step: int) -> None:
        """Pass it on."""
        for logger in self._loggers:
            logger.rewind(step)

    def close(self) -> None:
        """Close all of them."""
        for logger in self._loggers:
            logger.close()


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


class Wandb(Logger):
    """Mirror rows to Weights & Biases.

    Args:
        folder: The run folder; its files stay below it.
        config: Shown beside the run.
        project, mode: As in `wandb.init`; mode "offline" needs no account and no network.
        name: Shown as the run's name.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        project: str = "boltzflow",
        mode: Literal["online", "offline", "disabled"] = "offline",
        name: str | None = None,
    ) -> None:
        import wandb  # a mirror is optional, and importing it takes seconds

        self._run = wandb.init(
            project=project, mode=mode, dir=str(folder), name=name or folder.name, config=config
        )

    def log(self, row: Row) -> None:
        """Send the row."""
        self._run.log(
            {k: v for k, v in row.items() if isinstance(v, int | float)}, step=row["step"]
        )

    def close(self) -> None:
        """End the run."""
        self._run.finish()


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
