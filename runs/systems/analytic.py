"""A density in closed form: log Z and means beside their exact values, pictures of a plane."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from energies.analytic import AnalyticEnergy
from energies.base import Energy, R
from energies.errors import EnergyInputError
from energies.target import AnalyticTarget
from flows.evaluation import forward_report
from flows.flow import Flow
from flows.metrics.weights import weighted_mean
from runs.plane_figure import plane_density
from runs.systems.base import Axis, Observable, System

N_REFERENCE = 100_000
"""Exact samples that are drawn to compare with."""

FOUND = 0.1
"""Share of a basin's population from which on it counts as found."""

PERIOD = 0.1
"""Time in which dynamics crosses the spread of a density, ps: as slow as a molecule's torsion."""


class AnalyticSystem(System):
    """A density in closed form at a temperature.

    Args:
        name: What it is called.
        temperature: T, kelvin.
        density: Its energy.
        centre: y where a flow's x = 0 lies.
        scale: How far the density spreads, in the units of y: a flow starts at unit spread.
        plane: The two coordinates of y that are drawn, counted from 0.
        energy: Makes energies of OpenMM Systems; of no use to a density that is its own energy.
        device: Where the density is computed.

    Raises:
        EnergyInputError: The temperature is not positive, the plane names no two coordinates.
    """

    kind = "y"
    target: AnalyticTarget

    def __init__(
        self,
        name: str,
        temperature: float,
        density: AnalyticEnergy,
        *,
        centre: float = 0.0,
        scale: float = 1.0,
        plane: tuple[int, int] = (0, 1),
        energy: Callable[..., Energy] | None = None,
        device: torch.device | None = None,
    ) -> None:
        density = density.to(device, torch.float32)
        target = AnalyticTarget(density, centre=centre, scale=scale, device=device)
        super().__init__(name, temperature, target)
        self.observed = tuple(str(k) for k in range(target.dim))
        first, second = (int(k) for k in plane)
        if not (0 <= first < target.dim and 0 <= second < target.dim and first != second):
            raise EnergyInputError(
                f"Expected system.plane to be two of the coordinates 0 to {target.dim - 1}, "
                f"got {first} and {second}."
            )
        self.plane = (first, second)

    @property
    def density(self) -> AnalyticEnergy:
        """The energy, whose exact results are known."""
        return self.target.energy

    @property
    def size(self) -> str:
        """What it is in place of a molecule."""
        return type(self.density).__name__

    @property
    def particles(self) -> tuple[str, ...]:
        """Names of y."""
        return tuple(f"{self.kind}_{k}" for k in self.observed)

    @property
    def meaning(self) -> tuple[str, ...]:
        """The numbers of the coordinates of y."""
        return self.observed

    @property
    def planes(self) -> dict[str, tuple[str, str]]:
        """The one that the config names."""
        first, second = self.plane
        return {"plane": (str(first), str(second))}

    def axis(self, name: str) -> Axis:
        """Return y with its number; it has no unit."""
        return Axis(f"{self.kind}_{name}")

    def measure(self, xyz: Tensor) -> Tensor:
        """Return y, [..., D]."""
        return xyz.flatten(-2)

    def report(self, observed: dict[str, Tensor], log_w: Tensor) -> dict[str, Any]:
        """Return the exact log Z, and the mean of y raw, reweighted and exact."""
        exact = self.density.moments(self.temperature).mean
        equal = torch.zeros_like(log_w)
        return {
            "log_z_exact": self.density.log_z(self.temperature),
            "basins": self._basins(torch.stack([*observed.values()], dim=-1)),
            "means": {
                name: {
                    "raw": weighted_mean(y, equal)._asdict(),
                    "reweighted": weighted_mean(y, log_w)._asdict(),
                    "exact": float(mean),
                }
                for (name, y), mean in zip(observed.items(), exact, strict=True)
            },
        }

    def _basins(self, y: Tensor) -> dict[str, float]:
        """Count the basins where samples y, [n, D], are at least a tenth as often as exact ones.

        `worst` is the smallest ratio of the two; 1 of a density without basins.
        """
        shape = (self.density.n_atoms, self.density.n_dims)
        raw, exact = (
            self.density.basins(points.unflatten(-1, shape)).double().mean(0).cpu()
            for points in (y, self._exact().flatten(1))
        )
        ratio = raw / exact
        return {
            "found": int((ratio >= FOUND).sum()),
            "of": len(ratio),
            "worst": float(ratio.min()) if len(ratio) else 1.0,
        }

    def _exact(self, n: int = N_REFERENCE) -> Tensor:
        """Return points of the density, the same ones at every call, [n, N, n_dims]."""
        generator = torch.Generator().manual_seed(0)
        return self.density.sample(n, self.temperature, generator=generator)

    def held_out(self, flow: Flow, n: int, *, chunk: int) -> dict[str, Any]:
        """Return EUBO and forward KL on exact points."""
        x = self.target.from_xyz(self._exact(n).to(self.target.periodic.device))
        log_z = self.density.log_z(self.temperature)
        return forward_report(flow, self.target, self.temperature, x, log_z=log_z, chunk=chunk)

    def summary(self, report: dict[str, Any]) -> list[str]:
        """Say the exact log Z and how far the estimate is from it; basins and forward KL."""
        error, basins = report["log_z"] - report["log_z_exact"], report["basins"]
        return [
            f"exact log Z {report['log_z_exact']:.4f}: the estimate is off by {error:.4f}",
            f"forward KL {report['forward_kl']:.4f} ± {report['forward_kl_se']:.4f} nats; "
            f"{basins['found']} of {basins['of']} basins found",
        ]

    def figures(self, observed: dict[str, Tensor], log_w: Tensor) -> dict[str, Figure]:
        """Draw the density in the plane: raw, reweighted, exact."""
        columns = list(self.plane)
        names = [f"{self.kind}_{k}" for k in columns]
        points = torch.stack([observed[str(k)] for k in columns], dim=-1)
        reference = self._exact().flatten(1)[:, columns].cpu()
        return {
            "density": plane_density(
                points, log_w, reference=reference, names=(names[0], names[1])
            )
        }

    def write_frames(
        self, folder: Path, x: Tensor, generator: torch.Generator, *, file_format: str = "xtc"
    ) -> None:
        """Write nothing: samples.npz has all of y."""

    def write_structures(self, path: Path, x: Tensor, generator: torch.Generator) -> bool:
        """Write nothing: there are no atoms."""
        return False

    def masses(self, *, hydrogen_mass: float | None) -> Tensor:
        """Return masses that move y by its spread in `PERIOD`: RT (PERIOD / scale)², dalton."""
        if hydrogen_mass is not None:
            raise EnergyInputError(
                f"Expected hydrogen_mass=null for {self.name}, which has no hydrogens, "
                f"got {hydrogen_mass}."
            )
        mass = R * self.temperature * (PERIOD / self.target.coordinates.scale) ** 2
        return torch.full((self.density.n_atoms,), mass, dtype=torch.float64)

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return a y for each replica, drawn at the spread of the density."""
        size = (*shape, self.target.dim)
        x = torch.randn(size, generator=generator, device=generator.device)
        return self.target.coordinates.to_xyz(x)[0]

    def averages(self, observed: dict[str, Tensor]) -> dict[str, dict[str, Observable]]:
        """Return y and its square, whose means are known."""
        mean, covariance = self.density.moments(self.temperature)
        squares = covariance.diagonal() + mean.square()
        return {
            "means": {
                k: Observable(y, m)
                for (k, y), m in zip(observed.items(), mean.tolist(), strict=True)
            },
            "squares": {
                k: Observable(y.square(), m)
                for (k, y), m in zip(observed.items(), squares.tolist(), strict=True)
            },
        }

    def maps(self, observed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return nothing: y is no angle."""
        return {}

    def frames(self, xyz: Tensor) -> Tensor:
        """Return y as it is."""
        return xyz
