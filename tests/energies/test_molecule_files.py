"""Files that cannot be a molecule: one sentence that names the file, whatever is wrong with it."""

import math
from collections.abc import Callable
from functools import cache
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from openmm import app

from energies.errors import MoleculeError
from energies.molecule import Molecule

VACUUM = ("amber96.xml",)

# AMBER's counts: atoms, types, bonds with and without H, angles with H; ... excluded, residues.
POINTERS = [3, 2, 2, 0, 1, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 1, 1, 0, 2, *(9 * [0]), 3, 0, 0]
# A water molecule with the parameters of SPC/E, as LEaP would write it.
PRMTOP = {
    "TITLE": ("20a4", ["water"]),
    "POINTERS": ("10I8", POINTERS),
    "ATOM_NAME": ("20a4", ["O", "H1", "H2"]),
    "CHARGE": ("5E16.8", [-15.44537, 7.722685, 7.722685]),
    "ATOMIC_NUMBER": ("10I8", [8, 1, 1]),
    "MASS": ("5E16.8", [16.0, 1.008, 1.008]),
    "ATOM_TYPE_INDEX": ("10I8", [1, 2, 2]),
    "NUMBER_EXCLUDED_ATOMS": ("10I8", [2, 1, 1]),
    "NONBONDED_PARM_INDEX": ("10I8", [1, 2, 2, 3]),
    "RESIDUE_LABEL": ("20a4", ["W3O"]),
    "RESIDUE_POINTER": ("10I8", [1]),
    "BOND_FORCE_CONSTANT": ("5E16.8", [553.0]),
    "BOND_EQUIL_VALUE": ("5E16.8", [1.0]),
    "ANGLE_FORCE_CONSTANT": ("5E16.8", [100.0]),
    "ANGLE_EQUIL_VALUE": ("5E16.8", [1.9106119]),
    "DIHEDRAL_FORCE_CONSTANT": ("5E16.8", []),
    "DIHEDRAL_PERIODICITY": ("5E16.8", []),
    "DIHEDRAL_PHASE": ("5E16.8", []),
    "SCEE_SCALE_FACTOR": ("5E16.8", []),
    "SCNB_SCALE_FACTOR": ("5E16.8", []),
    "SOLTY": ("5E16.8", [0.0, 0.0]),
    "LENNARD_JONES_ACOEF": ("5E16.8", [629362.166, 0.0, 0.0]),
    "LENNARD_JONES_BCOEF": ("5E16.8", [625.265777, 0.0, 0.0]),
    "BONDS_INC_HYDROGEN": ("10I8", [0, 3, 1, 0, 6, 1]),
    "BONDS_WITHOUT_HYDROGEN": ("10I8", []),
    "ANGLES_INC_HYDROGEN": ("10I8", [3, 0, 6, 1]),
    "ANGLES_WITHOUT_HYDROGEN": ("10I8", []),
    "DIHEDRALS_INC_HYDROGEN": ("10I8", []),
    "DIHEDRALS_WITHOUT_HYDROGEN": ("10I8", []),
    "EXCLUDED_ATOMS_LIST": ("10I8", [2, 3, 3, 0]),
    "HBOND_ACOEF": ("5E16.8", []),
    "HBOND_BCOEF": ("5E16.8", []),
    "HBCUT": ("5E16.8", []),
    "AMBER_ATOM_TYPE": ("20a4", ["OW", "HW", "HW"]),
    "RADII": ("5E16.8", [1.5, 0.8, 0.8]),
    "SCREEN": ("5E16.8", [0.85, 0.85, 0.85]),
}
WATER = [(0.0, 0.0, 0.0), (1.02, 0.0, 0.0), (-0.3, 0.95, 0.0)]  # Å


def prmtop(path: Path) -> Path:
    """Write PRMTOP in AMBER's fixed columns."""
    lines = ["%VERSION  VERSION_STAMP = V0001.000  DATE = 01/01/20  00:00:00"]
    for flag, (form, values) in PRMTOP.items():
        lines += [f"%FLAG {flag}", f"%FORMAT({form})"]
        if form == "20a4":
            fields, n = [f"{v:<4}" for v in values], 20
        elif form == "10I8":
            fields, n = [f"{v:8d}" for v in values], 10
        else:
            fields, n = [f"{v:16.8E}" for v in values], 5
        lines += ["".join(fields[k : k + n]) for k in range(0, len(fields), n)] or [""]
    path.write_text("\n".join(lines) + "\n")
    return path


