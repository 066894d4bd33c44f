"""What the commands need to know of a system, whatever it is made of."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from energies.errors import EnergyInputError
from energies.target import EnergyTarget
from flows.flow import Flow

if TYPE_CHECKING:
    import mdtraj


class Observable(NamedTuple):
    """What a simulation averages.

    Attributes:
        values: Of every replica at every time, any shape.
        exact: The mean at the temperature of the system, where it is known.
    """

    values: Tensor
    exact: float | None = None


class Axis(NamedTuple):
    """What lies along an axis of a figure.

    Attributes:
        label: Symbol and unit.
        bounds: Ends of a period; None of what has none.
    """

    label: str
    bounds: tuple[float, float] | None = None


class Structure(NamedTuple):
    """Atoms and bonds at their places.

    Attributes:
        elements: Element symbol of each atom.
        labels: Residue and name of each atom.
        bonds: Pairs of atoms.
        xyz: Positions, nm, [N, 3].
    """

    elements: list[str]
    labels: list[str]
    bonds: list[tuple[int, int]]
    xyz: NDArray[np.float64]


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

    @property
    @abstractmethod
    def particles(self) -> tuple[str, ...]:
        """What moves, in the order of positions: equal where energies of one fit the other."""

    def observe(self, x: Tensor) -> Tensor:
        """Return what is kept of every sample, [n, K], for x of shape [n, D]."""
        return self.measure(self.target.coordinates.to_xyz(x)[0])

    @abstractmethod
    def measure(self, xyz: Tensor) -> Tensor:
        """Return what `observe` does, [..., K], for positions of shape [..., N, d]."""

    @property
    @abstractmethod
    def meaning(self) -> tuple[str, ...]:
        """What each flow coordinate is: systems that agree here can lend each other points."""

    @property
    @abstractmethod
    def planes(self) -> dict[str, tuple[str, str]]:
        """Pairs of what is observed whose joint density is worth a picture, by name."""

    @abstractmethod
    def axis(self, name: str) -> Axis:
        """Return how one of `observed` is written along an axis."""

    def features(self, x: Tensor) -> Tensor:
        """Return numbers [n, K] whose distance tells one region of x [n, D] from another."""
        return x

    @abstractmethod
    def report(self, observed: dict[str, Tensor], log_w: Tensor) -> dict[str, Any]:
        """Return figures for metrics.json beside those of the weights.

        Args:
            observed: Columns of `observe` by name, each [n].
            log_w: Log weights, [n].
        """

    def held_out(self, flow: Flow, n: int, *, chunk: int) -> dict[str, Any]:
        """Return what points of the density itself, where there are some, say about a flow.

        Args:
            flow: A trained flow.
            n: Number of points.
            chunk: Rows at a time.
        """
        return {}

    @abstractmethod
    def summary(self, report: dict[str, Any]) -> list[str]:
        """Say the main figures of a report in lines."""

    @abstractmethod
    def figures(self, observed: dict[str, Tensor], log_w: Tensor) -> dict[str, Figure]:
        """Return pictures of the samples by file name; arguments as in `report`."""

    @abstractmethod
    def write_frames(
        self, folder: Path, x: Tensor, generator: torch.Generator, *, file_format: str = "xtc"
    ) -> None:
        """Write samples for other programs to open, if there are such.

        Args:
            folder: Receives them.
            x: Flow coordinates, [n, D].
            generator: Source of randomness.
            file_format: One of `runs.trajectory.FORMATS`.
        """

    def trajectories(self, x: Tensor, generator: torch.Generator) -> "Iterator[mdtraj.Trajectory]":
        """Yield samples as mdtraj's trajectories, in pieces of bounded size.

        Args:
            x: Flow coordinates, [n, D].
            generator: Source of randomness.

        Raises:
            EnergyInputError: The system has no atoms.
        """
        raise EnergyInputError(
            f"Expected a molecule for observables of its frames, got {self.name}."
        )

    @abstractmethod
    def write_structures(self, path: Path, x: Tensor, generator: torch.Generator) -> bool:
        """Write a few samples, [n, D], as one PDB file; False of a system that has no atoms."""

    def structures(self, x: Tensor) -> list[Structure]:
        """Return samples, [n, D], as atoms and bonds, turned alike; none without atoms."""
        return []

    @abstractmethod
    def masses(self, *, hydrogen_mass: float | None) -> Tensor:
        """Return masses for a simulation, dalton, float64 [N].

        Args:
            hydrogen_mass: What a hydrogen should weigh, dalton; its own mass if None.

        Raises:
            EnergyInputError: The system has no such masses.
        """

    @abstractmethod
    def start(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return positions that replicas start from, broadcastable to [*shape, N, d]."""

    @abstractmethod
    def averages(self, observed: dict[str, Tensor]) -> dict[str, dict[str, Observable]]:
        """Return what a simulation should average: kind -> name -> observable.

        Args:
            observed: Columns of `measure` by name, each [...]; so are the values returned.
        """

    @abstractmethod
    def maps(self, observed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return pairs of angles to be counted on a grid, [..., 2] by name; may be none."""

    @abstractmethod
    def frames(self, xyz: Tensor) -> Tensor:
        """Return positions, [..., N, d], as a reference file keeps them."""


def check_temperature(temperature: float) -> None:
    """Raise EnergyInputError unless T is positive."""
    if not temperature > 0:
        raise EnergyInputError(f"Expected system.temperature > 0 kelvin, got {temperature}.")
