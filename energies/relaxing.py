"""Ideal geometry out of an OpenMM System, minimising in it, and checks of what comes out."""

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from energies.errors import MoleculeError
from energies.sequence import Backbone
from energies.structure import Ideal, dihedral, handed_volume

Array = NDArray[np.float64]
Hands = Mapping[int, tuple[tuple[int, int, int], int]]
"""Centre -> (spokes, sign of their handed volume)."""

_NONBONDED = (
    openmm.NonbondedForce,
    openmm.CustomNonbondedForce,
    openmm.GBSAOBCForce,
    openmm.CustomGBForce,
)

_FLAT = 0.05
"""Handed volume over the product of the bond lengths below which a centre counts as flat."""


def neighbour_lists(
    n_atoms: int, bonds: Sequence[tuple[int, int]], priority: Sequence[tuple[int, ...]]
) -> list[list[int]]:
    """Return the bonded atoms of each atom, sorted by `priority`."""
    neighbours: dict[int, list[int]] = defaultdict(list)
    for i, j in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    return [sorted(neighbours[i], key=priority.__getitem__) for i in range(n_atoms)]


def ideal_geometry(system: openmm.System, backbone: Backbone) -> Ideal:
    """Return what a structure should look like.

    Args:
        system: Its harmonic forces give the bond lengths and angles; without constraints, which
            would hide bonds.
        backbone: Torsions, stereocentres and the order of placing.
    """
    neighbours = neighbour_lists(system.getNumParticles(), backbone.bonds, backbone.priority)
    lengths: dict[tuple[int, int], float] = {}
    angles: dict[tuple[int, int, int], float] = {}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for k in range(force.getNumBonds()):
                i, j, length, _ = force.getBondParameters(k)
                # Urey-Bradley terms share this force but join atoms that are not bonded.
                if j in neighbours[i]:
                    lengths[min(i, j), max(i, j)] = length.value_in_unit(unit.nanometer)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for k in range(force.getNumAngles()):
                i, j, m, angle, _ = force.getAngleParameters(k)
                angles[min(i, m), j, max(i, m)] = angle.value_in_unit(unit.radian)
    return Ideal(neighbours, lengths, angles, backbone.torsions, backbone.hands)


def bonded_only(system: openmm.System) -> openmm.System:
    """Return a copy without the forces between atoms that are not bonded.

    A rough structure is relaxed in it first: clashes and unclosed rings then cannot throw atoms
    across one another.
    """
    bonded = copy.deepcopy(system)
    for k in reversed(range(bonded.getNumForces())):
        if isinstance(bonded.getForce(k), _NONBONDED):
            bonded.removeForce(k)
    return bonded


def minimise(system: openmm.System, positions: Array, *, tolerance: float) -> tuple[Array, float]:
    """Minimise in double precision.

    Args:
        system: OpenMM System; its constraints are obeyed.
        positions: Start, nm, [N, 3].
        tolerance: Root mean square force at which to stop, kJ/mol/nm.

    Returns:
        The minimum, nm, [N, 3], and its energy, kJ/mol.

    Raises:
        MoleculeError: The start has no finite energy.
    """
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    try:
        context.setPositions(positions)
        if system.getNumConstraints():
            context.applyConstraints(1e-8)
        openmm.LocalEnergyMinimizer.minimize(context, tolerance, 0)
        if system.getNumConstraints():
            context.applyConstraints(1e-8)
        state = context.getState(positions=True, energy=True)
    except openmm.OpenMMException as error:
        raise MoleculeError(f"Expected a structure that can be minimised, got: {error}") from error
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    relaxed = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    if not np.isfinite(energy):
        raise MoleculeError(f"Expected a structure of finite energy, got {energy} kJ/mol.")
    return np.array(relaxed, dtype=np.float64), float(energy)


