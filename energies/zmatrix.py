"""From a bond graph to the tree of placements: which atom, from which references, in which way.

The first three atoms (`root`) fix the frame; every other atom d is placed by a bond length
|d - a|, a bond angle (d, a, b) and a torsion (d, a, b, c). Of the atoms placed on the same axis
b -> a the first one, the *leader*, owns the torsion of the axis; its siblings are placed by the
difference to the leader's torsion. The difference is stiff, and its sign is the chirality of a.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from energies.errors import CoordinateError

Graph = list[set[int]]


@dataclass(frozen=True)
class Placement:
    """How one atom is placed on already placed ones.

    Attributes:
        atom: The placed atom d.
        a: Bonded reference: the coordinate r is |d - a|.
        b: Angle reference: θ is the angle (d, a, b).
        c: Torsion reference: t is the dihedral (d, a, b, c).
        leader: The sibling whose torsion is added to this atom's own, or `atom` for a leader.
        flexible: Whether the torsion turns freely. `build_zmatrix` says so of the leaders whose
            axis is not in a ring; of those in rings the Hessian decides.
    """

    atom: int
    a: int
    b: int
    c: int
    leader: int
    flexible: bool


@dataclass(frozen=True)
class ZMatrix:
    """The tree of placements of a connected molecule.

    Attributes:
        root: The atoms (0, 1, 2) of the frame; coordinates |0-1|, |1-2| and the angle at 1.
        levels: Placements grouped so that a level needs only the root and earlier levels.
    """

    root: tuple[int, int, int]
    levels: tuple[tuple[Placement, ...], ...]

    @property
    def placements(self) -> tuple[Placement, ...]:
        """All placements in the order in which they are carried out."""
        return tuple(p for level in self.levels for p in level)

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return 3 + len(self.placements)

    def freed(self, atoms: Collection[int]) -> "ZMatrix":
        """Return the same tree, with the torsions that `atoms` own turning freely."""
        return replace(
            self,
            levels=tuple(
                tuple(replace(p, flexible=p.flexible or p.atom in atoms) for p in level)
                for level in self.levels
            ),
        )


def build_zmatrix(elements: Sequence[str], bonds: Sequence[tuple[int, int]]) -> ZMatrix:
    """Find the tree of placements of a molecule.

    The root sits at the centre of the graph, so that the number of levels, and with it the
    error a torsion spreads along the chain, is smallest. Leaders are the children that carry
    the largest part of the molecule: backbone torsions come out as φ, ψ and ω.

    Args:
        elements: Chemical symbol of each atom, length N.
        bonds: Pairs of bonded atoms.

    Returns:
        The tree; rings are opened where they close farthest from the root.

    Raises:
        CoordinateError: Fewer than three atoms, or atoms that no chain of bonds connects.
    """
    n_atoms = len(elements)
    graph = bond_graph(n_atoms, bonds)
    if n_atoms < 3:
        raise CoordinateError(f"Expected a molecule of at least 3 atoms, got {n_atoms}.")
    lost = sorted(set(range(n_atoms)) - set(_distances(graph, 0)))
    if lost:
        raise CoordinateError(
            f"Expected bonds that connect all atoms into one molecule, got {len(lost)} atoms "
            f"not connected to atom 0 (the first is {lost[0]})."
        )
    root = _choose_root(elements, graph)
    parent, depth, sizes = _spanning_tree(graph, root)
    children: list[list[int]] = [[] for _ in range(n_atoms)]
    for atom, up in parent.items():
        if atom not in root:
            children[up].append(atom)

    def place(a: int, b: int, c: int, leader: int | None) -> list[Placement]:
        ordered = sorted(children[a], key=lambda i: (-sizes[i], elements[i] == "H", i))
        first = ordered[0] if leader is None and ordered else leader
        flexible = not in_ring(graph, a, b)
        return [Placement(d, a, b, c, first or 0, flexible and d == first) for d in ordered]

    i0, i1, i2 = root
    placements = [*place(i0, i1, i2, None), *place(i2, i1, i0, None), *place(i1, i0, i2, i2)]
    reference = {i0: i1, i1: i0, i2: i1}
    queue = deque(placements)
    while queue:
        p = queue.popleft()
        reference[p.atom] = p.a
        below = place(p.atom, p.a, reference[p.a], None)
        placements += below
        queue += below
    n_levels = max((depth[p.atom] for p in placements), default=0)
    levels = tuple(
        tuple(p for p in placements if depth[p.atom] == level) for level in range(1, n_levels + 1)
    )
    return ZMatrix(root, levels)


def bond_graph(n_atoms: int, bonds: Sequence[tuple[int, int]]) -> Graph:
    """Return the set of bonded atoms of each atom."""
    graph: Graph = [set() for _ in range(n_atoms)]
    for i, j in bonds:
        graph[i].add(j)
        graph[j].add(i)
    return graph


def in_ring(graph: Graph, i: int, j: int) -> bool:
    """Whether the bond i-j is part of a ring: j can be reached from i without it."""
    others = [k for k in graph[i] if k != j]
    return any(j in _distances(graph, k, frozenset({i})) for k in others)


def _choose_root(elements: Sequence[str], graph: Graph) -> tuple[int, int, int]:
    heavy = [i for i, e in enumerate(elements) if e != "H"]

    def inner(atoms: Sequence[int]) -> list[int]:
        return [i for i in atoms if sum(j in atoms for j in graph[i]) >= 2]

    atoms = heavy if inner(heavy) else list(range(len(elements)))
    middle = min(inner(atoms), key=lambda i: (max(_distances(graph, i).values()), i))
    neighbours = sorted(
        (j for j in graph[middle] if j in atoms),
        key=lambda j: (-_size(graph, j, middle), j),
    )[:2]
    first, last = sorted(neighbours)
    return first, middle, last


def _spanning_tree(
    graph: Graph, root: tuple[int, int, int]
) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Breadth-first tree: parent, depth (0 for the root atoms) and subtree size of each atom."""
    i0, i1, i2 = root
    parent = {i0: i1, i1: i0, i2: i1}
    depth = dict.fromkeys(root, 0)
    queue = deque(root)
    order = list(root)
    while queue:
        i = queue.popleft()
        for j in sorted(graph[i]):
            if j not in parent:
                parent[j], depth[j] = i, depth[i] + 1
                order.append(j)
                queue.append(j)
    sizes = dict.fromkeys(order, 1)
    for i in reversed(order[3:]):
        sizes[parent[i]] += sizes[i]
    return parent, depth, sizes


def _distances(graph: Graph, start: int, skip: frozenset[int] = frozenset()) -> dict[int, int]:
    """Number of bonds from `start` to every atom that can be reached without `skip`."""
    distance = {start: 0}
    queue = deque([start])
    while queue:
        i = queue.popleft()
        for j in graph[i]:
            if j not in distance and j not in skip:
                distance[j] = distance[i] + 1
                queue.append(j)
    return distance


def _size(graph: Graph, start: int, without: int) -> int:
    return len(_distances(graph, start, frozenset({without})))
