"""Internal coordinates x <-> Cartesian positions, with the log-determinant in closed form.

x holds the whitened stiff coordinates first and the freely turning torsions last. Between x and
the absolute internal coordinates q of `energies.placement` lie two linear maps,

    u = c + V x,    q = M u.

V whitens the stiff coordinates (bond lengths, angles, and the offsets by which an atom's torsion
differs from its leader's). M adds the offsets to the leader's torsion. A symmetric rotor of order
n (a methyl: n = 3) enters u by the sum of its torsions, y = n t + Σ offsets: a cyclic exchange of
its labels adds 2π to y, so that 2π of y are one fundamental domain, exactly. The exchange also
moves the groups' other coordinates among each other: they jump where y comes round, which is why
that seam is put on the barrier between two images.

    log|det d xyz / d x| = log|det V| - Σ_rotors log n + log|det d xyz / d q|

Bonds of fixed length are no coordinates but constants r₀. What is sampled then is the flexible
molecule's density exp(-U/RT) |det d xyz / d q| at r = r₀, that is the limit of harmonic bonds that
grow infinitely stiff, all else being equal; the published d = 98 and 148 count coordinates in this
way. A rigid molecule, as constrained dynamics moves it, has the further factor √det G (Fixman),
G_ab = Σ_i (1/m_i) ∇_i r_a · ∇_i r_b over the constrained bonds a, b. It depends on the angles
between constrained bonds that share an atom, and is left out: over thermal frames of the alanine
tetrapeptide with HBonds the standard deviation of log √det G is 4e-4.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from energies.base import Energy
from energies.errors import CoordinateError, EnergyInputError
from energies.placement import Placer
from energies.scaling import harmonic_scale, hessian, soft_coordinates
from energies.symmetry import Rotor, find_rotors, label_energy
from energies.zmatrix import Placement, ZMatrix, build_zmatrix

if TYPE_CHECKING:
    from energies.molecule import Molecule

_SLACK = 2e-3
"""How far a frame may be off a constrained bond length, nm: what file formats round away."""

_SOFT = math.pi / 3
"""Harmonic standard deviation, radians, above which a ring torsion turns freely: three of them
no longer fit into its branch of ±π."""


class InternalCoordinates(nn.Module):
    """The bijection between x in R^D and the shapes of a molecule with its chirality.

    Args:
        zmatrix: The tree of placements.
        rotors: Symmetric rotors, sampled on one fundamental domain each.
        positions: Reference structure, nm, [N, 3]: the centre of the stiff coordinates.
        constrained: Bonds of fixed length: no coordinate of x, held at their reference length.
        labels: Name of each atom, used in `names` and messages.

    Attributes:
        dim: D.
        periodic: bool [D].
        names: What each coordinate of x is before whitening, e.g. "t(ALA2-C)".

    Raises:
        CoordinateError: A constrained bond closes a ring; a bond angle of the reference is 0 or π.
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
        stiff = _free_bonds(placer, constrained)
        stiff += range(placer.angle_row, placer.torsion_row)
        stiff += [row[p.atom] for p in zmatrix.placements if not p.flexible]
        free = [row[p.atom] for p in zmatrix.placements if p.flexible]
        self.n_stiff, self.dim = len(stiff), len(stiff) + len(free)
        self.register_buffer("rows", torch.tensor(stiff + free))
        self.register_buffer("periodic", torch.arange(self.dim) >= self.n_stiff)
        mix = _mixing_matrix(zmatrix, rotors, row)
        self.register_buffer("mix", mix)
        self.register_buffer("unmix", torch.linalg.inv(mix).round())
        labels = labels or [str(i) for i in range(self.n_atoms)]
        names = placer.names(labels)

        q = placer.measure(positions.to(torch.float64))
        placer.check_angles(q, labels)
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
        fixed = sorted(set(range(placer.angle_row)) - set(stiff))
        lower[fixed], upper[fixed] = u[fixed] - _SLACK, u[fixed] + _SLACK
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
        self.names = [names[k] for k in stiff + free]

    @classmethod
    def from_molecule(
        cls, molecule: "Molecule", energy: Energy, *, temperature: float = 300.0
    ) -> Self:
        """Find the coordinates of a molecule and whiten the stiff ones at its minimum.

        Torsions about bonds of a ring are stiff, save those whose harmonic standard deviation
        exceeds π/3: these turn freely.

        Args:
            molecule: A connected molecule at a minimum of `energy`.
            energy: Gives the Hessian, by 2D gradient evaluations in float64, and tells which
                rotors are symmetric.
            temperature: T of the harmonic covariance L Lᵀ = RT H⁻¹, kelvin.

        Raises:
            CoordinateError: The molecule is not connected, not at a minimum, has atoms in a row,
                or constraints that no coordinate stands for.
        """
        if not temperature > 0:
            raise EnergyInputError(f"Expected temperature > 0 kelvin, got {temperature}.")
        n_constraints = molecule.system.getNumConstraints()
        if n_constraints != len(molecule.constrained_bonds):
            raise CoordinateError(
                f"Expected constraints on bonds only, got {n_constraints} of which "
                f"{len(molecule.constrained_bonds)} are on bonds."
            )
        positions = torch.tensor(molecule.positions, dtype=torch.float64)
        zmatrix = build_zmatrix(molecule.elements, molecule.bonds)
        candidates = find_rotors(zmatrix, molecule.elements, molecule.bonds, positions)
        build = partial(
            cls,
            rotors=tuple(r for r in candidates if label_energy(r, positions, energy) == 0.0),
            positions=positions,
            constrained=molecule.constrained_bonds,
            labels=molecule.labels,
        )
        rigid = build(zmatrix)
        h, names = rigid._stiff_hessian(energy, positions), rigid.names[: rigid.n_stiff]
        column = {row: k for k, row in enumerate(rigid.rows.tolist())}
        ring = {
            column[rigid.placer.row_of_torsion[p.atom]]: p.atom
            for p in zmatrix.placements
            if p.leader == p.atom and not p.flexible
        }
        soft = soft_coordinates(h, temperature, ring, names=names, limit=_SOFT)
        coordinates = build(zmatrix.freed([ring[k] for k in soft]))
        kept = [k for k in range(len(names)) if k not in soft]
        coordinates.rescale(
            harmonic_scale(h[kept][:, kept], temperature, names=[names[k] for k in kept])
        )
        return coordinates

    def _stiff_hessian(self, energy: Energy, positions: Tensor) -> Tensor:
        """Second derivatives of U in the unscaled stiff coordinates, [n_stiff, n_stiff]."""
        stiff = slice(0, self.n_stiff)
        x0 = self.from_xyz(positions)[0]

        def gradient(x_stiff: Tensor) -> Tensor:
            x = x0.expand(len(x_stiff), -1).clone()
            x[:, stiff] = x_stiff
            x.requires_grad_()
            u = energy.potential(self.to_xyz(x)[0]).sum()
            return torch.autograd.grad(u, x)[0][:, stiff]

        is_bond = self.rows[stiff] < self.placer.angle_row
        steps = torch.where(is_bond, 1e-5, 1e-4).to(torch.float64)  # nm, radians
        return hessian(gradient, x0[stiff], steps)

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
            EnergyInputError: `xyz` is not of shape [..., N, 3], or its bonds are so long or short
                that it cannot be in nm.
        """
        if xyz.shape[-2:] != (self.n_atoms, 3):
            raise EnergyInputError(
                f"Expected xyz of shape [..., {self.n_atoms}, 3], got {list(xyz.shape)}."
            )
        for rotor in self.rotors:
            xyz = rotor.exchange(xyz, self._domain_of(xyz, rotor))
        u = self._relative(xyz)
        self._check_units(u[..., : self.placer.angle_row].detach())
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
            xyz = rotor.exchange(xyz, turns)
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

    def _check_units(self, lengths: Tensor) -> None:
        """Refuse frames whose bonds, in the median frame, are three times off the reference."""
        means = lengths.mean(-1).flatten()
        means = means[torch.isfinite(means)]
        if not means.numel():
            return
        got, expected = float(means.median()), float(self.centre[: lengths.shape[-1]].mean())
        if not expected / 3 < got < expected * 3:
            raise EnergyInputError(
                f"Expected xyz in nm, with bonds of {expected:.3g} nm on average, got {got:.3g}."
            )

    def _domain_of(self, xyz: Tensor, rotor: Rotor) -> Tensor:
        """How many turns of 2π/n the labels are away from the fundamental domain."""
        row = self.placer.row_of_torsion[rotor.leader]
        home = (self._relative(xyz) @ self.mix[row].to(xyz.dtype)).detach()
        turn = (self.placer.measure(xyz)[..., row].detach() - home) * rotor.order / (2 * math.pi)
        return turn.round().long()


def _wrap(angle: Tensor) -> Tensor:
    """Bring angles to [-π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _free_bonds(placer: Placer, constrained: Iterable[tuple[int, int]]) -> list[int]:
    """Rows of the bond lengths that are coordinates."""
    rigid = {frozenset(bond) for bond in constrained}
    if closing := sorted(sorted(bond) for bond in rigid.difference(placer.bonds)):
        raise CoordinateError(
            "Expected constrained bonds along the tree of placements, got bonds of fixed length "
            f"that close rings, between atoms {closing}; constrain fewer bonds."
        )
    return [k for k, bond in enumerate(placer.bonds) if bond not in rigid]


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
