"""Place atoms from bond lengths, angles and torsions, and measure them back.

A shape of N atoms is q = (N-1 bond lengths | N-2 bond angles | N-3 torsions) in the order of the
tree of `energies.zmatrix`. The atoms of one level are placed at once, with the batch as the
innermost dimension in memory: peptides need a handful of steps, each on long vectors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from energies.errors import CoordinateError
from energies.zmatrix import ZMatrix


class Placer(nn.Module):
    """The bijection between absolute internal coordinates q and positions up to a rigid motion.

    Args:
        zmatrix: The tree of placements.

    Attributes:
        n_atoms: N.
        order: Atom in each slot: the root atoms, then the placed ones.
        angle_row, torsion_row: First row of q that holds an angle, a torsion.
        row_of_torsion: For each placed atom, the row of q that holds its torsion.
        bonds: The pair of atoms whose distance each of the first rows holds.
    """

    order: Tensor
    slot: Tensor

    def __init__(self, zmatrix: ZMatrix) -> None:
        super().__init__()
        placements = zmatrix.placements
        self.n_atoms = n = zmatrix.n_atoms
        self.angle_row, self.torsion_row = n - 1, 2 * n - 3
        order = [*zmatrix.root, *(p.atom for p in placements)]
        slot = {atom: s for s, atom in enumerate(order)}
        self.row_of_torsion = {p.atom: self.torsion_row + s for s, p in enumerate(placements)}
        (i0, i1, i2), pairs = zmatrix.root, [(p.atom, p.a) for p in placements]
        self.bonds = [frozenset(pair) for pair in ((i1, i0), (i2, i1), *pairs)]
        self.level_sizes = [len(level) for level in zmatrix.levels]
        self.register_buffer("order", torch.tensor(order))
        self.register_buffer("slot", torch.tensor([slot[i] for i in range(n)]))
        for name in ("a", "b", "c"):
            refs = torch.tensor([slot[getattr(p, name)] for p in placements], dtype=torch.long)
            self.register_buffer(f"ref_{name}", refs)

    def names(self, labels: Sequence[str]) -> list[str]:
        """Return the name of each row of q: the kind of coordinate and the atom that it places.

        Args:
            labels: Name of each atom, length N.
        """
        names = [labels[i] for i in self.order.tolist()]
        return (
            [f"r({name})" for name in names[1:]]
            + [f"θ({name})" for name in names[2:]]
            + [f"t({name})" for name in names[3:]]
        )

    def check_angles(self, q: Tensor, labels: Sequence[str]) -> None:
        """Refuse a shape with three atoms in a row: the torsions around them mean nothing.

        Args:
            q: One shape, [3N-6].
            labels: Name of each atom, length N.

        Raises:
            CoordinateError: A bond angle is within 6 degrees of 0 or 180, or not a number.
        """
        theta = torch.rad2deg(q[self.angle_row : self.torsion_row])
        k = int((theta - 90.0).abs().argmax())
        if not 6.0 < float(theta[k]) < 174.0:
            raise CoordinateError(
                "Expected bond angles between 6 and 174 degrees in the reference structure, got "
                f"{self.names(labels)[self.angle_row + k]} = {float(theta[k]):.1f}: internal "
                "coordinates are not defined for three atoms in a row."
            )

    def place(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Build positions.

        Args:
            q: Bond lengths (nm, > 0), angles (0 < θ < π), torsions (radians), [..., 3N-6].

        Returns:
            Positions, nm, [..., N, 3], atom 0 of the root at the origin; and
            log|det d xyz / d q| up to rigid motions, [...].
        """
        rows = q.movedim(-1, 0)
        r, theta, t = torch.split(rows, [self.angle_row, self.n_atoms - 2, self.n_atoms - 3])
        # Atoms of the root: slot 1 is bonded to slot 0, slot 2 to slot 1.
        zero = torch.zeros_like(r[0])
        cos, sin = torch.cos(theta), torch.sin(theta)
        root = [
            torch.stack([zero, zero, zero]),
            torch.stack([r[0], zero, zero]),
            torch.stack([r[0] - r[1] * cos[0], r[1] * sin[0], zero]),
        ]
        xyz = torch.stack(root, dim=1)  # [3, slot, ...]
        # The three components of a new atom in the frame of its references.
        axial, radial = r[2:] * cos[1:], r[2:] * sin[1:]
        tangent, normal = radial * torch.cos(t), radial * torch.sin(t)
        start = 0
        for size in self.level_sizes:
            part = slice(start, start + size)
            a, b, c = (xyz[:, getattr(self, f"ref_{k}")[part]] for k in "abc")
            e1 = _unit(a - b)
            e3 = _unit(_cross(b - c, e1))
            e2 = _cross(e3, e1)
            new = a - axial[part] * e1 + tangent[part] * e2 + normal[part] * e3
            xyz = torch.cat([xyz, new], dim=1)
            start += size
        log_det = 2 * torch.log(r).sum(0) + torch.log(sin).sum(0)
        return xyz[:, self.slot].movedim((1, 0), (-2, -1)), log_det

    def measure(self, xyz: Tensor) -> Tensor:
        """Read the absolute internal coordinates off positions.

        Args:
            xyz: Positions, nm, [..., N, 3].

        Returns:
            q, [..., 3N-6], torsions in [-π, π].
        """
        p = xyz.movedim((-2, -1), (1, 0))[:, self.order]
        a, b, c = (p[:, getattr(self, f"ref_{k}")] for k in "abc")
        d = p[:, 3:]
        first, second = p[:, 1:2] - p[:, :1], p[:, 1:2] - p[:, 2:3]
        r = torch.cat([_norm(first), _norm(second), _norm(d - a)])
        theta = torch.cat([_angle(first, second), _angle(d - a, b - a)])
        e1 = _unit(a - b)
        normal = _cross(b - c, e1)
        # The same frame as in `place`, scaled by |normal| in both components.
        t = torch.atan2(_dot(d - a, normal), _dot(d - a, _cross(normal, e1)))
        return torch.cat([r, theta, t]).movedim(0, -1)


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).sum(0)


def _norm(u: Tensor) -> Tensor:
    return torch.sqrt(_dot(u, u))


def _unit(u: Tensor) -> Tensor:
    # The bound keeps the gradient of a collinear (hence rejected) frame a number.
    return u * torch.rsqrt(_dot(u, u).clamp_min(1e-24))


def _cross(u: Tensor, v: Tensor) -> Tensor:
    """Cross product of vectors whose components are the leading dimension."""
    return torch.stack(
        [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
    )


def _angle(u: Tensor, v: Tensor) -> Tensor:
    return torch.atan2(_norm(_cross(u, v)), _dot(u, v))
