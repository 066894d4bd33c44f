"""Symmetric rotors: like groups on an axis that turns freely, whose labels can be exchanged.

A turn by 2π/n carries a methyl, an ammonium or a phenyl ring onto itself up to the names of its
atoms. Such a turn is a permutation of labels that keeps every bond, every element and every hand;
it is looked for in the bond graph, so the groups may be as large as they like (the methyls of a
tert-butyl, both halves of a ring). Whether the energy agrees is asked of the energy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from energies.base import Energy
from energies.placement import Placer
from energies.zmatrix import Graph, Placement, ZMatrix, bond_graph, in_ring

_EVEN = 0.35
"""Largest deviation of a group's torsion from even spacing, radians."""

_FLAT = 0.2
"""Volume spanned by three unit bonds below which they count as flat (tetrahedral: 0.77)."""


@dataclass(frozen=True)
class Rotor:
    """Like groups on one axis whose labels can be exchanged by a turn of 2π/n.

    Attributes:
        leader: The atom that owns the torsion of the axis.
        followers: The first atom of each other group, by increasing torsion from the leader.
        source: For each atom of the molecule, the atom whose place it takes in one exchange; an
            atom that keeps its place is its own.
    """

    leader: int
    followers: tuple[int, ...]
    source: tuple[int, ...]

    @property
    def order(self) -> int:
        """n, the number of like groups."""
        return 1 + len(self.followers)

    def exchange(self, xyz: Tensor, turns: Tensor) -> Tensor:
        """Give the labels of each group to the group `turns` places back.

        Args:
            xyz: Positions, [..., N, 3].
            turns: Number of exchanges of each frame, any whole number, [...].

        Returns:
            The same shapes under other labels, [..., N, 3].
        """
        powers = [tuple(range(len(self.source)))]
        for _ in self.followers:
            powers.append(tuple(self.source[i] for i in powers[-1]))
        index = torch.tensor(powers, device=xyz.device)[turns % self.order]
        return torch.gather(xyz, -2, index.unsqueeze(-1).expand(xyz.shape))


def find_rotors(
    zmatrix: ZMatrix,
    elements: Sequence[str],
    bonds: Sequence[tuple[int, int]],
    positions: Tensor,
) -> tuple[Rotor, ...]:
    """Find the axes whose turn by 2π/n is a symmetry of the bond graph.

    Args:
        zmatrix: The tree of placements.
        elements: Chemical symbol of each atom, length N.
        bonds: Pairs of bonded atoms.
        positions: One structure, nm, float64 [N, 3]: it tells order and hand of the groups.

    Returns:
        The candidates, an axis before those that turn with it; whether the energy agrees is for
        `label_energy` to say.
    """
    graph = bond_graph(len(elements), bonds)
    kinds = atom_kinds(graph, elements)
    placer = Placer(zmatrix)
    q = placer.measure(positions)
    torsion = {atom: float(q[row]) for atom, row in placer.row_of_torsion.items()}
    by_axis: dict[tuple[int, int], list[Placement]] = {}
    for p in zmatrix.placements:
        by_axis.setdefault((p.a, p.b), []).append(p)
    rotors = []
    for (a, b), group in by_axis.items():
        lead = group[0]
        like = len({kinds[p.atom] for p in group}) == 1
        if len(group) < 2 or not like or not lead.flexible or in_ring(graph, a, b):
            continue
        turn = {p.atom: (torsion[p.atom] - torsion[lead.atom]) % (2 * math.pi) for p in group[1:]}
        followers = sorted(turn, key=turn.__getitem__)
        step = 2 * math.pi / len(group)
        if any(abs(turn[atom] - k * step) > _EVEN for k, atom in enumerate(followers, start=1)):
            continue
        image = _Turn(graph, kinds, positions, (a, b), [lead.atom, *followers]).find()
        if image is not None:
            source = list(range(len(elements)))
            for i, j in image.items():
                source[j] = i
            rotors.append(Rotor(lead.atom, tuple(followers), tuple(source)))
    return tuple(rotors)


