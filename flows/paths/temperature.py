"""Continuous cooling."""

from flows.errors import FlowInputError
from flows.paths.base import Path


class Temperature(Path):
    """Cool from `start` to `end`, linearly in 1/T; with start = end, stay there.

        1/T = (1 - s)/T_start + s/T_end,   s = progress, by steps or by time

    Hot densities have low barriers: a flow that starts hot finds the modes, and keeps them while
    the target cools.

    Args:
        end: Last temperature, kelvin.
        start: First temperature, kelvin; `end` if not given.
    """

    def __init__(self, end: float, start: float | None = None) -> None:
        super().__init__(end)
        self.start = end if start is None else start
        if not self.start > 0:
            raise FlowInputError(f"Expected temperature start > 0 kelvin, got {start}.")

    @property
    def temperature(self) -> float:
        """Temperature of the current density, kelvin."""
        return 1.0 / ((1.0 - self.progress) / self.start + self.progress / self.end)
