"""Where the figures of a run go: a file of lines always, other places as mirrors."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]


class Logger(ABC):
    """Receives one row of figures now and then."""

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take one row; `row["step"]` counts gradient steps over the whole run."""

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
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        """Append the row; numbers that JSON does not know become null."""
        self._file.write(json.dumps({k: _plain(v) for k, v in row.items()}) + "\n")
        self._file.flush()

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
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