def inpcrd(path: Path, xyz: list[tuple[float, float, float]]) -> Path:
    """Write positions in Å, two atoms a line."""
    flat = [f"{v:12.7f}" for atom in xyz for v in atom]
    rows = ["".join(flat[k : k + 6]) for k in range(0, len(flat), 6)]
    path.write_text("\n".join(["water", f"{len(xyz):6d}", *rows]) + "\n")
    return path


def test_from_amber_reads_what_leap_writes(tmp_path: Path) -> None:
    water = Molecule.from_amber(
        prmtop(tmp_path / "w.prmtop"), inpcrd(tmp_path / "w.inpcrd", WATER), implicit_solvent="HCT"
    )
    assert water.name == "w"
    assert water.labels == ["W3O1-O", "W3O1-H1", "W3O1-H2"]
    assert water.bonds == [(0, 1), (0, 2)]
    vacuum = Molecule.from_amber(
        tmp_path / "w.prmtop", tmp_path / "w.inpcrd", implicit_solvent=None
    )
    assert {f.getName() for f in vacuum.system.getForces()} < {
        f.getName() for f in water.system.getForces()
    }
    # No interaction but the harmonic ones in vacuum: the minimum has their own numbers.
    o, h1, h2 = vacuum.positions
    assert np.linalg.norm(h1 - o) == pytest.approx(0.1, abs=1e-6)
    cosine = np.dot(h1 - o, h2 - o) / 0.1**2
    assert np.degrees(np.arccos(cosine)) == pytest.approx(109.47, abs=0.01)


@pytest.mark.parametrize(
    ("xyz", "message"),
    [
        (WATER[:2], r"positions in inpcrd .*bad\.inpcrd of shape \[3, 3\], got \[2, 3\]"),
        (
            [*WATER[:2], WATER[0]],
            r"inpcrd .*bad\.inpcrd with bonds of .* got 0 nm between atoms 0",
        ),
        (
            [(v[0] / 10, v[1] / 10, 0.0) for v in WATER],
            r"bad\.inpcrd in the right unit, .* length of 0\.01",
        ),
    ],
)
def test_unsound_amber_coordinates(
    xyz: list[tuple[float, float, float]], message: str, tmp_path: Path
) -> None:
    path = inpcrd(tmp_path / "bad.inpcrd", xyz)
    with pytest.raises(MoleculeError, match=message):
        Molecule.from_amber(prmtop(tmp_path / "w.prmtop"), path)


@pytest.mark.parametrize(
    ("xyz", "message"),
    [
        ([(math.nan, 0.0, 0.0), *WATER[1:]], r"to be finite, got NaN or inf for atoms \[0\]"),
        (
            [*WATER[:2], (1.0, 0.1, 0.0)],
            r"at least 0\.03 nm apart, got 0\.0102 nm between atoms 1",
        ),
        ([tuple(10 * v for v in x) for x in WATER], r"right unit, .* mean bond length of 1\.008"),
    ],
)
def test_damaged_amber_coordinates_are_named(
    xyz: list[tuple[float, float, float]], message: str, tmp_path: Path
) -> None:
    path = inpcrd(tmp_path / "bad.inpcrd", xyz)
    with pytest.raises(MoleculeError, match=rf"positions in inpcrd .*bad\.inpcrd .*{message}"):
        Molecule.from_amber(prmtop(tmp_path / "w.prmtop"), path)


def test_atoms_of_amber_files_that_no_bond_holds_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRMTOP, "POINTERS", ("10I8", [*POINTERS[:2], 1, *POINTERS[3:]]))
    monkeypatch.setitem(PRMTOP, "BONDS_INC_HYDROGEN", ("10I8", [0, 3, 1]))
    path = inpcrd(tmp_path / "w.inpcrd", WATER)
    with pytest.raises(MoleculeError, match=r"one molecule held together .* got atoms \[2\] not"):
        Molecule.from_amber(prmtop(tmp_path / "w.prmtop"), path)


