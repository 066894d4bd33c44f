"""Write a molecule as the AMBER files prmtop and inpcrd, to have some to read."""

from itertools import pairwise
from pathlib import Path

import openmm
from openmm.app.internal.customgbforces import GBSAOBC2Force

from energies.forcefield.reader import plain
from energies.molecule import Molecule

KCAL = 4.184
CHARGE = 18.2223  # AMBER's unit of charge: e²/(4πε₀) is 332 kcal/mol Å


def write_amber(molecule: Molecule, folder: Path) -> tuple[Path, Path]:
    """Write `molecule`, whose System is AMBER's in vacuum; return paths of prmtop and inpcrd."""
    forces = {type(force).__name__: force for force in molecule.system.getForces()}
    nonbonded = forces["NonbondedForce"]
    n = molecule.n_atoms
    atoms = list(molecule.topology.atoms())
    born = GBSAOBC2Force.getStandardParameters(molecule.topology)
    sections: dict[str, list] = {
        "ATOM_NAME": [a.name for a in atoms],
        "ATOMIC_NUMBER": [a.element.atomic_number for a in atoms],
        "MASS": [plain(molecule.system.getParticleMass(i)) for i in range(n)],
        "AMBER_ATOM_TYPE": [a.element.symbol for a in atoms],
        "RESIDUE_LABEL": [r.name for r in molecule.topology.residues()],
        "RESIDUE_POINTER": [next(r.atoms()).index + 1 for r in molecule.topology.residues()],
        "RADIUS_SET": ["modified"],
        "RADII": [10 * float(row[0]) for row in born],
        "SCREEN": [float(row[1]) for row in born],
        **_bonded(forces),
        **_nonbonded(nonbonded),
        **_torsions(forces["PeriodicTorsionForce"], nonbonded, molecule.bonds),
    }
    pointers = [0] * 31
    pointers[0] = n
    pointers[1] = max(sections["ATOM_TYPE_INDEX"])
    pointers[10] = len(sections["EXCLUDED_ATOMS_LIST"])
    pointers[11] = len(sections["RESIDUE_LABEL"])
    for place, name, width in ((3, "BONDS", 3), (5, "ANGLES", 4), (7, "DIHEDRALS", 5)):
        pointers[place] = len(sections[f"{name}_WITHOUT_HYDROGEN"]) // width
    for place, name in ((15, "BOND"), (16, "ANGLE"), (17, "DIHEDRAL")):
        pointers[place] = len(sections[f"{name}_FORCE_CONSTANT"])
    text = "%VERSION  VERSION_STAMP = V0001.000  DATE = 01/01/26  00:00:00\n"
    text += "%FLAG TITLE\n%FORMAT(20a4)\nown\n"
    for flag, values in {"POINTERS": pointers, **sections}.items():
        text += _section(flag, values)
    prmtop, inpcrd = folder / "molecule.prmtop", folder / "molecule.inpcrd"
    prmtop.write_text(text)
    flat = (10 * molecule.positions).reshape(-1)
    lines = ["".join(f"{x:12.7f}" for x in flat[k : k + 6]) for k in range(0, len(flat), 6)]
    inpcrd.write_text("own\n" + f"{n:5d}\n" + "\n".join(lines) + "\n")
    return prmtop, inpcrd


def _section(flag: str, values: list) -> str:
    if not values or isinstance(values[0], str):
        width, per_line, form, kind = 4, 20, "20a4", "s"
        values = [f"{v:<4}" for v in values]
    elif isinstance(values[0], int):
        width, per_line, form, kind = 8, 10, "10I8", "d"
    else:
        width, per_line, form, kind = 20, 5, "5E20.12", ".12E"
    cells = [f"{v:{width}{kind}}" for v in values]
    rows = [*range(0, len(cells), per_line), len(cells)]
    lines = ["".join(cells[a:b]) for a, b in pairwise(rows)] or [""]
    return f"%FLAG {flag}\n%FORMAT({form})\n" + "\n".join(lines) + "\n"


def _bonded(forces: dict[str, openmm.Force]) -> dict[str, list]:
    bonds, angles = forces["HarmonicBondForce"], forces["HarmonicAngleForce"]
    out: dict[str, list] = {
        key: []
        for name in ("BOND", "ANGLE")
        for key in (f"{name}_FORCE_CONSTANT", f"{name}_EQUIL_VALUE", f"{name}S_INC_HYDROGEN",
                    f"{name}S_WITHOUT_HYDROGEN")
    }  # fmt: skip
    for k in range(bonds.getNumBonds()):
        i, j, r0, constant = bonds.getBondParameters(k)
        out["BOND_FORCE_CONSTANT"].append(plain(constant) / (2 * KCAL * 100))
        out["BOND_EQUIL_VALUE"].append(10 * plain(r0))
        out["BONDS_WITHOUT_HYDROGEN"] += [3 * i, 3 * j, k + 1]
    for k in range(angles.getNumAngles()):
        i, j, m, theta0, constant = angles.getAngleParameters(k)
        out["ANGLE_FORCE_CONSTANT"].append(plain(constant) / (2 * KCAL))
        out["ANGLE_EQUIL_VALUE"].append(plain(theta0))
        out["ANGLES_WITHOUT_HYDROGEN"] += [3 * i, 3 * j, 3 * m, k + 1]
    return out


