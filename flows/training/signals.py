"""Ending a run between two steps rather than inside one: on a signal, or when its time is up."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flows import parallel
from flows.errors import TrainingError


class InterruptedRunError(TrainingError):
    """Training was asked to stop (Ctrl-C, SIGTERM, time); the message says where it can go on.

    Args:
        message: For the user.
        number: Of the signal; None where time was up.
    """

    def __init__(self, message: str, *, number: int | None = None) -> None:
        super().__init__(message)
        self.number = number


class Stop:
    """Whether a run was asked to stop, which it looks up after each step; in all its processes.

    Args:
        max_time: Seconds from now, by a clock that nobody sets; None for no limit.

    Attributes:
        number: Of the signal that came, if one did.
    """

    def __init__(self, max_time: float | None = None) -> None:
        self.max_time = max_time
        self.number: int | None = None
        self._start = time.monotonic()

    @property
    def asked(self) -> bool:
        """Whether a signal came or time is up, in any of the processes."""
        number, late = parallel.largest(self.number or 0, self._late)
        self.number = self.number or int(number) or None
        return bool(number or late)

    @property
    def _late(self) -> bool:
        return self.max_time is not None and time.monotonic() - self._start >= self.max_time

    def error(self, where: str) -> InterruptedRunError:
        """Return what to raise.

        Args:
            where: Tells the step and the checkpoint.
        """
        if self.number is not None:
            return InterruptedRunError(
                f"Stopped {where}, asked by {signal.Signals(self.number).name}.",
                number=self.number,
            )
        return InterruptedRunError(
            f"Stopped {where}, after trainer.max_time = {self.max_time:g} s."
        )


@contextmanager
def stop_on_signal(max_time: float | None = None) -> Iterator[Stop]:
    """Turn Ctrl-C, SIGTERM and a time limit into something that the loop looks at.

    Another signal acts at once, unless it comes within a second: launchers pass on what a terminal
    has sent to all processes. Outside the main thread, where Python allows no handlers, signals
    are not seen.

    Args:
        max_time: Seconds from now.
    """
    stop = Stop(max_time)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    came = math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if time.monotonic() - came > _REPEATED:
            raise KeyboardInterrupt
        came = min(came, time.monotonic())
        stop.number = stop.number or number

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_REPEATED = 1.0
"""Seconds within which another signal is the same one."""