def label_energy(rotor: Rotor, positions: Tensor, energy: Energy) -> float:
    """Return by how much an exchange of labels changes the energy of distorted structures.

    Force fields break some symmetries that chemistry has: AMBER's improper torsions go by the
    order of the atoms in the file, and so tell the oxygens of a carboxylate apart.

    Args:
        rotor: The exchange.
        positions: A structure without clashes, nm, float64 [N, 3].
        energy: U.

    Returns:
        The largest |ΔU| of a few structures, kJ/mol; 0 up to rounding if the energy agrees.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, *positions.shape, generator=generator, dtype=positions.dtype)
    frames = positions + 0.01 * noise  # nm: far beyond rounding, far from any clash
    turned = rotor.exchange(frames, torch.ones(8, dtype=torch.long))
    u, v = energy.potential(torch.cat([frames, turned])).chunk(2)
    difference = (u - v).abs()
    return float(torch.where(difference < 1e-8 * (1.0 + u.abs()), 0.0, difference).max())


def atom_kinds(graph: Graph, elements: Sequence[str]) -> list[int]:
    """Number the atoms by kind: atoms of one kind see the same elements at every distance.

    Args:
        graph: Bonded atoms of each atom.
        elements: Chemical symbol of each atom.
    """
    kinds = _numbered(list(elements))
    for _ in graph:
        finer = _numbered([(k, *sorted(kinds[j] for j in graph[i])) for i, k in enumerate(kinds)])
        if max(finer) == max(kinds):
            break
        kinds = finer
    return kinds


def _numbered(keys: Sequence[object]) -> list[int]:
    number: dict[object, int] = {}
    return [number.setdefault(key, len(number)) for key in keys]


class _Turn:
    """Search for the permutation of what lies beyond an axis that carries group k to group k + 1.

    Args:
        graph: Bonded atoms of each atom.
        kinds: Kind of each atom; kept by the permutation.
        positions: [N, 3]; the hand of each pyramidal centre is kept.
        axis: (a, b), a bond that is in no ring. All on the side of b stays where it is.
        chain: The atoms next to a, in the order of their torsions.
    """

    def __init__(
        self,
        graph: Graph,
        kinds: list[int],
        positions: Tensor,
        axis: tuple[int, int],
        chain: list[int],
    ) -> None:
        a, b = axis
        self.graph, self.kinds, self.xyz, self.order = graph, kinds, positions, len(chain)
        self.forced = dict(zip(chain, [*chain[1:], chain[0]], strict=True))
        self.image = {a: a, b: b}
        self.parent = dict.fromkeys(chain, a)
        self.queue = list(chain)
        for i in self.queue:  # breadth first: the list grows while it is read
            for j in sorted(graph[i]):
                if j not in self.parent and j != a:
                    self.parent[j] = i
                    self.queue.append(j)

    def find(self, k: int = 0) -> dict[int, int] | None:
        """Assign the atoms from place k of the queue on; None if that cannot be done."""
        if k == len(self.queue):
            return dict(self.image)
        i = self.queue[k]
        taken = set(self.image.values())
        free = [j for j in self.graph[self.image[self.parent[i]]] if j not in taken]
        # What can stay where it is stays: a turn of a ring leaves alone what hangs on the axis.
        options = [self.forced[i]] if i in self.forced else sorted(free, key=lambda j: (j != i, j))
        for j in options:
            if self._fits(i, j):
                self.image[i] = j
                found = self.find(k + 1) if self._closes() else None
                if found is not None:
                    return found
                del self.image[i]
        return None

    def _fits(self, i: int, j: int) -> bool:
        """Whether i -> j keeps its kind, its bonds and the hand of the centre it is bonded to."""
        if self.kinds[i] != self.kinds[j]:
            return False
        known = [k for k in self.graph[i] if k in self.image]
        if any(self.image[k] not in self.graph[j] for k in known):
            return False
        centre = self.parent[i]
        spokes = [k for k in self.graph[centre] if k in self.image]
        for m, first in enumerate(spokes):
            for second in spokes[:m]:
                here = self._volume(centre, first, second, i)
                there = self._volume(self.image[centre], self.image[first], self.image[second], j)
                if here * there < 0 and min(abs(here), abs(there)) > _FLAT:
                    return False
        return True

    def _closes(self) -> bool:
        """Whether n turns, as far as they are known, bring every atom back to its place."""
        for start in self.image:
            i: int | None = start
            for _ in range(self.order):
                i = self.image.get(i) if i is not None else None
            if i is not None and i != start:
                return False
        return True

    def _volume(self, centre: int, i: int, j: int, k: int) -> float:
        spokes = self.xyz[[i, j, k]] - self.xyz[centre]
        return float(torch.linalg.det(spokes / spokes.norm(dim=1, keepdim=True)))
