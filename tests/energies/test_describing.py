"""The description of coordinates: every atom once, and what the molecule is known to have."""

import re
import subprocess
import sys

import pytest

import energies
from energies.molecule import Molecule


def lines_of(text: str) -> dict[str, str]:
    """Atom -> what is said of its torsion."""
    rows = text.splitlines()[4:]
    return {row.split()[1]: re.split(r"\s{2,}", row, maxsplit=5)[5] for row in rows[1:]}


def test_alanine_dipeptide() -> None:
    molecule = Molecule.from_sequence("ACE ALA NME", forcefield=("amber96.xml",))
    text = energies.describe(molecule)
    first, root, rings, *_ = text.splitlines()
    assert first == (
        "ACE ALA NME: 22 atoms, 60 coordinates (53 stiff, 7 periodic), 0 bonds of fixed length"
    )
    assert root == "root: ALA2-N - ALA2-CA - ALA2-C"
    assert rings == "bonds that close rings: none"
    torsions = lines_of(text)
    assert set(torsions) == set(molecule.labels) - {"ALA2-N", "ALA2-CA", "ALA2-C"}
    assert torsions["ACE1-C"] == "rotatable"
    assert torsions["ALA2-HB1"] == "rotatable, symmetric of order 3 with ALA2-HB2, ALA2-HB3"
    assert re.fullmatch(
        r"stiff, -12\d° ± \d° from ALA2-C, fixes the hand of ALA2-CA", torsions["ALA2-CB"]
    )
    assert sum("rotatable" in t for t in torsions.values()) == 7
    assert sum("hand of" in t for t in torsions.values()) == 2


def test_rings_constraints_and_labels_told_apart() -> None:
    molecule = Molecule.from_sequence(
        "ACE PHE NME", forcefield=("amber96.xml",), constraints="HBonds"
    )
    text = energies.describe(molecule)
    assert "74 coordinates (66 stiff, 8 periodic), 16 bonds of fixed length" in text
    assert re.search("bonds that close rings: PHE2-C(Z|E.) - PHE2-C(Z|E.)\n", text)
    torsions = lines_of(text)
    assert torsions["PHE2-CE1"].endswith("axis in a ring")
    assert re.match(
        r"rotatable, full circle \(like PHE2-CD2 .* apart by .* kJ/mol\)", torsions["PHE2-CD1"]
    )


def test_importing_energies_loads_no_openmm() -> None:
    code = (
        "import sys, energies; assert 'openmm' not in sys.modules and 'torch' not in sys.modules;"
        "energies.describe; assert 'openmm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'descibe'"):
        energies.descibe  # noqa: B018
