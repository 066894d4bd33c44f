import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from energies.errors import MoleculeError
from energies.molecule import Molecule
from energies.openmm import OpenMMEnergy
from energies.relaxing import check_hands, check_structure, tetrahedral_hands
from energies.sequence import AMINO_ACIDS
from energies.structure import dihedral, handed_volume

VACUUM = ("amber96.xml",)

# Extended alanine dipeptide in AMBER's atom order (HH31 CH3 HH32 HH33 C O | N H CA HA CB ...), Å.
EXTENDED = np.array(
    [
        [2.0000010, 1.0000000, -0.0000013], [2.0000010, 2.0900000, 0.0000001],
        [1.4862640, 2.4538490, 0.8898240], [1.4862590, 2.4538520, -0.8898200],
        [3.4274200, 2.6407950, -0.0000030], [4.3905800, 1.8774060, -0.0000066],
        [3.5553754, 3.9696488, -0.0000031], [2.7331200, 4.5561601, -0.0000013],
        [4.8532621, 4.6139253, -0.0000043], [5.4075960, 4.3155388, 0.8898152],
        [5.6613044, 4.2208425, -1.2321480], [5.1232615, 4.5213630, -2.1312016],
        [6.6304840, 4.7189354, -1.2057907], [5.8085401, 3.1408724, -1.2413850],
        [4.7126759, 6.1294185, 0.0000014], [3.6006445, 6.6527027, 0.0000062],
        [5.8460533, 6.8348833, 0.0000025], [6.7370014, 6.3591620, -0.0000004],
        [5.8460551, 8.2838837, 0.0000062], [4.8185761, 8.6477349, 0.0000104],
        [6.3597984, 8.6477313, 0.8898283], [6.3597900, 8.6477354, -0.8898187],
    ]
)  # fmt: skip

# AMBER's own parameter file (ff96, mbondi2 radii, OBC1) at these positions, kJ/mol.
REFERENCE = {
    "HarmonicBondForce": 0.086183,
    "HarmonicAngleForce": 1.514400,
    "PeriodicTorsionForce": 8.056335,
    "NonbondedForce": -97.745508,
    "CustomGBForce": -50.881099,
}


@pytest.fixture(scope="module")
def aldp() -> Molecule:
    return Molecule.from_sequence("ACE ALA NME")


def energy_of(system: openmm.System, positions: np.ndarray) -> tuple[float, float]:
    """Potential energy, kJ/mol, and root mean square force, kJ/mol/nm."""
    x = torch.tensor(positions, requires_grad=True)
    u = OpenMMEnergy(system).potential(x)
    (gradient,) = torch.autograd.grad(u, x)
    return u.item(), gradient.square().mean().sqrt().item()


def test_alanine_dipeptide_has_ambers_energies_term_by_term(aldp: Molecule) -> None:
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(aldp.system))
    for k, force in enumerate(system.getForces()):
        force.setForceGroup(k)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(EXTENDED / 10)
    energies = {
        force.getName(): context.getState(energy=True, groups={k})
        .getPotentialEnergy()
        .value_in_unit(unit.kilojoule_per_mole)
        for k, force in enumerate(system.getForces())
    }
    assert energies == pytest.approx(REFERENCE, rel=0, abs=1e-4)


def test_alanine_dipeptide_is_what_it_says(aldp: Molecule) -> None:
    assert aldp.name == "ACE ALA NME"
    assert aldp.n_atoms == 22
    assert aldp.labels[:3] == ["ACE1-HH31", "ACE1-CH3", "ACE1-HH32"]
    assert aldp.labels[8] == "ALA2-CA"
    assert "".join(aldp.elements) == "HCHHCONHCHCHHHCONHCHHH"
    assert len(aldp.bonds) == 21
    assert aldp.bonds == sorted(aldp.bonds)
    assert all(i < j for i, j in aldp.bonds)
    assert (4, 6) in aldp.bonds
    assert aldp.constrained_bonds == []
    energy, force = energy_of(aldp.system, aldp.positions)
    # C7eq, the lowest of the minima that the backbone starts lead to.
    assert energy == pytest.approx(-173.1706, abs=1e-3)
    assert force < 2e-3
    assert aldp.to_mdtraj().n_atoms == 22


