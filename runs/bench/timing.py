"""Times of things that take turns: a disturbance of the machine meets all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

Task = Callable[[], object]


class Figure(NamedTuple):
    """A figure over rounds.

    Attributes:
        median: The figure.
        low: First quartile.
        high: Third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Return median and quartiles; of a single value, that value."""
        if len(values) == 1:
            return cls(*3 * (values[0],))
        low, median, high = statistics.quantiles(values, method="inclusive")
        return cls(median, low, high)


def in_turns(
    tasks: Mapping[str, Task], *, rounds: int, device: torch.device, least: float = 0.25
) -> dict[str, list[float]]:
    """Time tasks in turns, each round beginning with another one.

    Before the first round every task runs three times: code is compiled, caches and the states of
    optimizers exist.

    Args:
        tasks: What to time.
        rounds: Turns of each.
        device: Where they run; it is waited for at the ends of a turn, never between calls.
        least: Seconds that a turn lasts at the least.

    Returns:
        Seconds a call of each task, one number a round.
    """
    names = [*tasks]
    calls = {}
    for name, task in tasks.items():
        for _ in range(3):
            seconds = _seconds(task, 1, device)
        calls[name] = max(1, math.ceil(least / seconds))
    found: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(_seconds(tasks[name], calls[name], device))
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> Figure:
    """Return how many times one is the other, compared within each round."""
    return Figure.of([a / b for a, b in zip(over, under, strict=True)])


def _seconds(task: Task, calls: int, device: torch.device) -> float:
    """Return seconds a call."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        task()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