def test_prmtop_cut_short_anywhere_is_named(tmp_path: Path) -> None:
    coordinates = inpcrd(tmp_path / "w.inpcrd", WATER)
    whole = prmtop(tmp_path / "w.prmtop").read_text()
    path = tmp_path / "cut.prmtop"
    needed = whole.index("%FLAG SCREEN")
    for at in [0, *range(60, needed, needed // 25), needed]:
        path.write_text(whole[:at])
        with pytest.raises(MoleculeError) as error:
            Molecule.from_amber(path, coordinates)
        sentence = str(error.value)
        assert sentence.startswith(f"Expected prmtop {path} to ")
        assert len(sentence) > len(f"Expected prmtop {path} to be readable, got: .")
        assert "\n" not in sentence


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("no.prmtop", "w.inpcrd"), r"prmtop to be an existing file, got .*no\.prmtop"),
        (("w.prmtop", "no.inpcrd"), r"inpcrd to be an existing file, got .*no\.inpcrd"),
        (("w.inpcrd", "w.prmtop"), r"prmtop .*w\.inpcrd to be readable, got: no %FLAG"),
        (("w.prmtop", "w.prmtop"), r"inpcrd .*w\.prmtop to be readable, got: Unrecognized file"),
    ],
)
def test_amber_files_missing_or_exchanged(
    names: tuple[str, str], message: str, tmp_path: Path
) -> None:
    prmtop(tmp_path / "w.prmtop")
    inpcrd(tmp_path / "w.inpcrd", WATER)
    with pytest.raises(MoleculeError, match=message):
        Molecule.from_amber(*(tmp_path / name for name in names))


@cache
def alanine() -> tuple[str, ...]:
    """Lines of a sound PDB file of alanine dipeptide."""
    molecule = Molecule.from_sequence("ACE ALA NME", forcefield=VACUUM)
    out = StringIO()
    app.PDBFile.writeFile(molecule.topology, molecule.positions * 10, out)
    return tuple(out.getvalue().splitlines())


def moved(lines: list[str], change: Callable[[int, np.ndarray], np.ndarray]) -> list[str]:
    """Change the positions in Å, atom by atom."""
    result, k = [], 0
    for line in lines:
        if line.startswith(("ATOM", "HETATM")):
            x = change(k, np.array([float(line[c : c + 8]) for c in (30, 38, 46)]))
            line = line[:30] + "".join(f"{v:8.3f}" for v in x) + line[54:]
            k += 1
        result.append(line)
    return result


def first_atom(lines: list[str]) -> np.ndarray:
    line = next(line for line in lines if line.startswith(("ATOM", "HETATM")))
    return np.array([float(line[c : c + 8]) for c in (30, 38, 46)])