def test_same_molecule_on_every_call(aldp: Molecule) -> None:
    again = Molecule.from_sequence(" ACE  ALA NME ")
    assert again.name == aldp.name
    assert np.array_equal(again.positions, aldp.positions)


@pytest.mark.parametrize(
    "constraints", ["HBonds", pytest.param("AllBonds", marks=pytest.mark.slow)]
)
def test_constraints_are_met(constraints: str, aldp: Molecule) -> None:
    rigid = Molecule.from_sequence("ACE ALA NME", constraints=constraints)
    assert rigid.system.getNumConstraints() == (12 if constraints == "HBonds" else 21)
    assert len(rigid.constrained_bonds) == rigid.system.getNumConstraints()
    for k in range(rigid.system.getNumConstraints()):
        i, j, length = rigid.system.getConstraintParameters(k)
        distance = np.linalg.norm(rigid.positions[i] - rigid.positions[j])
        assert distance == pytest.approx(length.value_in_unit(unit.nanometer), abs=1e-6)
    np.testing.assert_allclose(rigid.positions, aldp.positions, atol=0.05)


SEQUENCES = {f"ACE {name} NME": VACUUM for name in AMINO_ACIDS} | {
    # Both charged ends and both hands.
    **{f"{name} D{name}": VACUUM for name in AMINO_ACIDS},
    "ACE ASH NME": VACUUM,
    "ACE GLH NME": VACUUM,
    "ACE LYN NME": VACUUM,
    "ACE HIP NME": VACUUM,
    "ACE ALA NH2": VACUUM,
    "GLU LEU ILE LEU": VACUUM,
    "ACE DILE DTHR NME": VACUUM,
    "ACE CYX GLY GLY GLY CYX NME": VACUUM,
    "ACE HYP NME": ("amber14/protein.ff14SB.xml",),
    "ALA GLY": ("charmm36.xml",),
}
N_ATOMS = {"GLU LEU ILE LEU": 75, "ACE PRO NME": 26, "ACE PHE NME": 32, "ALA GLY": 20}


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_sequences_build_with_the_right_hand_and_trans(sequence: str) -> None:
    m = Molecule.from_sequence(sequence, forcefield=SEQUENCES[sequence])
    assert m.n_atoms == N_ATOMS.get(sequence, m.n_atoms)
    assert energy_of(m.system, m.positions)[1] < 2e-3
    index = {label: k for k, label in enumerate(m.labels)}
    names = sequence.split()
    for k, name in enumerate(names, start=1):
        sign = -1 if len(name) == 4 else 1
        for spokes in (("N", "C", "CB"),):
            atoms = [index.get(f"{name}{k}-{spoke}") for spoke in spokes]
            if None not in atoms:
                assert sign * handed_volume(m.positions, index[f"{name}{k}-CA"], atoms) > 1e-3
        second = {"ILE": ("CA", "CG1", "CG2"), "THR": ("CA", "OG1", "CG2")}.get(name[-3:])
        if second:
            atoms = [index[f"{name}{k}-{spoke}"] for spoke in second]
            assert sign * handed_volume(m.positions, index[f"{name}{k}-CB"], atoms) > 1e-3
        ends = [f"{name}{k}-CA", f"{name}{k}-C"]
        if k < len(names):
            ends += [f"{names[k]}{k + 1}-N", f"{names[k]}{k + 1}-CA"]
            if all(end in index for end in ends):
                omega = dihedral(*(m.positions[index[end]] for end in ends))
                assert abs(omega) > np.pi / 2


def test_mirrored_molecule_has_the_same_energy(aldp: Molecule) -> None:
    mirrored = Molecule.from_sequence("ACE DALA NME")
    assert energy_of(mirrored.system, mirrored.positions)[0] == pytest.approx(
        energy_of(aldp.system, aldp.positions)[0], abs=1e-4
    )


