"""Lennard-Jones and Coulomb over all pairs."""

import math
from typing import Any

import torch
from torch import Tensor

from energies.forcefield.geometry import Frames, Term
from energies.forcefield.pairs import pair_indices, pair_weights
from energies.forcefield.reader import global_parameters, plain, reject_cutoff

ELEMENTARY_CHARGE = 1.602176634e-19  # C
AVOGADRO = 6.02214076e23  # 1/mol
VACUUM_PERMITTIVITY = 8.8541878128e-12  # F/m, CODATA 2018, as in OpenMM

COULOMB = AVOGADRO * ELEMENTARY_CHARGE**2 / (4 * math.pi * VACUUM_PERMITTIVITY) * 1e6
"""1/(4 π ε₀) in kJ/mol nm / e²."""


class Nonbonded(Term):
    """U = Σ over pairs of 4ε((σ/r)¹² - (σ/r)⁶) + q q'/(4 π ε₀ r), exceptions with their own.

    Excluded pairs have zero coefficients: the loop over all pairs stays regular.
    """

    needs_pairs = True
    c12: Tensor
    c6: Tensor
    qq: Tensor

    def __init__(self, force: Any, n_atoms: int) -> None:
        super().__init__()
        reject_cutoff(force)
        particles, exceptions = _with_offsets(force)
        charge, sigma, epsilon = torch.tensor(particles, dtype=torch.float64).reshape(-1, 3).T
        matrices = torch.stack([
            torch.outer(charge, charge),
            0.5 * (sigma[:, None] + sigma),
            torch.outer(epsilon, epsilon).sqrt(),
        ])  # fmt: skip
        for (i, j), values in exceptions.items():
            matrices[:, i, j] = matrices[:, j, i] = torch.tensor(values, dtype=torch.float64)
        first, second = pair_indices(n_atoms)
        charges, sigma, epsilon = matrices[:, first, second, None]
        weights = pair_weights(n_atoms)[:, :, None]
        self.register_buffer("c12", weights * 4 * epsilon * sigma**12)
        self.register_buffer("c6", weights * 4 * epsilon * sigma**6)
        self.register_buffer("qq", weights * COULOMB * charges)

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        inverse = 1.0 / frames.pairs
        sixth = (inverse * inverse * inverse).square()
        return ((self.c12 * sixth - self.c6) * sixth + self.qq * inverse).sum((0, 1))


def _with_offsets(
    force: Any,
) -> tuple[list[list[float]], dict[tuple[int, int], list[float]]]:
    """Return (charge, σ, ε) by particle and (charge product, σ, ε) by excepted pair i < j.

    Parameter offsets are added at the default values of their global parameters.
    """
    defaults = global_parameters(force)
    particles = [
        [plain(p) for p in force.getParticleParameters(i)] for i in range(force.getNumParticles())
    ]
    for k in range(force.getNumParticleParameterOffsets()):
        name, i, *scales = force.getParticleParameterOffset(k)
        particles[i] = [
            p + defaults[name] * plain(s) for p, s in zip(particles[i], scales, strict=True)
        ]
    rows = []
    for k in range(force.getNumExceptions()):
        i, j, *values = force.getExceptionParameters(k)
        rows.append((min(i, j), max(i, j), [plain(v) for v in values]))
    for k in range(force.getNumExceptionParameterOffsets()):
        name, e, *scales = force.getExceptionParameterOffset(k)
        i, j, values = rows[e]
        rows[e] = (
            i,
            j,
            [v + defaults[name] * plain(s) for v, s in zip(values, scales, strict=True)],
        )
    return particles, {(i, j): values for i, j, values in rows}
