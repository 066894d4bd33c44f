"""A first structure from the bond graph and ideal bond lengths, angles and chiralities.

The result is rough on purpose (rings close only nearly): it is the starting point of an energy
minimisation, which needs the right topology and handedness rather than accurate numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Quadruple = tuple[int, int, int, int]

MAX_RING = 7
"""Largest ring placed as one; a longer cycle (a disulfide bridge) is closed by minimising."""


@dataclass(frozen=True)
class Ideal:
    """What the structure should look like.

    Attributes:
        neighbours: Bonded atoms of each atom, in the order in which they are to be placed.
        lengths: Bond length, nm, by (i, j) with i < j.
        angles: Bond angle, radians, by (i, j, k) with i < k.
        torsions: Torsion, radians, by atoms (a, b, c, d); other axes are placed trans.
        handedness: Centre by centre three of its neighbours (a, b, c) with
            (a - x) × (b - x) · (c - x) > 0.
    """

    neighbours: Sequence[Sequence[int]]
    lengths: Mapping[tuple[int, int], float]
    angles: Mapping[tuple[int, int, int], float]
    torsions: Mapping[Quadruple, float] = field(default_factory=dict)
    handedness: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)

    def length(self, i: int, j: int) -> float:
        """Bond length |i - j|, nm."""
        return self.lengths.get((min(i, j), max(i, j)), 0.15)

    def angle(self, i: int, j: int, k: int) -> float:
        """Bond angle at j, radians."""
        default = math.radians(120.0 if len(self.neighbours[j]) == 3 else 109.5)
        return self.angles.get((min(i, k), j, max(i, k)), default)

    def planar(self, j: int) -> bool:
        """Whether j has three neighbours in its plane: its three angles add up to 360 degrees."""
        if len(self.neighbours[j]) != 3:
            return False
        a, b, c = self.neighbours[j]
        total = self.angle(a, j, b) + self.angle(b, j, c) + self.angle(a, j, c)
        return total > math.radians(350.0)


def handed_volume(xyz: Array, centre: int, spokes: Sequence[int]) -> float:
    """Return (a - x) × (b - x) · (c - x), nm³, for centre x and spokes a, b, c of `xyz` [N, 3]."""
    a, b, c = (xyz[s] - xyz[centre] for s in spokes)
    return float(np.dot(np.cross(a, b), c))


def dihedral(a: Array, b: Array, c: Array, d: Array) -> float:
    """Return the torsion angle a-b-c-d in radians (IUPAC sign), points of shape [3]."""
    axis = c - b
    left, right = np.cross(b - a, axis), np.cross(axis, d - c)
    return math.atan2(
        float(np.dot(b - a, right)) * float(np.linalg.norm(axis)), float(np.dot(left, right))
    )


def place_atoms(ideal: Ideal, start: int) -> Array:
    """Place all atoms of a connected molecule, outwards from atom `start`.

    Args:
        ideal: Bond graph and ideal geometry.
        start: First atom; it and two atoms next to it fix the frame.

    Returns:
        Positions, nm, shape [N, 3].
    """
    n = len(ideal.neighbours)
    xyz = np.full((n, 3), np.nan)
    xyz[start] = 0.0
    if n == 1:
        return xyz
    second = ideal.neighbours[start][0]
    xyz[second] = (ideal.length(start, second), 0.0, 0.0)
    parent = {start: second, second: start}
    queue = [second, start]
    others = [k for k in ideal.neighbours[second] if k != start]
    if others:
        theta = ideal.angle(start, second, others[0])
        reach = ideal.length(second, others[0])
        xyz[others[0]] = xyz[second] + reach * np.array([-math.cos(theta), math.sin(theta), 0.0])
        parent[others[0]] = second
        queue.append(others[0])
    for c in queue:
        b = parent[c]
        for d in ideal.neighbours[c]:
            if not np.isnan(xyz[d, 0]):
                continue
            xyz[d] = _place(ideal, xyz, b, c, d)
            parent[d] = c
            queue.append(d)
    return xyz


def _place(ideal: Ideal, xyz: Array, b: int, c: int, d: int) -> Array:
    """Position of d on c, itself on b: beside a placed sibling if there is one, else a leader."""
    siblings = [s for s in ideal.neighbours[c] if s != b and not np.isnan(xyz[s, 0])]
    references = [a for a in ideal.neighbours[b] if a != c and not np.isnan(xyz[a, 0])]
    if siblings:
        candidates = [
            _extend(ideal, xyz, siblings[0], b, c, d, offset) for offset in _offsets(ideal, c)
        ]
        return _best(ideal, xyz, b, c, d, siblings, candidates)
    if not references:
        # b has no other neighbour: the torsion is free, any point off the axis will do.
        axis = xyz[c] - xyz[b]
        helper = xyz[b] + np.cross(axis, np.eye(3)[int(np.argmin(np.abs(axis)))])
        return _on_cone(helper, xyz[b], xyz[c], math.pi, ideal.angle(b, c, d),
                        ideal.length(c, d))  # fmt: skip
    for a in references:
        for key in ((a, b, c, d), (d, c, b, a)):
            if key in ideal.torsions:
                return _extend(ideal, xyz, a, b, c, d, ideal.torsions[key], torsion=True)
    in_ring = [a for a in references if same_ring(ideal.neighbours, (a, b, c, d))]
    if in_ring:
        return _extend(ideal, xyz, in_ring[0], b, c, d, 0.0, torsion=True)
    beside = [a for a in references if same_ring(ideal.neighbours, (a, b, c))]
    return _extend(ideal, xyz, (beside or references)[0], b, c, d, math.pi, torsion=True)


def _offsets(ideal: Ideal, c: int) -> tuple[float, ...]:
    """Turns from a placed sibling on c to where another neighbour of c may go."""
    if ideal.planar(c):
        return (math.pi,)
    third = 2 * math.pi / 3
    return (third, -third)


def _best(
    ideal: Ideal, xyz: Array, b: int, c: int, d: int, siblings: list[int], candidates: list[Array]
) -> Array:
    """Of two places on a tetrahedral centre, the one of the right hand, or the emptier one."""
    if len(candidates) == 1:
        return candidates[0]
    if c in ideal.handedness and len(siblings) == 1:
        wanted = _sign_for(ideal.handedness[c], ideal.neighbours[c], (b, siblings[0], d))
        for candidate in candidates:
            trial = xyz.copy()
            trial[d] = candidate
            if handed_volume(trial, c, (b, siblings[0], d)) * wanted > 0:
                return candidate
    others = [s for s in ideal.neighbours[c] if not np.isnan(xyz[s, 0])]
    room = [min(float(np.linalg.norm(p - xyz[s])) for s in others) for p in candidates]
    # A tie (both sides free) goes to the first, so that the result does not hang on rounding.
    return candidates[1] if room[1] > room[0] + 1e-6 else candidates[0]


def _sign_for(
    spokes: tuple[int, int, int], neighbours: Sequence[int], asked: tuple[int, int, int]
) -> int:
    """Sign of the handed volume of `asked` when that of `spokes` is positive.

    Swapping two of a centre's four neighbours flips its hand, so the sign is the parity of the
    permutation between the two orders.
    """
    rest = [k for k in neighbours if k not in spokes]
    order = [*spokes, *rest]
    full = [*asked, *(k for k in order if k not in asked)]
    permutation = [order.index(k) for k in full]
    inversions = sum(
        permutation[i] > permutation[j]
        for i in range(len(permutation))
        for j in range(i + 1, len(permutation))
    )
    return 1 if inversions % 2 == 0 else -1


def _extend(
    ideal: Ideal,
    xyz: Array,
    reference: int,
    b: int,
    c: int,
    d: int,
    turn: float,
    *,
    torsion: bool = False,
) -> Array:
    """Place d on c at a torsion, or at a turn about b-c from the sibling `reference` on c."""
    theta, reach = ideal.angle(b, c, d), ideal.length(c, d)
    if torsion:
        return _on_cone(xyz[reference], xyz[b], xyz[c], turn, theta, reach)
    # Seen along the axis a sibling lies on the same side as a point moved back to b.
    helper = xyz[reference] - xyz[c] + xyz[b]
    return _on_cone(helper, xyz[b], xyz[c], turn, theta, reach)


def _on_cone(a: Array, b: Array, c: Array, torsion: float, theta: float, reach: float) -> Array:
    """Point at distance `reach` from c, angle `theta` with b and dihedral `torsion` with a, b."""
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    side = np.cross(normal, axis)
    step = np.array([-math.cos(theta), math.sin(theta) * math.cos(torsion),
                     math.sin(theta) * math.sin(torsion)])  # fmt: skip
    point: Array = c + reach * (step[0] * axis + step[1] * side + step[2] * normal)
    return point


def same_ring(neighbours: Sequence[Sequence[int]], path: Sequence[int]) -> bool:
    """Whether the bonded `path` of atoms lies on one ring of at most `MAX_RING` atoms."""
    inner = set(path[1:-1])
    front, seen = {path[-1]}, {path[-1], *inner}
    for n_more in range(MAX_RING - len(path) + 1):
        reached = {k for a in front for k in neighbours[a]} - seen
        # The direct bond back along a path of two atoms is not a ring.
        if path[0] in {k for a in front for k in neighbours[a]} and (n_more or len(path) > 2):
            return True
        seen |= reached
        front = reached
    return False
