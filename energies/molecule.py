"""A molecule: topology, OpenMM System and one energy-minimised structure.

This is where OpenMM quantities lose their units: everything a `Molecule` hands out besides the
OpenMM objects themselves is in nm and plain numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from energies.errors import MoleculeError
from energies.relaxing import (
    bonded_only,
    check_backbone,
    check_hands,
    check_structure,
    ideal_geometry,
    minimise,
    tetrahedral_hands,
)
from energies.sequence import Backbone, build_topology, resolve_sequence
from energies.structure import place_atoms

if TYPE_CHECKING:
    import mdtraj

Array = NDArray[np.float64]

_CONSTRAINTS = {None: None, "HBonds": app.HBonds, "AllBonds": app.AllBonds}
_IMPLICIT = {None: None, "HCT": app.HCT, "OBC1": app.OBC1, "OBC2": app.OBC2, "GBn": app.GBn,
             "GBn2": app.GBn2}  # fmt: skip

# Backbone (φ, ψ) in degrees from which a sequence is minimised; the lowest end wins.
_STARTS = ((-150.0, 150.0), (-80.0, 75.0), (-65.0, -40.0))

_FORCE_TOLERANCE = 1e-3
"""Root mean square force at which minimising stops, kJ/mol/nm."""


@dataclass(frozen=True)
class Molecule:
    """A molecule whose Boltzmann distribution is sampled.

    Example:
        >>> molecule = Molecule.from_sequence("ACE ALA NME")
        >>> molecule.n_atoms, molecule.labels[8]
        (22, 'ALA2-CA')

    Attributes:
        name: What it is called in reports.
        topology: OpenMM topology: residues, atoms, bonds.
        system: OpenMM System: masses, forces, constraints; all pairs, no cutoff.
        positions: Energy-minimised structure, nm, float64 [N, 3].
    """

    name: str
    topology: app.Topology
    system: openmm.System
    positions: Array

    def __post_init__(self) -> None:
        n = self.system.getNumParticles()
        if self.positions.shape != (n, 3) or self.topology.getNumAtoms() != n:
            raise MoleculeError(
                f"Expected positions of shape [{n}, 3] and a topology of {n} atoms, got "
                f"{list(self.positions.shape)} and {self.topology.getNumAtoms()} atoms."
            )
        check_structure(self.positions, self.bonds)

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return int(self.system.getNumParticles())

    @property
    def bonds(self) -> list[tuple[int, int]]:
        """Bonded pairs (i, j) with i < j, sorted."""
        return sorted({_ordered(b[0].index, b[1].index) for b in self.topology.bonds()})

    @property
    def constrained_bonds(self) -> list[tuple[int, int]]:
        """Bonds that the System holds at fixed length, pairs (i, j) with i < j, sorted."""
        parameters = map(
            self.system.getConstraintParameters, range(self.system.getNumConstraints())
        )
        return sorted({_ordered(p[0], p[1]) for p in parameters} & set(self.bonds))

    @property
    def elements(self) -> list[str]:
        """Element symbol of each atom."""
        return [atom.element.symbol for atom in self.topology.atoms()]

    @property
    def labels(self) -> list[str]:
        """Residue name and 1-based index and atom name of each atom, such as "ALA2-CA"."""
        return _labels(self.topology)

    def to_mdtraj(self) -> "mdtraj.Topology":
        """Return the topology as mdtraj's, for trajectories and their analysis."""
        import mdtraj

        return mdtraj.Topology.from_openmm(self.topology)

    @classmethod
    def from_sequence(
        cls,
        sequence: str,
        *,
        forcefield: Sequence[str] = ("amber96.xml", "implicit/obc1.xml"),
        constraints: str | None = None,
    ) -> Self:
        """Build a peptide from its residue names.

        Args:
            sequence: Names separated by blanks from the N to the C end: amino acids, their
                protonation variants (HID, HIE, HIP, ASH, GLH, LYN, CYX...) and the caps ACE,
                NME and NH2. Ends without a cap are charged. A leading D mirrors: "DALA".
            forcefield: OpenMM force field files.
            constraints: Bonds held at fixed length: None, "HBonds" or "AllBonds".

        Returns:
            The molecule in the lowest of a few minimised backbone conformations, its peptide
            bonds trans and its stereocentres as the names say; the same on every call.

        Raises:
            MoleculeError: Unknown residue, no template for it, unknown force field file, or a
                structure whose handedness did not survive minimising.
        """
        _check_constraints(constraints)
        field = _load_forcefield(forcefield)
        residues = resolve_sequence(sequence, field)
        topology, templates = build_topology(residues)
        # Constraints would hide the ideal bond lengths, so the structure is built without them.
        free = _create_system(field, topology, None, f"sequence {sequence!r}", templates)
        best: tuple[float, Array] | None = None
        failure: MoleculeError | None = None
        labels = _labels(topology)
        for phi, psi in _STARTS:
            backbone = Backbone(topology, residues, math.radians(phi), math.radians(psi))
            start = place_atoms(ideal_geometry(free, backbone), backbone.first)
            relaxed, _ = minimise(bonded_only(free), start, tolerance=10.0)
            relaxed, energy = minimise(free, relaxed, tolerance=1.0)
            try:
                check_backbone(relaxed, backbone, labels)
            except MoleculeError as error:
                failure = error
                continue
            # Near ties keep the earlier start, so that rounding does not choose.
            if best is None or energy < best[0] - 1e-2:
                best = (energy, relaxed)
        if best is None:
            assert failure is not None
            raise failure
        positions, _ = minimise(free, best[1], tolerance=_FORCE_TOLERANCE)
        system = free
        if constraints is not None:
            what = f"sequence {sequence!r}"
            system = _create_system(field, topology, constraints, what, templates)
            positions, _ = minimise(system, positions, tolerance=_FORCE_TOLERANCE)
        name = " ".join(sequence.split())
        check_backbone(positions, backbone, labels)
        return cls(name=name, topology=topology, system=system, positions=positions)

    @classmethod
    def from_pdb(
        cls,
        path: str | Path,
        *,
        forcefield: Sequence[str] = ("amber96.xml", "implicit/obc1.xml"),
        constraints: str | None = None,
    ) -> Self:
        """Read a PDB file with all its hydrogens, keeping its atom order.

        Args:
            path: The file.
            forcefield: OpenMM force field files.
            constraints: Bonds held at fixed length: None, "HBonds" or "AllBonds".

        Raises:
            MoleculeError: The file is missing or unreadable, a residue matches no template.
        """
        _check_constraints(constraints)
        field = _load_forcefield(forcefield)
        pdb = _read(_read_pdb, path, "path")
        system = _create_system(field, pdb.topology, constraints, f"PDB file {path}", {})
        return cls._minimised(Path(path).stem, pdb.topology, system, _strip(pdb.positions))

    @classmethod
    def from_amber(
        cls,
        prmtop: str | Path,
        inpcrd: str | Path,
        *,
        implicit_solvent: str | None = "OBC1",
        constraints: str | None = None,
    ) -> Self:
        """Read an AMBER parameter file and coordinate file.

        Args:
            prmtop: Topology and parameters.
            inpcrd: Coordinates.
            implicit_solvent: None (vacuum), "HCT", "OBC1", "OBC2", "GBn" or "GBn2".
            constraints: Bonds held at fixed length: None, "HBonds" or "AllBonds".

        Raises:
            MoleculeError: A file is missing or unreadable, or the two do not belong together.
        """
        _check_constraints(constraints)
        if implicit_solvent not in _IMPLICIT:
            raise MoleculeError(
                f"Expected implicit_solvent to be one of {list(_IMPLICIT)}, "
                f"got {implicit_solvent!r}."
            )
        parameters = _read(app.AmberPrmtopFile, prmtop, "prmtop")
        coordinates = _read(app.AmberInpcrdFile, inpcrd, "inpcrd")
        try:
            system = parameters.createSystem(
                nonbondedMethod=app.NoCutoff,
                constraints=_CONSTRAINTS[constraints],
                rigidWater=False,
                removeCMMotion=False,
                implicitSolvent=_IMPLICIT[implicit_solvent],
            )
        except (ValueError, openmm.OpenMMException) as error:
            raise MoleculeError(
                f"Expected prmtop {prmtop} to give a System, got: {error}"
            ) from error
        positions = _strip(coordinates.positions)
        return cls._minimised(Path(prmtop).stem, parameters.topology, system, positions)

    @classmethod
    def _minimised(
        cls, name: str, topology: app.Topology, system: openmm.System, positions: Array
    ) -> Self:
        """Minimise a given structure, keeping the handedness it came with."""
        given = cls(name=name, topology=topology, system=system, positions=positions)
        hands = tetrahedral_hands(positions, given.bonds, given.elements)
        relaxed, _ = minimise(system, positions, tolerance=_FORCE_TOLERANCE)
        molecule = cls(name=name, topology=topology, system=system, positions=relaxed)
        check_hands(relaxed, hands, molecule.labels)
        return molecule


