"""Bonds, angles and torsions in closed form."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from energies.forcefield.geometry import (
    Displacements,
    Frames,
    Term,
    angle,
    dihedral_cos_sin,
    norm,
)
from energies.forcefield.reader import plain, reject_periodic


class HarmonicBond(Term):
    """U = Σ k/2 (r - r₀)²."""

    k: Tensor
    r0: Tensor

    def __init__(self, force: Any, n_atoms: int) -> None:
        super().__init__()
        reject_periodic(force)
        rows = [force.getBondParameters(b) for b in range(force.getNumBonds())]
        self.bonds = Displacements([row[0] for row in rows], [row[1] for row in rows], n_atoms)
        self.parameter_column("r0", [plain(row[2]) for row in rows])
        self.parameter_column("k", [plain(row[3]) for row in rows])

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        return (0.5 * self.k * (norm(self.bonds(frames.xyz)) - self.r0).square()).sum(0)


class HarmonicAngle(Term):
    """U = Σ k/2 (θ - θ₀)²."""

    k: Tensor
    theta0: Tensor

    def __init__(self, force: Any, n_atoms: int) -> None:
        super().__init__()
        reject_periodic(force)
        rows = [force.getAngleParameters(a) for a in range(force.getNumAngles())]
        middle = [row[1] for row in rows]
        self.left = Displacements(middle, [row[0] for row in rows], n_atoms)
        self.right = Displacements(middle, [row[2] for row in rows], n_atoms)
        self.parameter_column("theta0", [plain(row[3]) for row in rows])
        self.parameter_column("k", [plain(row[4]) for row in rows])

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        theta = angle(self.left(frames.xyz), self.right(frames.xyz))
        return (0.5 * self.k * (theta - self.theta0).square()).sum(0)


class FourierTorsion(Term):
    """U = Σ over dihedrals of a₀ + Σₙ aₙ cos nφ + bₙ sin nφ.

    All terms on the same four atoms are one row, and the multiples of φ follow from cos φ and
    sin φ by the angle sum rule: no arc tangent and no trigonometric function is evaluated.

    Args:
        series: For each dihedral (i, j, k, l) its coefficients, n -> (aₙ, bₙ), kJ/mol.
        n_atoms: N.
    """

    constant: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(
        self,
        series: dict[tuple[int, int, int, int], dict[int, tuple[float, float]]],
        n_atoms: int,
    ) -> None:
        super().__init__()
        atoms = list(series)
        places = [[quadruple[place] for quadruple in atoms] for place in range(4)]
        self.first = Displacements(places[0], places[1], n_atoms)
        self.second = Displacements(places[1], places[2], n_atoms)
        self.third = Displacements(places[2], places[3], n_atoms)
        self.order = max((n for row in series.values() for n in row), default=0)
        shape = (self.order + 1, len(atoms), 1)
        cosine, sine = torch.zeros(2, *shape, dtype=torch.float64)
        for m, row in enumerate(series.values()):
            for n, (a, b) in row.items():
                cosine[n, m, 0], sine[n, m, 0] = a, b
        self.register_buffer("constant", cosine[0].sum())
        self.register_buffer("cosine", cosine[1:].clone())
        self.register_buffer("sine", sine[1:].clone())
        # Most torsions are even in φ (phase 0 or π): their sine series is not computed.
        self.odd = [bool(sine[n].any()) for n in range(1, self.order + 1)]

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        xyz = frames.xyz
        c1, s1 = dihedral_cos_sin(self.first(xyz), self.second(xyz), self.third(xyz))
        c, s = c1, s1
        energy = torch.zeros_like(c1)
        for n in range(self.order):
            energy = energy + self.cosine[n] * c
            if self.odd[n]:
                energy = energy + self.sine[n] * s
            c, s = c * c1 - s * s1, s * c1 + c * s1
        return energy.sum(0) + self.constant


def periodic_torsion(force: Any, n_atoms: int) -> FourierTorsion:
    """Translate PeriodicTorsionForce: U = Σ k (1 + cos(nφ - φ₀))."""
    reject_periodic(force)
    series: dict[tuple[int, int, int, int], dict[int, tuple[float, float]]] = defaultdict(dict)
    for t in range(force.getNumTorsions()):
        a, b, c, d, n, phase, barrier = force.getTorsionParameters(t)
        phi0, height = plain(phase), plain(barrier)
        # Backwards is the same dihedral, and one row serves both.
        row = series[(a, b, c, d) if (d, c, b, a) not in series else (d, c, b, a)]
        for order, (even, odd) in (
            (0, (height, 0.0)),
            (n, (height * math.cos(phi0), height * _sine(phi0))),
        ):
            old = row.get(order, (0.0, 0.0))
            row[order] = (old[0] + even, old[1] + odd)
    return FourierTorsion(dict(series), n_atoms)


def _sine(phase: float) -> float:
    """Return sin φ₀, exactly 0 at multiples of π, which files write with few digits."""
    value = math.sin(phase)
    return 0.0 if abs(value) < 1e-12 else value


def rb_torsion(force: Any, n_atoms: int) -> FourierTorsion:
    """Translate RBTorsionForce: U = Σ Σₙ Cₙ cosⁿ(φ - π), n = 0..5."""
    reject_periodic(force)
    series: dict[tuple[int, int, int, int], dict[int, tuple[float, float]]] = defaultdict(dict)
    for t in range(force.getNumTorsions()):
        row = force.getTorsionParameters(t)
        quadruple = (row[0], row[1], row[2], row[3])
        for power in range(6):
            coefficient = (-1) ** power * plain(row[4 + power])
            # cosᵖ φ = 2⁻ᵖ Σ over k of C(p, k) cos((p - 2k) φ)
            for k in range(power + 1):
                n = abs(power - 2 * k)
                a = series[quadruple].get(n, (0.0, 0.0))[0]
                share = coefficient * math.comb(power, k) / 2**power
                series[quadruple][n] = (a + share, 0.0)
    return FourierTorsion(dict(series), n_atoms)
