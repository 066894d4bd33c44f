"""Lennard-Jones and Coulomb over all pairs."""

import math
from typing import Any

from torch import Tensor

from energies.forcefield.geometry import Frames, Term, pair_indices
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
        c12, c6, qq = [], [], []
        for i, j in pair_indices(n_atoms):
            if (i, j) in exceptions:
                charge, sigma, epsilon = exceptions[i, j]
            else:
                charge = particles[i][0] * particles[j][0]
                sigma = 0.5 * (particles[i][1] + particles[j][1])
                epsilon = math.sqrt(particles[i][2] * particles[j][2])
            c6.append(4 * epsilon * sigma**6)
            c12.append(4 * epsilon * sigma**12)
            qq.append(COULOMB * charge)
        self.parameter_column("c12", c12)
        self.parameter_column("c6", c6)
        self.parameter_column("qq", qq)

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        assert frames.r is not None
        inverse = 1.0 / frames.r
        sixth = (inverse * inverse * inverse).square()
        return ((self.c12 * sixth - self.c6) * sixth + self.qq * inverse).sum(0)


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
