"""The internal coordinates of a molecule in words: what is placed how, and how it moves."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from energies.base import Energy
from energies.forcefield import ForceField
from energies.internal import InternalCoordinates
from energies.symmetry import Rotor, atom_kinds, find_rotors, label_energy
from energies.zmatrix import Placement, bond_graph

if TYPE_CHECKING:
    from energies.molecule import Molecule

_UPRIGHT = 0.5
"""Sine of a torsion offset above which a centre is pyramidal: its hand is then fixed."""


def describe(
    molecule: "Molecule", energy: Energy | None = None, *, temperature: float = 300.0
) -> str:
    """Describe the internal coordinates of a molecule, one line for each placed atom.

    A line names the atom, the atoms that it is placed on, and its torsion: rotatable or stiff
    (with its harmonic standard deviation), symmetric and of which order, and the stereocentre
    whose hand it fixes.

    Args:
        molecule: A connected molecule at a minimum of `energy`.
        energy: U; the torch force field of the molecule's System if None.
        temperature: T of the harmonic standard deviations, kelvin.

    Returns:
        Lines of text.

    Raises:
        CoordinateError: Internal coordinates are not defined for the molecule.
        UnsupportedForceError: A force has no translation, and no `energy` was given.
    """
    if energy is None:
        energy = ForceField.from_openmm(molecule.system)
    coordinates = InternalCoordinates.from_molecule(molecule, energy, temperature=temperature)
    return "\n".join(
        [*_summary(molecule, coordinates), "", *_table(molecule, coordinates, energy)]
    )


def _summary(molecule: "Molecule", coordinates: InternalCoordinates) -> Iterator[str]:
    labels, zmatrix = molecule.labels, coordinates.zmatrix
    n_fixed = len(molecule.constrained_bonds)
    yield (
        f"{molecule.name}: {molecule.n_atoms} atoms, {coordinates.dim} coordinates "
        f"({coordinates.n_stiff} stiff, {coordinates.dim - coordinates.n_stiff} periodic), "
        f"{n_fixed} bonds of fixed length"
    )
    yield "root: " + " - ".join(labels[i] for i in zmatrix.root)
    tree = coordinates.placer.bonds
    closing = [f"{labels[i]} - {labels[j]}" for i, j in molecule.bonds if {i, j} not in tree]
    yield "bonds that close rings: " + (", ".join(closing) or "none")


def _table(
    molecule: "Molecule", coordinates: InternalCoordinates, energy: Energy
) -> Iterator[str]:
    labels = molecule.labels
    positions = torch.tensor(molecule.positions, dtype=torch.float64)
    rotors = {
        rotor.leader: _rotor_words(rotor, positions, energy, labels)
        for rotor in find_rotors(coordinates.zmatrix, molecule.elements, molecule.bonds, positions)
    }
    graph = bond_graph(molecule.n_atoms, molecule.bonds)
    kinds = atom_kinds(graph, molecule.elements)
    stereo = {i for i, near in enumerate(graph) if len({kinds[j] for j in near}) == len(near) > 2}
    head = ("level", "atom", "bond to", "angle with", "torsion with", "torsion")
    rows = [
        (str(level), *(labels[i] for i in (p.atom, p.a, p.b, p.c)),
         _torsion_words(p, coordinates, labels, stereo) + rotors.get(p.atom, ""))
        for level, placements in enumerate(coordinates.zmatrix.levels, start=1)
        for p in placements
    ]  # fmt: skip
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(f"{word:{w}}" for word, w in zip(row, widths, strict=True)).rstrip()


def _torsion_words(
    p: Placement, coordinates: InternalCoordinates, labels: list[str], stereo: set[int]
) -> str:
    """Say how the torsion of one placement moves."""
    if p.flexible:
        return "rotatable"
    row = coordinates.placer.row_of_torsion[p.atom]
    value = float(coordinates.centre[row])
    text = (
        f"stiff, {math.degrees(value):+.0f}° ± {math.degrees(coordinates.spread[row].norm()):.0f}°"
    )
    if p.leader == p.atom:
        return f"{text}, axis in a ring"
    text += f" from {labels[p.leader]}"
    if p.a in stereo and abs(math.sin(value)) > _UPRIGHT:
        text += f", fixes the hand of {labels[p.a]}"
    return text


def _rotor_words(rotor: Rotor, positions: torch.Tensor, energy: Energy, labels: list[str]) -> str:
    """Say that a rotor is symmetric, or by how much its labels differ."""
    others = ", ".join(labels[i] for i in rotor.followers)
    difference = label_energy(rotor, positions, energy)
    if difference == 0.0:
        return f", symmetric of order {rotor.order} with {others}"
    return (
        f", full circle (like {others} by its bonds, but the energy tells their labels apart "
        f"by {difference:.1g} kJ/mol)"
    )
