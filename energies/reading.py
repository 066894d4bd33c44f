"""What OpenMM reads, and the Systems it makes of it: whatever is wrong comes out as one sentence.

OpenMM quantities lose their units here and in `energies.molecule`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from energies.errors import MoleculeError
from energies.relaxing import check_parameters
from energies.shipped import located

Array = NDArray[np.float64]
FileT = TypeVar("FileT")

CONSTRAINTS = {None: None, "HBonds": app.HBonds, "AllBonds": app.AllBonds}
"""What a user may write, and what OpenMM calls it."""


def labels_of(topology: app.Topology) -> list[str]:
    """Return residue name, 1-based residue index and atom name of each atom: "ALA2-CA"."""
    return [f"{a.residue.name}{a.residue.index + 1}-{a.name}" for a in topology.atoms()]


def ordered(i: int, j: int) -> tuple[int, int]:
    """Return the pair with the smaller index first."""
    return (i, j) if i < j else (j, i)


def bonds_of(topology: app.Topology) -> list[tuple[int, int]]:
    """Return bonded pairs (i, j) with i < j, sorted."""
    return sorted({ordered(b[0].index, b[1].index) for b in topology.bonds()})


def check_constraints(constraints: str | None) -> None:
    """Raise MoleculeError unless `constraints` is a key of `CONSTRAINTS`."""
    if constraints not in CONSTRAINTS:
        raise MoleculeError(
            f"Expected constraints to be one of {list(CONSTRAINTS)}, got {constraints!r}."
        )


def load_forcefield(files: Sequence[str]) -> app.ForceField:
    """Load force field files: OpenMM's own by name, others by path.

    Raises:
        MoleculeError: One of them is missing or cannot be read.
    """
    if isinstance(files, str):
        raise MoleculeError(f"Expected forcefield to be a sequence of file names, got {files!r}.")
    try:
        return app.ForceField(*(str(located(file)) for file in files))
    except Exception as error:  # whatever the damage causes
        raise MoleculeError(
            f"Expected forcefield to be files that OpenMM finds and reads, got {list(files)}: "
            f"{reason(error)}."
        ) from error


def create_system(
    field: app.ForceField,
    topology: app.Topology,
    constraints: str | None,
    what: str,
    templates: Mapping[Any, str],
) -> openmm.System:
    """Make a System without cutoff.

    Args:
        field: The force field.
        topology: What it is applied to.
        constraints: A key of `CONSTRAINTS`.
        what: What the topology came from, for the message.
        templates: Residue -> template, where the force field leaves a choice.

    Raises:
        MoleculeError: A residue has no template, an atom or a bond no parameters.
    """
    try:
        system = field.createSystem(
            topology,
            nonbondedMethod=app.NoCutoff,
            constraints=CONSTRAINTS[constraints],
            rigidWater=False,
            removeCMMotion=False,
            residueTemplates=dict(templates),
        )
    except Exception as error:  # OpenMM raises it bare
        raise MoleculeError(
            f"Expected {what} to fit the force field, got: {reason(error)}."
        ) from error
    check_parameters(system, bonds_of(topology), labels_of(topology), what=what)
    return system


def read(reader: Callable[[str], FileT], path: str | Path, argument: str) -> FileT:
    """Read a file.

    Args:
        reader: What reads it, given its path.
        path: From the working directory, or the name of a file that this package ships.
        argument: What the user calls it, for the message.

    Raises:
        MoleculeError: The file is missing or cannot be read.
    """
    found = located(path)
    if not found.is_file():
        raise MoleculeError(f"Expected {argument} to be an existing file, got {path}.")
    try:
        return reader(str(found))
    except Exception as error:  # whatever the damage causes
        raise MoleculeError(
            f"Expected {argument} {path} to be readable, got: {reason(error)}."
        ) from error


def reason(error: Exception) -> str:
    """Return what another library says is wrong, on one line and without its web address."""
    text = f"no {error} in it" if isinstance(error, KeyError) else str(error)
    text = " ".join(text.split()).partition(" For more information")[0]
    return text.rstrip(".") or type(error).__name__


def read_pdb(path: str) -> app.PDBFile:
    """Read a PDB file that holds atoms."""
    with open(path, encoding="utf-8") as file:  # PDBFile leaves a file open when it fails.
        if not any(line.startswith(("ATOM", "HETATM")) for line in file):
            raise ValueError("no ATOM or HETATM record")
        file.seek(0)
        try:
            return app.PDBFile(file)
        except AssertionError as error:  # without a word
            raise ValueError("an ATOM record that is cut short") from error


def read_prmtop(path: str) -> app.AmberPrmtopFile:
    """Read an AMBER parameter file that has the sections it needs."""
    with open(path, encoding="utf-8") as file:
        if not any(line.startswith("%FLAG") for line in file):
            raise ValueError("no %FLAG, which starts every section of an AMBER parameter file")
    return app.AmberPrmtopFile(path)


def in_nm(positions: Any) -> Array:
    """Return OpenMM positions as numbers, nm, [N, 3]."""
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)
