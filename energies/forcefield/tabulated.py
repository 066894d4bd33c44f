"""Tabulated functions: discrete lookups and tensor-product cubic splines."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from energies.errors import EnergyInputError

Array = NDArray[np.float64]


def spline_matrix(n: int, *, periodic: bool) -> Array:
    """Return the map from values at n equidistant knots to cubics, shape [n_intervals, 4, n].

    On interval k and t in [0, 1] the spline is Σ c[k, p] tᵖ. Its second derivatives M (in units
    of the spacing) solve M[k-1] + 4 M[k] + M[k+1] = 6 (y[k-1] - 2 y[k] + y[k+1]).

    Args:
        n: Number of distinct knots.
        periodic: Whether interval n - 1 joins the last knot to the first (n intervals); else the
            spline is natural, M = 0 at both ends (n - 1 intervals).
    """
    eye = np.eye(n)
    if periodic:
        after, before = np.roll(eye, 1, axis=1), np.roll(eye, -1, axis=1)
        bend = np.linalg.solve(4 * eye + after + before, 6 * (after - 2 * eye + before))
        start, end = eye, after
        m0, m1 = bend, after @ bend
    else:
        inner = np.zeros((n, n))
        inner[1:-1] = 6 * (eye[:-2] - 2 * eye[1:-1] + eye[2:])
        system = eye.copy()
        system[1:-1] = eye[:-2] + 4 * eye[1:-1] + eye[2:]
        bend = np.linalg.solve(system, inner)
        start, end = eye[:-1], eye[1:]
        m0, m1 = bend[:-1], bend[1:]
    return np.stack([start, end - start - (2 * m0 + m1) / 6, m0 / 2, (m1 - m0) / 6], axis=1)


class Spline(nn.Module):
    """A cubic spline of one to three variables on a regular grid.

    Args:
        values: Knot values, one axis a variable; a leading stack axis holds several functions.
        limits: (min, max) of each variable.
        periodic: Whether all variables are periodic (no repeated last knot in `values`); else
            the function is 0 outside its limits, as OpenMM has it.
    """

    coefficients: Tensor

    def __init__(
        self, values: Array, limits: list[tuple[float, float]], *, periodic: bool
    ) -> None:
        super().__init__()
        self.limits, self.periodic = limits, periodic
        cubics = values
        for axis in range(1, len(limits) + 1):
            matrix = spline_matrix(values.shape[axis], periodic=periodic)
            # The knot axis becomes the interval axis; the powers are appended at the end.
            cubics = np.moveaxis(np.tensordot(matrix, cubics, axes=(2, axis)), (0, 1), (axis, -1))
        self.intervals = list(cubics.shape[1 : len(limits) + 1])
        flat = cubics.reshape(-1, 4 ** len(limits))
        self.register_buffer("coefficients", torch.tensor(flat.T.copy()))

    def forward(self, which: Tensor | int, *variables: Tensor) -> Tensor:
        """Evaluate function number `which` at the variables, which broadcast."""
        cell: Tensor | int = which
        inside: Tensor | None = None
        offsets = []
        for x, (low, high), n in zip(variables, self.limits, self.intervals, strict=True):
            t = (x - low) * (n / (high - low))
            if self.periodic:
                t = t - n * torch.floor(t.detach() / n)
            else:
                valid = (t >= 0) & (t <= n)
                inside = valid if inside is None else inside & valid
            # A NaN has no cell; any valid index will do, the offset stays NaN.
            k = torch.nan_to_num(t.detach()).floor().clamp(0, n - 1).to(torch.int64)
            cell = cell * n + k
            offsets.append(t - k)
        assert isinstance(cell, Tensor)
        value = self._horner(cell, offsets, 0)
        return value if inside is None else torch.where(inside, value, 0.0)

    def _horner(self, cell: Tensor, offsets: list[Tensor], base: int) -> Tensor:
        if not offsets:
            return self.coefficients[base][cell]
        t, rest = offsets[0], offsets[1:]
        stride = 4 ** len(rest)
        value = self._horner(cell, rest, base + 3 * stride)
        for power in (2, 1, 0):
            value = value * t + self._horner(cell, rest, base + power * stride)
        return value


class Continuous(nn.Module):
    """OpenMM's Continuous1D, 2D and 3DFunction."""

    def __init__(
        self, values: Array, limits: list[tuple[float, float]], *, periodic: bool
    ) -> None:
        super().__init__()
        if periodic:  # OpenMM repeats the first knot at the end.
            values = values[tuple(slice(0, -1) for _ in limits)]
        self.spline = Spline(values[None], limits, periodic=periodic)

    def forward(self, *variables: Tensor | float) -> Tensor:
        """Return f(variables)."""
        like = self.spline.coefficients
        value: Tensor = self.spline(
            0, *(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in variables)
        )
        return value


class Discrete(nn.Module):
    """OpenMM's Discrete1D, 2D and 3DFunction: values at whole numbers, NaN out of range."""

    values: Tensor

    def __init__(self, values: Array) -> None:
        super().__init__()
        self.shape = values.shape
        self.register_buffer("values", torch.tensor(values.reshape(-1).copy()))

    def forward(self, *variables: Tensor | float) -> Tensor:
        """Return the value at the rounded variables."""
        cell: Tensor | int = 0
        valid: Tensor | None = None
        for x, n in zip(variables, self.shape, strict=True):
            k = torch.as_tensor(x, device=self.values.device).round()
            inside = (k >= 0) & (k < n)
            valid = inside if valid is None else valid & inside
            cell = cell * n + torch.nan_to_num(k).clamp(0, n - 1).to(torch.int64)
        assert valid is not None
        return torch.where(valid, self.values[cell], torch.nan)


def read_tabulated(force: Any) -> dict[str, tuple[int, nn.Module]]:
    """Return a force's tabulated functions: name -> (number of arguments, function)."""
    functions: dict[str, tuple[int, nn.Module]] = {}
    if not hasattr(force, "getNumTabulatedFunctions"):  # CustomBondForce and its like have none.
        return functions
    for k in range(force.getNumTabulatedFunctions()):
        name = force.getTabulatedFunctionName(k)
        functions[name] = _translate(name, force.getTabulatedFunction(k))
    return functions


def _translate(name: str, function: Any) -> tuple[int, nn.Module]:
    kind, parameters = type(function).__name__, function.getFunctionParameters()
    n = {"1D": 1, "2D": 2, "3D": 3}.get(kind[-10:-8], 0)
    if not n or not kind.startswith(("Discrete", "Continuous")):
        raise EnergyInputError(
            f"Expected tabulated functions of one to three variables, got {name} ({kind})."
        )
    if kind.startswith("Discrete"):
        sizes, values = (parameters[:-1], parameters[-1]) if n > 1 else ([], parameters)
        if n == 1:
            values = values[0] if isinstance(values[0], (list, tuple)) else values
            sizes = [len(values)]
        # The first variable runs fastest in OpenMM's tables.
        return n, Discrete(np.array(values, dtype=float).reshape(*sizes, order="F"))
    sizes = parameters[:n] if n > 1 else [len(parameters[0])]
    values, bounds = (
        (parameters[n], parameters[n + 1 :]) if n > 1 else (parameters[0], parameters[1:])
    )
    limits = [(float(bounds[2 * a]), float(bounds[2 * a + 1])) for a in range(n)]
    table = np.array(values, dtype=float).reshape(*sizes, order="F")
    return n, Continuous(table, limits, periodic=bool(function.getPeriodic()))