def _labels(topology: app.Topology) -> list[str]:
    return [f"{a.residue.name}{a.residue.index + 1}-{a.name}" for a in topology.atoms()]


def _ordered(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)


def _check_constraints(constraints: str | None) -> None:
    if constraints not in _CONSTRAINTS:
        raise MoleculeError(
            f"Expected constraints to be one of {list(_CONSTRAINTS)}, got {constraints!r}."
        )


def _load_forcefield(files: Sequence[str]) -> app.ForceField:
    if isinstance(files, str):
        raise MoleculeError(f"Expected forcefield to be a sequence of file names, got {files!r}.")
    try:
        return app.ForceField(*files)
    except (ValueError, OSError) as error:
        raise MoleculeError(
            f"Expected forcefield to be files that OpenMM finds, got {list(files)}: {error}"
        ) from error


def _create_system(
    field: app.ForceField,
    topology: app.Topology,
    constraints: str | None,
    what: str,
    templates: Mapping[Any, str],
) -> openmm.System:
    try:
        return field.createSystem(
            topology,
            nonbondedMethod=app.NoCutoff,
            constraints=_CONSTRAINTS[constraints],
            rigidWater=False,
            removeCMMotion=False,
            residueTemplates=dict(templates),
        )
    except Exception as error:  # OpenMM raises it bare
        raise MoleculeError(f"Expected {what} to fit the force field, got: {error}") from error


def _read(reader: Any, path: str | Path, argument: str) -> Any:
    if not Path(path).is_file():
        raise MoleculeError(f"Expected {argument} to be an existing file, got {path}.")
    try:
        return reader(str(path))
    except Exception as error:  # whatever the damage causes
        raise MoleculeError(f"Expected {argument} {path} to be readable, got: {error}") from error


def _read_pdb(path: str) -> app.PDBFile:
    with open(path, encoding="utf-8") as file:  # PDBFile leaves a file open when it fails.
        return app.PDBFile(file)


def _strip(positions: Any) -> Array:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)
