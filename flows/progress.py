"""How far something is: a bar on a terminal, a line now and then in a file."""

import logging
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between two lines."""


class Progress:
    """Counts towards a total, for someone who watches.

    Args:
        total: What is to be reached.
        unit: What is counted.
        name: What is done.
        initial: What was counted before.
        shown: Whether to say anything.
    """

    def __init__(
        self, total: float, *, unit: str, name: str, initial: float = 0, shown: bool = True
    ) -> None:
        self.total, self.unit, self.name, self.n = total, unit, name, initial
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        if shown and terminal:
            self._bar = tqdm(total=total, initial=initial, unit=unit, desc=name, smoothing=0.05)
        self._lines, self._text, self._said = shown and not terminal, "", time.monotonic()

    def reach(self, n: float) -> None:
        """Show that the count is `n`."""
        if self._bar is not None:
            self._bar.update(n - self.n)
        self.n = n
        if self._lines and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            end = f"; {self._text}" if self._text else ""
            log.info("%s: %.0f of %.0f %ss%s", self.name, self.n, self.total, self.unit, end)

    def say(self, text: str) -> None:
        """Show `text` beside the count from here on."""
        self._text = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
