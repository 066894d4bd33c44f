"""Internal coordinates x <-> Cartesian positions, with the log-determinant in closed form.

x holds the whitened stiff coordinates first and the freely turning torsions last. Between x and
the absolute internal coordinates q of `energies.placement` lie two linear maps,

    u = c + V x,    q = M u.

V whitens the stiff coordinates (bond lengths, angles, and the offsets by which an atom's torsion
differs from its leader's). M adds the offsets to the leader's torsion. A symmetric rotor of order
n (a methyl: n = 3) enters u by the sum of its torsions, y = n t + Σ offsets: a cyclic exchange of
its labels adds 2π to y, so that 2π of y are one fundamental domain, exactly.

    log|det d xyz / d x| = log|det V| - Σ_rotors log n + log|det d xyz / d q|
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from energies.base import Energy
from energies.errors import EnergyInputError
from energies.placement import Placer
from energies.scaling import harmonic_scale, hessian
from energies.zmatrix import Placement, Rotor, ZMatrix, build_zmatrix, find_rotors

if TYPE_CHECKING:
    from energies.molecule import Molecule


class InternalCoordinates(nn.Module):
    """The bijection between x in R^D and the shapes of a molecule with its chirality.

    Args:
        zmatrix: The tree of placements.
        rotors: Symmetric rotors, sampled on one fundamental domain each.
        positions: Reference structure, nm, [N, 3]: the centre of the stiff coordinates.
        constrained: Bonds of fixed length: no coordinate of x, held at their reference length.
            The density over x is then that of the constrained molecule in the measure
            Π r² sin θ d(remaining coordinates).
        labels: Name of each atom, used in `names`.

    Attributes:
        dim: D.
        periodic: bool [D].
        names: What each coordinate of x is before whitening, e.g. "t(ALA2-C)".
    """

    periodic: Tensor
    centre: Tensor
    lower: Tensor
    upper: Tensor
    spread: Tensor
    mix: Tensor
    unmix: Tensor
    rows: Tensor
    log_det_linear: Tensor

    def __init__(
        self,
        zmatrix: ZMatrix,
        rotors: tuple[Rotor, ...],
        positions: Tensor,
        *,
        constrained: Iterable[tuple[int, int]] = (),
        labels: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.placer = placer = Placer(zmatrix)
        self.zmatrix, self.rotors, self.n_atoms = zmatrix, rotors, zmatrix.n_atoms
        row = placer.row_of_torsion
        stiff = _free_bonds(zmatrix, constrained)
        stiff += range(placer.angle_row, placer.torsion_row)
        stiff += [row[p.atom] for p in zmatrix.placements if not p.flexible]
        free = [row[p.atom] for p in zmatrix.placements if p.flexible]
        self.n_stiff, self.dim = len(stiff), len(stiff) + len(free)
        self.register_buffer("rows", torch.tensor(stiff + free))
        self.register_buffer("periodic", torch.arange(self.dim) >= self.n_stiff)
        mix = _mixing_matrix(zmatrix, rotors, row)
        self.register_buffer("mix", mix)
        self.register_buffer("unmix", torch.linalg.inv(mix).round())

        q = placer.measure(positions.to(torch.float64))
        u = self.unmix @ q
        u[placer.torsion_row :] = _wrap(u[placer.torsion_row :])
        # x is φ, ψ, ... itself; a symmetric rotor is centred, which puts its seam on the barrier.
        u[free] = 0.0
        for rotor in rotors:
            followers = [row[i] for i in rotor.followers]
            u[row[rotor.leader]] = rotor.order * q[row[rotor.leader]] + u[followers].sum()
        lower, upper = torch.full_like(u, -math.inf), torch.full_like(u, math.inf)
        lower[: placer.torsion_row] = 0.0
        upper[placer.angle_row : placer.torsion_row] = math.pi
        for p in zmatrix.placements:
            if not p.flexible:  # an offset keeps its side of the leader; a ring torsion its branch
                width = math.pi if p.leader == p.atom else math.pi / 2
                lower[row[p.atom]], upper[row[p.atom]] = (
                    u[row[p.atom]] - width,
                    u[row[p.atom]] + width,
                )
        self.register_buffer("centre", u)
        self.register_buffer("lower", lower)
        self.register_buffer("upper", upper)
        self.register_buffer("spread", torch.zeros(len(u), self.dim, dtype=torch.float64))
        self.register_buffer("log_det_linear", torch.zeros((), dtype=torch.float64))
        self.rescale(torch.eye(self.n_stiff, dtype=torch.float64))
        names = _row_names(placer, labels or [str(i) for i in range(self.n_atoms)])
        self.names = [names[k] for k in stiff + free]

    @classmethod
    def from_molecule(
        cls, molecule: "Molecule", energy: Energy, *, temperature: float = 300.0
    ) -> Self:
        """Find the coordinates of a molecule and whiten the stiff ones at its minimum.

        Args:
            molecule: A connected molecule at a minimum of `energy`.
            energy: Gives the Hessian, by 2D gradient evaluations in float64, and tells which
                rotors are symmetric.
            temperature: T of the harmonic covariance L Lᵀ = RT H⁻¹, kelvin.

        Raises:
            CoordinateError: The molecule is not connected, or not at a minimum.
        """
        if not temperature > 0:
            raise EnergyInputError(f"Expected temperature > 0 kelvin, got {temperature}.")
        positions = torch.tensor(molecule.positions, dtype=torch.float64)
        zmatrix = build_zmatrix(molecule.elements, molecule.bonds)
        candidates = find_rotors(zmatrix, molecule.elements, _offsets(zmatrix, positions))
        rotors = tuple(r for r in candidates if _is_symmetric(r, positions, energy))
        coordinates = cls(
            zmatrix,
            rotors,
            positions,
            constrained=molecule.constrained_bonds,
            labels=molecule.labels,
        )
        stiff = slice(0, coordinates.n_stiff)
        x0 = coordinates.from_xyz(positions)[0]

        def gradient(x_stiff: Tensor) -> Tensor:
            x = x0.expand(len(x_stiff), -1).clone()
            x[:, stiff] = x_stiff
            x.requires_grad_()
            u = energy.potential(coordinates.to_xyz(x)[0]).sum()
            return torch.autograd.grad(u, x)[0][:, stiff]

        is_bond = coordinates.rows[stiff] < coordinates.placer.angle_row
        steps = torch.where(is_bond, 1e-5, 1e-4).to(torch.float64)  # nm, radians
        coordinates.rescale(harmonic_scale(hessian(gradient, x0[stiff], steps), temperature))
        return coordinates

    def rescale(self, scale: Tensor) -> None:
        """Set the factor that takes the stiff part of x to its deviation from the centre.

        Args:
            scale: L, lower triangular, nm or radians per unit of x, [n_stiff, n_stiff].
        """
        spread = torch.zeros(len(self.centre), self.dim, dtype=torch.float64)
        spread[self.rows[: self.n_stiff], : self.n_stiff] = scale.to(torch.float64)
        spread[self.rows[self.n_stiff :], torch.arange(self.n_stiff, self.dim)] = 1.0
        self.spread.copy_(spread)
        orders = torch.tensor([float(r.order) for r in self.rotors], dtype=torch.float64)
        log_scale = torch.diagonal(scale).abs().log().sum()
        self.log_det_linear.copy_(log_scale - orders.log().sum())

    def to_xyz(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Build positions from flow coordinates.

        Args:
            x: [..., D].

        Returns:
            Positions, nm, [..., N, 3], and log|det d xyz / d x|, float64, [...]. A row outside
            the domain has log-determinant -inf, the reference shape, and no gradient.
        """
        # The batch is innermost from here to the positions: no transpose, long vectors.
        rows = x.reshape(-1, self.dim).T
        u = self.centre[:, None] + self.spread @ rows
        inside = self._inside(u)
        u = torch.where(inside, u, self.centre[:, None])
        xyz, log_det = self.placer.place((self.mix @ u).T)
        log_det = log_det.to(torch.float64) + self.log_det_linear
        log_det = torch.where(inside, log_det, -math.inf)
        shape = x.shape[:-1]
        return xyz.reshape(*shape, self.n_atoms, 3), log_det.reshape(shape)

    def from_xyz(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Read flow coordinates off positions; labels of symmetric rotors do not matter.

        Args:
            xyz: Positions, nm, [..., N, 3].

        Returns:
            x, [..., D], and log|det d x / d xyz|, float64, [...]. The determinant is -inf for a
            shape outside the domain, such as one of the other chirality.

        Raises:
            EnergyInputError: `xyz` is not of shape [..., N, 3].
        """
        if xyz.shape[-2:] != (self.n_atoms, 3):
            raise EnergyInputError(
                f"Expected xyz of shape [..., {self.n_atoms}, 3], got {list(xyz.shape)}."
            )
        for rotor in self.rotors:
            xyz = self._turn(xyz, rotor, self._domain_of(xyz, rotor))
        u = self._relative(xyz)
        rows, n = self.rows, self.n_stiff
        deviation = (u - self.centre)[..., rows]
        scale = self.spread[rows[:n], :n]
        x_stiff = torch.linalg.solve_triangular(
            scale.to(xyz.dtype), deviation[..., :n].unsqueeze(-1), upper=False
        ).squeeze(-1)
        x = torch.cat([x_stiff, deviation[..., n:]], dim=-1)
        inside = self._inside(u.reshape(-1, len(self.centre)).T).reshape(u.shape[:-1])
        return x, torch.where(inside, -self.to_xyz(x)[1], -math.inf)

    def in_domain(self, x: Tensor) -> Tensor:
        """Return bool [...]: which rows of `x` are shapes of the molecule."""
        u = self.centre[:, None] + self.spread @ x.reshape(-1, self.dim).T
        return self._inside(u).reshape(x.shape[:-1])

    def permute_rotors(self, xyz: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Exchange the labels of symmetric rotors at random: from one domain to all of them.

        Args:
            xyz: Positions, nm, [..., N, 3].
            generator: Source of randomness.
        """
        for rotor in self.rotors:
            turns = torch.randint(
                rotor.order, xyz.shape[:-2], generator=generator, device=xyz.device
            )
            xyz = self._turn(xyz, rotor, turns)
        return xyz

    def _inside(self, u: Tensor) -> Tensor:
        """Which columns of u [3N-6, n] lie within all bounds, bool [n]."""
        return ((u > self.lower[:, None]) & (u < self.upper[:, None])).all(0)

    def _relative(self, xyz: Tensor) -> Tensor:
        """The coordinates u, torsions within π of their centre."""
        first = self.placer.torsion_row
        u = self.placer.measure(xyz) @ self.unmix.to(xyz.dtype).T
        centre = self.centre.to(xyz.dtype)[first:]
        torsions = centre + _wrap(u[..., first:] - centre)
        return torch.cat([u[..., :first], torsions], dim=-1)

    def _domain_of(self, xyz: Tensor, rotor: Rotor) -> Tensor:
        """How many turns of 2π/n the labels are away from the fundamental domain."""
        row = self.placer.row_of_torsion[rotor.leader]
        home = (self._relative(xyz) @ self.mix[row].to(xyz.dtype)).detach()
        turn = (self.placer.measure(xyz)[..., row].detach() - home) * rotor.order / (2 * math.pi)
        return turn.round().long()

    @staticmethod
    def _turn(xyz: Tensor, rotor: Rotor, turns: Tensor) -> Tensor:
        """Give each label of the rotor the position `turns` places back, per row."""
        atoms = torch.tensor([rotor.leader, *rotor.followers], device=xyz.device)
        source = (torch.arange(rotor.order, device=xyz.device) - turns.unsqueeze(-1)) % rotor.order
        moved = torch.gather(
            xyz[..., atoms, :], -2, source.unsqueeze(-1).expand(*source.shape, xyz.shape[-1])
        )
        return xyz.index_copy(-2, atoms, moved)


def _wrap(angle: Tensor) -> Tensor:
    """Bring angles to [-π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _free_bonds(zmatrix: ZMatrix, constrained: Iterable[tuple[int, int]]) -> list[int]:
    """Rows of the bond lengths that are coordinates."""
    rigid = {frozenset(bond) for bond in constrained}
    i0, i1, i2 = zmatrix.root
    bonds = [(i1, i0), (i2, i1), *((p.atom, p.a) for p in zmatrix.placements)]
    return [k for k, bond in enumerate(bonds) if frozenset(bond) not in rigid]


def _is_follower(p: Placement, row: dict[int, int]) -> bool:
    """Whether p's torsion is added to another's; that of the root's third atom is zero."""
    return p.leader != p.atom and p.leader in row


def _mixing_matrix(zmatrix: ZMatrix, rotors: tuple[Rotor, ...], row: dict[int, int]) -> Tensor:
    """M: absolute torsions from offsets, leaders, and the sums y of symmetric rotors."""
    mix = torch.eye(3 * zmatrix.n_atoms - 6, dtype=torch.float64)
    for rotor in rotors:
        mix[row[rotor.leader], [row[i] for i in rotor.followers]] = -1.0
        mix[row[rotor.leader]] /= rotor.order
    for p in zmatrix.placements:
        if _is_follower(p, row):
            mix[row[p.atom]] += mix[row[p.leader]]
    return mix


def _offsets(zmatrix: ZMatrix, positions: Tensor) -> dict[int, float]:
    """Torsion of each follower relative to its leader in one structure."""
    placer = Placer(zmatrix)
    row, q = placer.row_of_torsion, placer.measure(positions)
    return {
        p.atom: float(q[row[p.atom]] - q[row[p.leader]])
        for p in zmatrix.placements
        if _is_follower(p, row)
    }


def _is_symmetric(rotor: Rotor, positions: Tensor, energy: Energy) -> bool:
    """Whether a cyclic exchange of labels leaves the energy of distorted structures alone.

    Force fields break some symmetries that chemistry has: AMBER's improper torsions tell the
    oxygens of a carboxylate apart. Such a rotor keeps its full circle.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, *positions.shape, generator=generator, dtype=positions.dtype)
    frames = positions + 0.01 * noise  # nm: far beyond rounding, far from any clash
    turned = InternalCoordinates._turn(frames, rotor, torch.ones(8, dtype=torch.long))
    u, v = energy.potential(torch.cat([frames, turned])).chunk(2)
    return bool(((u - v).abs() < 1e-8 * (1.0 + u.abs())).all())


def _row_names(placer: Placer, labels: list[str]) -> list[str]:
    """Name of each row of u: the kind of coordinate and the atom that it places."""
    names = [labels[i] for i in placer.order.tolist()]
    return (
        [f"r({name})" for name in names[1:]]
        + [f"θ({name})" for name in names[2:]]
        + [f"t({name})" for name in names[3:]]
    )