def check_structure(
    positions: Array, bonds: Sequence[tuple[int, int]], *, what: str = "positions"
) -> None:
    """Raise MoleculeError unless positions in nm are those of one sound molecule.

    Args:
        positions: nm, [N, 3].
        bonds: Bonded pairs.
        what: What the positions are, for the message: an argument or a file.
    """
    n = len(positions)
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        raise MoleculeError(f"Expected {what} to be finite, got NaN or inf for atoms {_few(bad)}.")
    reached, front = {0}, {0}
    joined = neighbour_lists(n, bonds, [(k,) for k in range(n)])
    while front:
        front = {k for i in front for k in joined[i]} - reached
        reached |= front
    if len(reached) < n:
        rest = sorted(set(range(n)) - reached)
        raise MoleculeError(
            f"Expected {what} of one molecule held together by bonds, got atoms {_few(rest)} not "
            f"bonded to atom 0 by any path."
        )
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    if bonds:
        lengths = np.array([distances[bond] for bond in bonds])
        if not 0.05 < lengths.mean() < 0.3:
            raise MoleculeError(
                f"Expected {what} in the right unit, with bonds of about 0.1 nm, got a mean bond "
                f"length of {lengths.mean():.4g} nm."
            )
        for k in (int(lengths.argmin()), int(lengths.argmax())):
            if not 0.05 < lengths[k] < 0.35:
                i, j = bonds[k]
                raise MoleculeError(
                    f"Expected {what} with bonds of 0.05 to 0.35 nm, got {lengths[k]:.4g} nm "
                    f"between atoms {i} and {j}."
                )
    distances[np.diag_indices(n)] = np.inf
    if distances.min() < 0.03:
        i, j = divmod(int(distances.argmin()), n)
        raise MoleculeError(
            f"Expected {what} with atoms at least 0.03 nm apart, got {distances.min():.4g} nm "
            f"between atoms {i} and {j}."
        )


def check_parameters(
    system: openmm.System,
    bonds: Sequence[tuple[int, int]],
    labels: Sequence[str],
    *,
    what: str,
) -> None:
    """Raise MoleculeError if a bond has no parameters: OpenMM leaves such a bond out in silence.

    Args:
        system: OpenMM System.
        bonds: Bonded pairs (i, j) with i < j.
        labels: Name of each atom.
        what: What the parameters are for, for the message.
    """
    held: set[frozenset[int]] = set()
    for k in range(system.getNumConstraints()):
        held.add(frozenset(system.getConstraintParameters(k)[:2]))
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce | openmm.CustomBondForce):
            for k in range(force.getNumBonds()):
                held.add(frozenset(force.getBondParameters(k)[:2]))
        elif isinstance(force, openmm.CustomCompoundBondForce):
            for k in range(force.getNumBonds()):
                held.update(map(frozenset, combinations(force.getBondParameters(k)[0], 2)))
    loose = [bond for bond in bonds if frozenset(bond) not in held]
    if loose:
        i, j = loose[0]
        raise MoleculeError(
            f"Expected parameters for every bond of {what}, got none for {labels[i]} to "
            f"{labels[j]} ({len(loose)} of {len(bonds)} bonds)."
        )


def _few(atoms: Sequence[int] | NDArray[np.intp], n: int = 5) -> str:
    """The first of a list of atoms, and how many there are where it is longer."""
    shown = [int(k) for k in atoms[:n]]
    return f"{shown}" if len(atoms) <= n else f"{shown} and {len(atoms) - n} more"


def tetrahedral_hands(
    positions: Array, bonds: Sequence[tuple[int, int]], elements: Sequence[str]
) -> dict[int, tuple[tuple[int, int, int], int]]:
    """Return the hand of every atom with four neighbours of which at most one is a hydrogen."""
    joined = neighbour_lists(len(elements), bonds, [(e == "H", k) for k, e in enumerate(elements)])
    hands = {}
    for centre, around in enumerate(joined):
        if len(around) == 4 and sum(elements[k] == "H" for k in around) <= 1:
            spokes = (around[0], around[1], around[2])
            hands[centre] = (spokes, 1 if handed_volume(positions, centre, spokes) > 0 else -1)
    return hands


def check_hands(positions: Array, hands: Hands, labels: Sequence[str]) -> None:
    """Raise MoleculeError unless every stereocentre has the hand it should have."""
    for centre, (spokes, sign) in hands.items():
        lengths = [float(np.linalg.norm(positions[k] - positions[centre])) for k in spokes]
        volume = sign * handed_volume(positions, centre, spokes) / float(np.prod(lengths))
        if volume < _FLAT:
            raise MoleculeError(
                f"Expected the stereocentre {labels[centre]} to keep its hand while minimising, "
                f"got it {'flat' if volume > -_FLAT else 'inverted'} (volume {volume:.3f})."
            )


def check_backbone(positions: Array, backbone: Backbone, labels: Sequence[str]) -> None:
    """Raise MoleculeError if a stereocentre or a peptide bond is not as it was built."""
    check_hands(positions, {x: (spokes, 1) for x, spokes in backbone.hands.items()}, labels)
    for a, b, c, d in backbone.peptide_bonds:
        omega = dihedral(positions[a], positions[b], positions[c], positions[d])
        if abs(omega) < math.pi / 2:
            raise MoleculeError(
                f"Expected a trans peptide bond {labels[b]} {labels[c]}, "
                f"got ω = {math.degrees(omega):.0f} degrees after minimising."
            )