def _nonbonded(force: openmm.NonbondedForce) -> dict[str, list]:
    rows = [
        [plain(p) for p in force.getParticleParameters(i)] for i in range(force.getNumParticles())
    ]
    kinds = sorted({(sigma, epsilon) for _, sigma, epsilon in rows})
    index, a, b = [0] * len(kinds) ** 2, [], []
    for i, (sigma_i, epsilon_i) in enumerate(kinds):
        for j, (sigma_j, epsilon_j) in enumerate(kinds[: i + 1]):
            sixth = (10 * 0.5 * (sigma_i + sigma_j)) ** 6
            depth = 4 * (epsilon_i * epsilon_j) ** 0.5 / KCAL
            a.append(depth * sixth**2)
            b.append(depth * sixth)
            index[len(kinds) * i + j] = index[len(kinds) * j + i] = len(a)
    excluded: list[set[int]] = [set() for _ in rows]
    for k in range(force.getNumExceptions()):
        i, j = sorted(force.getExceptionParameters(k)[:2])
        excluded[i].add(j + 1)
    # An atom that excludes none lists 0.
    lists = [sorted(e) or [0] for e in excluded]
    return {
        "CHARGE": [CHARGE * charge for charge, _, _ in rows],
        "ATOM_TYPE_INDEX": [kinds.index((sigma, epsilon)) + 1 for _, sigma, epsilon in rows],
        "NONBONDED_PARM_INDEX": index,
        "LENNARD_JONES_ACOEF": a,
        "LENNARD_JONES_BCOEF": b,
        "NUMBER_EXCLUDED_ATOMS": [len(e) for e in lists],
        "EXCLUDED_ATOMS_LIST": [atom for e in lists for atom in e],
        "HBOND_ACOEF": [],
        "HBOND_BCOEF": [],
    }


def _torsions(
    force: openmm.PeriodicTorsionForce,
    nonbonded: openmm.NonbondedForce,
    bonds: list[tuple[int, int]],
) -> dict[str, list]:
    """Torsions; the first one on a 1-4 pair carries its scaled interaction."""
    scaled = set()
    for k in range(nonbonded.getNumExceptions()):
        i, j, charge, _, epsilon = nonbonded.getExceptionParameters(k)
        if plain(charge) or plain(epsilon):
            scaled.add((min(i, j), max(i, j)))
    rows = [force.getTorsionParameters(k) for k in range(force.getNumTorsions())]
    torsions = [(*row[:4], row[4], plain(row[5]), plain(row[6]) / KCAL) for row in rows]
    # OpenMM drops torsions without a barrier; here they are needed for what they carry.
    joined = {*bonds, *((j, i) for i, j in bonds)}
    for i, n in sorted(scaled - {(min(t[0], t[3]), max(t[0], t[3])) for t in torsions}):
        path = next((j, m) for j, m in joined if (i, j) in joined and (m, n) in joined)
        torsions.append((i, *path, n, 2, 0.0, 0.0))
    out: dict[str, list] = {
        "DIHEDRAL_FORCE_CONSTANT": [t[6] for t in torsions],
        "DIHEDRAL_PERIODICITY": [float(t[4]) for t in torsions],
        "DIHEDRAL_PHASE": [t[5] for t in torsions],
        "DIHEDRALS_INC_HYDROGEN": [],
        "DIHEDRALS_WITHOUT_HYDROGEN": [],
        "SCEE_SCALE_FACTOR": [1.2] * len(torsions),
        "SCNB_SCALE_FACTOR": [2.0] * len(torsions),
    }
    for k, torsion in enumerate(torsions):
        # A minus sign marks a torsion that carries nothing; atom 0 cannot have one.
        i, j, m, n = torsion[:4] if torsion[2] else torsion[3::-1]
        pair = (min(i, n), max(i, n))
        third = 3 * m if pair in scaled else -3 * m
        scaled.discard(pair)
        out["DIHEDRALS_WITHOUT_HYDROGEN"] += [3 * i, 3 * j, third, 3 * n, k + 1]
    return out