def test_pdb_round_trip(aldp: Molecule, tmp_path: Path) -> None:
    path = tmp_path / "aldp.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(aldp.topology, aldp.positions * 10, file)
    read = Molecule.from_pdb(path)
    assert read.name == "aldp"
    assert sorted(read.elements) == sorted(aldp.elements)
    assert read.n_atoms == 22
    assert energy_of(read.system, read.positions)[0] == pytest.approx(-173.1706, abs=1e-3)


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("ACE ALX NME", "residue 2 .* ALA, ARG, .*got 'ALX'"),
        ("", "at least one residue"),
        ("NME ALA", "cap NME at the end"),
        ("ALA ACE", "cap ACE at the end"),
        ("ACE CYX NME", "even number of CYX"),
        ("ALA", "template for residue ALA as a lone residue, got none"),
        ("ASH GLY", "template for residue ASH at the N end, got none"),
        ("ACE HYP NME", r"template for residue HYP, got none \(tried HYP\)"),
    ],
)
def test_impossible_sequence_is_named(sequence: str, message: str) -> None:
    with pytest.raises(MoleculeError, match=message):
        Molecule.from_sequence(sequence, forcefield=VACUUM)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(MoleculeError, match=r"Expected constraints to be one of .*'hbonds'"):
        Molecule.from_sequence("ACE ALA NME", constraints="hbonds")
    with pytest.raises(MoleculeError, match=r"Expected forcefield to be files .*amber66"):
        Molecule.from_sequence("ACE ALA NME", forcefield=("amber66.xml",))
    with pytest.raises(MoleculeError, match=r"sequence of file names, got 'amber96.xml'"):
        Molecule.from_sequence("ACE ALA NME", forcefield="amber96.xml")
    with pytest.raises(MoleculeError, match=r"path to be an existing file, got .*none\.pdb"):
        Molecule.from_pdb(tmp_path / "none.pdb")
    junk = tmp_path / "junk"
    junk.write_text("ATOM  junk\n")
    with pytest.raises(MoleculeError, match=r"path .*junk to be readable"):
        Molecule.from_pdb(junk)
    with pytest.raises(MoleculeError, match="prmtop to be an existing file"):
        Molecule.from_amber(tmp_path / "none.prmtop", junk)
    with pytest.raises(MoleculeError, match=r"prmtop .*junk to be readable"):
        Molecule.from_amber(junk, junk)
    with pytest.raises(MoleculeError, match=r"implicit_solvent to be one of .*'OBC9'"):
        Molecule.from_amber(junk, junk, implicit_solvent="OBC9")


def test_pdb_without_hydrogens_does_not_fit(aldp: Molecule, tmp_path: Path) -> None:
    modeller = app.Modeller(aldp.topology, aldp.positions * unit.nanometer)
    modeller.delete([a for a in modeller.topology.atoms() if a.element.symbol == "H"])
    path = tmp_path / "heavy.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, file)
    with pytest.raises(MoleculeError, match=r"Expected PDB file .*heavy\.pdb to fit"):
        Molecule.from_pdb(path)


def test_unsound_structures_are_named(aldp: Molecule) -> None:
    def check(change: str, message: str) -> None:
        x, bonds = aldp.positions.copy(), aldp.bonds
        if change == "nan":
            x[3, 1] = np.nan
        elif change == "angstrom":
            x *= 10
        elif change == "overlap":
            x[2] = x[0] + 0.01  # two hydrogens of one methyl
        elif change == "stretched":
            x[9] += 1.0
        else:
            bonds = [b for b in bonds if b != (4, 6)]
        with pytest.raises(MoleculeError, match=message):
            check_structure(x, bonds)

    check("nan", r"NaN or inf for atoms \[3\]")
    check("angstrom", "positions in the right unit, .* mean bond length of 1.2")
    check("overlap", r"at least 0.03 nm apart, got 0.0173.* nm between atoms 0 and 2")
    check("stretched", "bonds of 0.05 to 0.35 nm, got .* nm between atoms 8 and 9")
    check("cut", r"one molecule .* got atoms \[6, 7, 8, 9, 10\] and 11 more not bonded")


def test_inverted_centre_is_named(aldp: Molecule) -> None:
    hands = tetrahedral_hands(aldp.positions, aldp.bonds, aldp.elements)
    assert list(hands) == [8]
    with pytest.raises(MoleculeError, match=r"stereocentre ALA2-CA .* inverted"):
        check_hands(-aldp.positions, hands, aldp.labels)


def test_mismatched_positions_are_refused(aldp: Molecule) -> None:
    with pytest.raises(MoleculeError, match=r"shape \[22, 3\], got \[21, 3\]"):
        Molecule(aldp.name, aldp.topology, aldp.system, aldp.positions[1:].copy())


def test_importing_energies_does_not_import_openmm() -> None:
    code = (
        "import sys, energies, energies.base, energies.forcefield; "
        "assert not {'openmm', 'mdtraj'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
