"""Distances, angles and dihedrals of a batch of conformations, safe to differentiate.

Layout: the batch is the last dimension, so that every operation runs over contiguous memory. A
vector field is three tensors (x, y, z) of shape [M, B].
"""

import torch
from torch import Tensor, nn

from energies.forcefield.sparse import SparseMap, difference

Vector = tuple[Tensor, Tensor, Tensor]


def dot(u: Vector, v: Vector) -> Tensor:
    """Return u · v, [M, B]."""
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


def cross(u: Vector, v: Vector) -> Vector:
    """Return u × v."""
    return (
        u[1] * v[2] - u[2] * v[1],
        u[2] * v[0] - u[0] * v[2],
        u[0] * v[1] - u[1] * v[0],
    )


def norm(u: Vector) -> Tensor:
    """Return |u|, [M, B]."""
    return dot(u, u).sqrt()


def safe_norm(u: Vector) -> Tensor:
    """Return |u|, whose gradient at u = 0 is zero instead of NaN."""
    square = dot(u, u)
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()


def angle(u: Vector, v: Vector) -> Tensor:
    """Return the angle between u and v, atan2(|u × v|, u · v): accurate and finite at 0 and π."""
    return torch.atan2(safe_norm(cross(u, v)), dot(u, v))


def dihedral_plane(u: Vector, v: Vector, w: Vector) -> tuple[Tensor, Tensor]:
    """Return (ρ cos φ, ρ sin φ) of the dihedral φ of three consecutive displacements.

    For atoms a, b, c, d with u = b - a, v = c - b, w = d - c (IUPAC sign, ρ >= 0).
    """
    m, n = cross(u, v), cross(v, w)
    return dot(m, n), dot(u, n) * safe_norm(v)


def dihedral_cos_sin(u: Vector, v: Vector, w: Vector) -> tuple[Tensor, Tensor]:
    """Return (cos φ, sin φ); (0, 0) where three of the atoms are on a line and φ has no value."""
    x, y = dihedral_plane(u, v, w)
    scale = (x * x + y * y).clamp_min(torch.finfo(x.dtype).tiny).rsqrt()
    return x * scale, y * scale


def dihedral(u: Vector, v: Vector, w: Vector) -> Tensor:
    """Return φ in (-π, π], [M, B]; 0 with zero gradient where it has no value."""
    x, y = dihedral_plane(u, v, w)
    undefined = (x == 0) & (y == 0)
    # atan2's own gradient at (0, 0) is NaN.
    return torch.atan2(y, torch.where(undefined, 1.0, x))


class Displacements(nn.Module):
    """The vectors from atoms `tails` to atoms `heads`."""

    def __init__(self, tails: list[int], heads: list[int], n_atoms: int) -> None:
        super().__init__()
        self.map: SparseMap = difference(tails, heads, n_atoms)

    def forward(self, xyz: Vector) -> Vector:
        """Return the displacement vectors, [M, B] each, of positions [N, B] each."""
        return self.map(xyz[0]), self.map(xyz[1]), self.map(xyz[2])


class Frames:
    """A batch of conformations on its way through the terms, with what they share.

    Attributes:
        xyz: Positions, three tensors [N, B], nm.
        r: Distances of all pairs, [S, N, B], nm, or None if no term asked for them; see `pairs`.
    """

    def __init__(self, xyz: Vector, r: Tensor | None) -> None:
        self.xyz = xyz
        self.r = r

    @property
    def pairs(self) -> Tensor:
        """`r`, for a term that needs it."""
        assert self.r is not None
        return self.r


class Term(nn.Module):
    """One force: its energy for a batch of conformations.

    Attributes:
        needs_pairs: Whether it uses `Frames.pairs`.
    """

    needs_pairs = False

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        raise NotImplementedError

    def parameter_column(self, name: str, values: list[float]) -> None:
        """Register `values` as a float64 buffer of shape [M, 1]."""
        self.register_buffer(name, torch.tensor(values, dtype=torch.float64)[:, None])
