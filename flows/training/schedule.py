"""Learning-rate schedules as functions of a stage's progress."""

import math
from abc import ABC, abstractmethod

from flows.errors import FlowInputError


class Schedule(ABC):
    """A factor on the learning rate, as a function of progress s in [0, 1]."""

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return the factor at `progress`."""


class WarmupCosine(Schedule):
    """Rise linearly over the first share `warmup`, then fall to `final` along half a cosine.

    Args:
        warmup: Share of the stage, in [0, 1).
        final: Factor at the end, in [0, 1]; 1 keeps the rate constant.
    """

    def __init__(self, warmup: float = 0.02, final: float = 0.01) -> None:
        if not 0 <= warmup < 1:
            raise FlowInputError(f"Expected warmup in [0, 1), got {warmup}.")
        if not 0 <= final <= 1:
            raise FlowInputError(f"Expected final in [0, 1], got {final}.")
        self.warmup, self.final = warmup, final

    def factor(self, progress: float) -> float:
        """Return the factor at `progress`."""
        if progress < self.warmup:
            # Half a percent at the very first step: zero would waste its energy evaluations.
            return max(progress / self.warmup, 0.005)
        s = (progress - self.warmup) / (1.0 - self.warmup)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * min(s, 1.0)))
