"""A molecule: topology, OpenMM System and one energy-minimised structure.

This is where OpenMM quantities lose their units: everything a `Molecule` hands out besides the
OpenMM objects themselves is in nm and plain numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app

from energies.errors import MoleculeError
from energies.reading import (
    CONSTRAINTS,
    bonds_of,
    check_constraints,
    create_system,
    in_nm,
    labels_of,
    load_forcefield,
    ordered,
    read,
    read_pdb,
    read_prmtop,
    reason,
)
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
        if self.topology.getNumAtoms() != n:
            raise MoleculeError(
                f"Expected topology of {n} atoms as in system, "
                f"got one of {self.topology.getNumAtoms()}."
            )
        _check_positions(self.positions, self.topology, "positions")

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return int(self.system.getNumParticles())

    @property
    def bonds(self) -> list[tuple[int, int]]:
        """Bonded pairs (i, j) with i < j, sorted."""
        return bonds_of(self.topology)

    @property
    def constrained_bonds(self) -> list[tuple[int, int]]:
        """Bonds that the System holds at fixed length, pairs (i, j) with i < j, sorted."""
        parameters = map(
            self.system.getConstraintParameters, range(self.system.getNumConstraints())
        )
        return sorted({ordered(p[0], p[1]) for p in parameters} & set(self.bonds))

    @property
    def elements(self) -> list[str]:
        """Element symbol of each atom."""
        return [atom.element.symbol for atom in self.topology.atoms()]

    @property
    def labels(self) -> list[str]:
        """Residue name and 1-based index and atom name of each atom, such as "ALA2-CA"."""
        return labels_of(self.topology)

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
                NME and NH2. Ends without a cap are charged. Amino acids are L; a leading D
                mirrors any of them with all its stereocentres: "ACE DALA NME".
            forcefield: Force field files, OpenMM's own or paths.
            constraints: Bonds held at fixed length: None, "HBonds" or "AllBonds".

        Returns:
            The molecule in the lowest of a few minimised backbone conformations, its peptide
            bonds trans and its stereocentres as the names say; the same on every call.

        Raises:
            MoleculeError: Unknown residue, no template for it, unknown force field file, or a
                structure whose handedness did not survive minimising.
        """
        check_constraints(constraints)
        field = load_forcefield(forcefield)
        residues = resolve_sequence(sequence, field)
        topology, templates = build_topology(residues)
        # Constraints would hide the ideal bond lengths, so the structure is built without them.
        free = create_system(field, topology, None, f"sequence {sequence!r}", templates)
        best: tuple[float, Array] | None = None
        failure: MoleculeError | None = None
        labels = labels_of(topology)
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
            system = create_system(field, topology, constraints, what, templates)
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
            path: The file; bonds of residues that OpenMM does not know by name are read from its
                CONECT records.
            forcefield: Force field files, OpenMM's own or paths.
            constraints: Bonds held at fixed length: None, "HBonds" or "AllBonds".

        Raises:
            MoleculeError: The file is missing or unreadable, a residue matches no template, or
                the structure is not that of one sound molecule.
        """
        check_constraints(constraints)
        field = load_forcefield(forcefield)
        pdb = read(read_pdb, path, "path")
        what, positions = f"PDB file {path}", in_nm(pdb.positions)
        _check_positions(positions, pdb.topology, f"positions in {what}")
        system = create_system(field, pdb.topology, constraints, what, {})
        return cls._minimised(Path(path).stem, pdb.topology, system, positions)

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
        check_constraints(constraints)
        if implicit_solvent not in _IMPLICIT:
            raise MoleculeError(
                f"Expected implicit_solvent to be one of {list(_IMPLICIT)}, "
                f"got {implicit_solvent!r}."
            )
        parameters = read(read_prmtop, prmtop, "prmtop")
        positions = in_nm(read(app.AmberInpcrdFile, inpcrd, "inpcrd").positions)
        _check_positions(positions, parameters.topology, f"positions in inpcrd {inpcrd}")
        try:
            system = parameters.createSystem(
                nonbondedMethod=app.NoCutoff,
                constraints=CONSTRAINTS[constraints],
                rigidWater=False,
                removeCMMotion=False,
                implicitSolvent=_IMPLICIT[implicit_solvent],
            )
        except Exception as error:  # whatever the damage causes
            raise MoleculeError(
                f"Expected prmtop {prmtop} to give a System, got: {reason(error)}."
            ) from error
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


def _check_positions(positions: Array, topology: app.Topology, what: str) -> None:
    """Raise MoleculeError unless positions are those of the topology, in nm, and sound."""
    n = topology.getNumAtoms()
    if positions.shape != (n, 3):
        raise MoleculeError(f"Expected {what} of shape [{n}, 3], got {list(positions.shape)}.")
    check_structure(positions, bonds_of(topology), what=what)
