"""What the commands need to know of a system, whatever it is made of."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from energies.errors import EnergyInputError
from energies.target import EnergyTarget


class System(ABC):
    """A density at a temperature, and what is looked at in samples of it.

    A node of the config group `system` holds the arguments of a subclass; `energy` and `device`
    are added to them by `runs.building.build_system`.

    Args:
        name: What it is called in folders and reports.
        temperature: T, kelvin.
        target: The density over flow coordinates, on the device and in the precision of training.

    Attributes:
        observed: Names of what `observe` returns.
        kind: What those are; `<kind>_<name>` is the name of their arrays in samples.npz.

    Raises:
        EnergyInputError: `temperature` is not positive.
    """

    kind: ClassVar[str]
    observed: tuple[str, ...]

    def __init__(self, name: str, temperature: float, target: EnergyTarget) -> None:
        check_temperature(temperature)
        self.name, self.temperature, self.target = name, float(temperature), target

    @property
    @abstractmethod
    def size(self) -> str:
        """How large it is, such as "22 atoms"."""

    @abstractmethod
    def observe(self, x: Tensor) -> Tensor:
        """Return what is kept of every sample, [n, K], for x of shape [n, D]."""

    @abstractmethod
    def report(self, observed: dict[str, Tensor], log_w: Tensor) -> dict[str, Any]:
        """Return figures for metrics.json beside those of the weights.

        Args:
            observed: Columns of `observe` by name, each [n].
            log_w: Log weights, [n].
        """

    @abstractmethod
    def summary(self, report: dict[str, Any]) -> list[str]:
        """Say the main figures of a report in lines."""

    @abstractmethod
    def figures(self, observed: dict[str, Tensor], log_w: Tensor) -> dict[str, Figure]:
        """Return pictures of the samples by file name; arguments as in `report`."""

    @abstractmethod
    def write_frames(self, folder: Path, x: Tensor, generator: torch.Generator) -> None:
        """Write samples for other programs to open, if there are such.

        Args:
            folder: The run folder.
            x: Flow coordinates, [n, D].
            generator: Source of randomness.
        """


def check_temperature(temperature: float) -> None:
    """Raise EnergyInputError unless T is positive."""
    if not temperature > 0:
        raise EnergyInputError(f"Expected system.temperature > 0 kelvin, got {temperature}.")
