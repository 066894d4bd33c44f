"""CMAP: a correction on a grid over two dihedrals."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from energies.forcefield.geometry import Displacements, Frames, Term, dihedral
from energies.forcefield.reader import plain, reject_periodic, unsupported
from energies.forcefield.tabulated import Spline


class CMAP(Term):
    """U = Σ f(φ, ψ), f the doubly periodic bicubic spline through a map of energies."""

    def __init__(self, force: Any, n_atoms: int) -> None:
        super().__init__()
        reject_periodic(force)
        maps = [force.getMapParameters(m) for m in range(force.getNumMaps())]
        sizes = sorted({size for size, _ in maps})
        if len(sizes) > 1:
            raise unsupported(force, f"its maps have different sizes, {sizes}")
        size = sizes[0] if sizes else 1  # CHARMM adds the force to molecules without a peptide.
        energies = np.array([[plain(e) for e in m] for _, m in maps]).reshape(-1, size, size)
        turn = (0.0, 2 * math.pi)
        # φ runs fastest in OpenMM's maps; here it is the first axis. Both start at 0.
        self.spline = Spline(energies.transpose(0, 2, 1), [turn, turn], periodic=True)
        rows = [force.getTorsionParameters(t) for t in range(force.getNumTorsions())]
        atoms = [[row[c] for row in rows] for c in range(1, 9)]
        self.steps = torch.nn.ModuleList(
            Displacements(atoms[c], atoms[c + 1], n_atoms) for c in (0, 1, 2, 4, 5, 6)
        )
        which = torch.tensor([row[0] for row in rows], dtype=torch.int64)
        self.register_buffer("which", which[:, None])

    which: Tensor

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        u = [step(frames.xyz) for step in self.steps]
        phi, psi = dihedral(u[0], u[1], u[2]), dihedral(u[3], u[4], u[5])
        energy: Tensor = self.spline(self.which, phi, psi)
        return energy.sum(0)