# What was done to the file, and what is said of it.
DAMAGE: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "nan": (
        lambda s: moved(s, lambda k, x: x * np.nan if k == 3 else x),
        r"to be finite, got NaN or inf for atoms \[3\]",
    ),
    "nm in place of Å": (
        lambda s: moved(s, lambda _, x: x / 10),
        r"in the right unit, .* mean bond length of 0\.012",
    ),
    "ten times too large": (
        lambda s: moved(s, lambda _, x: x * 10),
        r"in the right unit, .* mean bond length of 1\.2",
    ),
    "bond of no length": (
        lambda s: moved(s, lambda k, x: first_atom(s) if k == 1 else x),
        r"with bonds of 0\.05 to 0\.35 nm, got 0 nm between atoms 0 and 1",
    ),
    "overlap": (
        lambda s: moved(s, lambda k, x: first_atom(s) + 0.1 if k == 2 else x),
        r"at least 0\.03 nm apart, got 0\.0173.* nm between atoms 0 and 2",
    ),
    "a chain cut": (
        lambda s: [line.replace("NME A", "NME B") for line in s if "CONECT" not in line],
        r"of one molecule held together by bonds, got atoms \[16, 17, 18, 19, 20\] and 1 more",
    ),
    "no atom": (lambda s: [s[0], "END"], "to be readable, got: no ATOM or HETATM record"),
    "a line cut": (
        lambda s: [*s[:3], s[3][:14]],
        "to be readable, got: an ATOM record that is cut",
    ),
    "an atom missing": (
        lambda s: [line for line in s if " HA " not in line],
        r"to fit the force field, got: No template .*residue 1 \(ALA\).* missing 1 H atom",
    ),
    "bytes": (lambda s: ["\udc93"], "to be readable, got: 'utf-8' codec can't decode byte 0x93"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_pdb_is_named(kind: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    path = tmp_path / "bad.pdb"
    path.write_text("\n".join(damage(list(alanine()))) + "\n", errors="surrogateescape")
    with pytest.raises(MoleculeError, match=message) as caught:
        Molecule.from_pdb(path, forcefield=VACUUM)
    assert "bad.pdb" in str(caught.value)
    assert str(caught.value).startswith("Expected")
    assert "\n" not in str(caught.value)


DIMER = """
<ForceField>
 <AtomTypes><Type name="X" class="X" element="C" mass="12.0"/></AtomTypes>
 <Residues><Residue name="DIM">
  <Atom name="C1" type="X"/><Atom name="C2" type="X"/><Atom name="C3" type="X"/>
  <Bond atomName1="C1" atomName2="C2"/><Bond atomName1="C2" atomName2="C3"/>
 </Residue></Residues>
 {forces}
</ForceField>
"""
BONDS = (
    '<HarmonicBondForce><Bond class1="X" class2="{0}" length="0.15" k="1000"/></HarmonicBondForce>'
)
NONBONDED = """<NonbondedForce coulomb14scale="1" lj14scale="1">
 <Atom type="{0}" charge="0" sigma="0.3" epsilon="0.1"/></NonbondedForce>"""


def dimer(folder: Path, *forces: str) -> Molecule:
    """Three atoms in a row with a force field of their own."""
    topology = app.Topology()
    residue = topology.addResidue("DIM", topology.addChain())
    atoms = [topology.addAtom(f"C{k}", app.element.carbon, residue) for k in (1, 2, 3)]
    for pair in pairwise(atoms):
        topology.addBond(*pair)
    with (folder / "dimer.pdb").open("w") as file:
        app.PDBFile.writeFile(topology, [[0, 0, 0], [1.5, 0, 0], [2.0, 1.4, 0]], file)
    (folder / "dimer.xml").write_text(DIMER.format(forces="".join(forces)))
    return Molecule.from_pdb(folder / "dimer.pdb", forcefield=[str(folder / "dimer.xml")])


def test_a_force_field_of_ones_own(tmp_path: Path) -> None:
    molecule = dimer(tmp_path, BONDS.format("X"), NONBONDED.format("X"))
    lengths = [np.linalg.norm(molecule.positions[i] - molecule.positions[j])
               for i, j in molecule.bonds]  # fmt: skip
    assert lengths == pytest.approx([0.15, 0.15], abs=1e-4)


@pytest.mark.parametrize(
    ("forces", "message"),
    [
        (
            (BONDS.format("Y"), NONBONDED.format("X")),
            r"parameters for every bond of PDB file .*dimer\.pdb, got none for DIM1-C1 to DIM1-C2 "
            r"\(2 of 2 bonds\)",
        ),
        (
            (BONDS.format("X"), NONBONDED.format("Y")),
            r"PDB file .*dimer\.pdb to fit the force field, got: .*parameters",
        ),
    ],
)
def test_atoms_without_parameters_are_named(
    forces: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(MoleculeError, match=message):
        dimer(tmp_path, *forces)


def test_unreadable_force_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "junk.xml"
    path.write_text("<ForceField")
    with pytest.raises(MoleculeError, match=r"Expected forcefield to be files .*junk\.xml"):
        Molecule.from_sequence("ACE ALA NME", forcefield=[str(path)])


def test_file_of_the_working_directory_comes_before_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "butane.pdb").write_text("\n".join(alanine()) + "\n")
    assert Molecule.from_pdb("butane.pdb", forcefield=VACUUM).n_atoms == 22
