"""Rotors: which are found, and that one fundamental domain holds every shape once."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from torch import Tensor

from energies.base import R
from energies.errors import CoordinateError
from energies.forcefield import ForceField
from energies.internal import InternalCoordinates
from energies.molecule import Molecule
from energies.relaxing import bonded_only, minimise
from energies.symmetry import find_rotors, label_energy
from energies.target import MolecularTarget

Built = tuple[Molecule, ForceField, InternalCoordinates]


def prepared(molecule: Molecule) -> Built:
    energy = ForceField.from_openmm(molecule.system)
    return molecule, energy, InternalCoordinates.from_molecule(molecule, energy)


def add_improper(
    force: openmm.PeriodicTorsionForce, centre: int, spokes: Sequence[int], k: float
) -> None:
    """Hold a centre flat by terms in which its three neighbours are equal."""
    for i, j, l in itertools.permutations(spokes):  # noqa: E741
        force.addTorsion(i, j, centre, l, 2, math.pi, k / 6)


@cache
def even(sequence: str) -> Built:
    """A peptide in AMBER whose impropers do not go by the order of atoms, as its own do."""
    molecule = Molecule.from_sequence(sequence, forcefield=("amber96.xml",))
    bonds, system = set(molecule.bonds), molecule.system
    [k] = [
        k
        for k, force in enumerate(system.getForces())
        if isinstance(force, openmm.PeriodicTorsionForce)
    ]
    old, new = system.getForce(k), openmm.PeriodicTorsionForce()
    for i in range(old.getNumTorsions()):
        *atoms, n, phase, barrier = old.getTorsionParameters(i)
        if all((min(p), max(p)) in bonds for p in itertools.pairwise(atoms)):
            new.addTorsion(*atoms, n, phase, barrier)
        else:  # the third atom is the centre
            spokes = (*atoms[:2], atoms[3])
            add_improper(new, atoms[2], spokes, barrier.value_in_unit_system(unit.md_unit_system))
    system.removeForce(k)
    system.addForce(new)
    positions, _ = minimise(system, molecule.positions, tolerance=1e-3)
    return prepared(replace(molecule, positions=positions))


@cache
def by_hand(
    elements: str, bonds: str, angle: float = 400.0, torsion: float = 6.0, size: float = 0.15
) -> Built:
    """A molecule from its bonds, such as "0-1 1-2", with one kind of bond, angle and torsion."""
    pairs = [(int(b.split("-")[0]), int(b.split("-")[1])) for b in bonds.split()]
    near: list[list[int]] = [[] for _ in elements]
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    atoms = [
        topology.addAtom(f"{e}{i}", app.Element.getBySymbol(e), residue)
        for i, e in enumerate(elements)
    ]
    system = openmm.System()
    stretch, bend = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    turn, repel = openmm.PeriodicTorsionForce(), openmm.NonbondedForce()
    for atom in atoms:
        system.addParticle(atom.element.mass)
        repel.addParticle(0.0, size, 0.3)
    for i, j in pairs:
        topology.addBond(atoms[i], atoms[j])
        near[i].append(j)
        near[j].append(i)
        stretch.addBond(i, j, 0.109 if "H" in elements[i] + elements[j] else 0.15, 2.5e5)
    for j, around in enumerate(near):
        ideal = {2: 109.5, 3: 120.0, 4: 109.5}.get(len(around), 109.5)
        if len(around) == 3:
            add_improper(turn, j, around, 40.0)
        for i, k in itertools.combinations(around, 2):
            bend.addAngle(i, j, k, math.radians(ideal), angle)
    for j, k in pairs:
        ends = [(i, m) for i in near[j] if i != k for m in near[k] if m not in (i, j)]
        for i, m in ends:
            if i != m:
                turn.addTorsion(i, j, k, m, 3, 0.0, torsion / len(ends))
    repel.createExceptionsFromBonds(pairs, 1.0, 1.0)
    for force in (stretch, bend, turn, repel):
        system.addForce(force)
    start = np.random.default_rng(3).normal(scale=0.15, size=(len(elements), 3))
    start, _ = minimise(bonded_only(system), start, tolerance=1e-1)
    positions, _ = minimise(system, start, tolerance=1e-3)
    return prepared(Molecule("by hand", topology, system, positions))


ETHANOL = "CCOHHHHHH", "0-1 1-2 0-3 0-4 0-5 1-6 1-7 2-8"
CARBOXYLATE = "CCCOOHHHHH", "0-1 1-2 2-3 2-4 0-5 0-6 0-7 1-8 1-9"
BUTANE = "CCCCHHHHHHHHHH", "0-1 1-2 2-3 0-4 0-5 0-6 1-7 1-8 2-9 2-10 3-11 3-12 3-13"
# (CH3)3C-CH2-CH2-CH3, the quaternary carbon first.
TERT_BUTYL = (
    "CCCCCCC" + "H" * 16,
    "0-1 0-2 0-3 0-4 4-5 5-6 1-7 1-8 1-9 2-10 2-11 2-12 3-13 3-14 3-15 4-16 4-17 5-18 5-19 "
    "6-20 6-21 6-22",
)
CASES = {
    "propanoate": ((lambda: by_hand(*CARBOXYLATE)), [2, 3]),
    "butane": ((lambda: by_hand(*BUTANE)), [3, 3]),
    "tert-butyl": ((lambda: by_hand(*TERT_BUTYL)), [3, 3, 3, 3, 3]),
    "ammonium, carboxylates": ((lambda: even("ALA GLU")), [2, 2, 3, 3]),
    "phenyl": ((lambda: even("ACE PHE NME")), [2, 3, 3]),
    "phenol": ((lambda: even("ACE TYR NME")), [2, 3, 3]),
    "guanidinium": ((lambda: even("ACE ARG NME")), [2, 2, 2, 3, 3]),
    "amide": ((lambda: even("ACE ASN NME")), [2, 3, 3]),
}


def draw(coordinates: InternalCoordinates, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, coordinates.dim, generator=generator, dtype=torch.float64)
    turns = torch.rand(n, coordinates.dim, generator=generator, dtype=torch.float64)
    return torch.where(coordinates.periodic, (2 * turns - 1) * math.pi, x)


@pytest.mark.parametrize("case", CASES)
def test_every_image_of_a_shape_has_one_x_and_one_energy(case: str) -> None:
    build, orders = CASES[case]
    _, energy, coordinates = build()
    assert sorted(r.order for r in coordinates.rotors) == orders
    x = draw(coordinates, 50)
    xyz, log_det = coordinates.to_xyz(x)
    u = energy.potential(xyz)
    for rotor in coordinates.rotors:
        for turns in range(1, rotor.order):
            image = rotor.exchange(xyz, torch.full((50,), turns))
            assert ((image - xyz).abs().amax((1, 2)) > 0.01).all()
            assert torch.allclose(energy.potential(image), u, rtol=1e-9)
    mixed = coordinates.permute_rotors(xyz, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(energy.potential(mixed), u, rtol=1e-9)
    back, back_log_det = coordinates.from_xyz(mixed)
    assert (back - x).abs().max() < 1e-8
    assert (back_log_det + log_det).abs().max() < 1e-8


@pytest.mark.parametrize("case", CASES)
def test_exchange_keeps_bonds_and_comes_round(case: str) -> None:
    molecule, _, coordinates = CASES[case][0]()
    for rotor in coordinates.rotors:
        assert {
            tuple(sorted((rotor.source[i], rotor.source[j]))) for i, j in molecule.bonds
        } == set(molecule.bonds)
        i = list(range(molecule.n_atoms))
        for _ in range(rotor.order):
            i = [rotor.source[k] for k in i]
        assert i == list(range(molecule.n_atoms))


def test_a_flip_moves_both_halves_of_the_ring_and_nothing_else() -> None:
    molecule, _, coordinates = even("ACE TYR NME")
    flip = next(r for r in coordinates.rotors if r.order == 2)
    moved = {molecule.labels[i] for i, k in enumerate(flip.source) if i != k}
    names = ("CD1", "CD2", "CE1", "CE2", "HD1", "HD2", "HE1", "HE2")
    assert moved == {f"TYR2-{name}" for name in names}


@pytest.mark.parametrize(("atoms", "order"), [(ETHANOL, 3), (CARBOXYLATE, 6)])
def test_the_domain_holds_its_share_of_the_partition_function(
    atoms: Sequence[str], order: int
) -> None:
    """log Z by importance sampling from the whitened base, with and without symmetry."""
    molecule, energy, coordinates = by_hand(*atoms)
    positions = torch.tensor(molecule.positions)
    full = InternalCoordinates(coordinates.zmatrix, (), positions)
    n = coordinates.n_stiff
    full.rescale(coordinates.spread[coordinates.rows[:n], :n])
    estimates = []
    for view in (coordinates, full):
        target = MolecularTarget(energy, view)
        x = draw(view, 40_000)
        # A wider base than the harmonic one: weights stay bounded where U is softer than that.
        x[:, :n] *= 1.15
        log_q = -0.5 * (x[:, :n] / 1.15).square().sum(1)
        shift = float(energy.potential(positions)) / (R * 300.0)
        w = (target.log_prob(target.evaluate(x), 300.0) - log_q + shift).exp()
        estimates.append((w.mean().log(), w.std() / w.mean() / math.sqrt(len(w))))
    (one, one_se), (all_, all_se) = estimates
    error = math.hypot(one_se, all_se)
    assert error < 0.05
    assert float(all_ - one) == pytest.approx(math.log(order), abs=5 * error)


def test_force_field_has_the_last_word() -> None:
    """AMBER's impropers go by the order of atoms; CHARMM has none in a phenyl ring."""
    amber = Molecule.from_sequence("ACE PHE NME", forcefield=("amber96.xml",))
    energy = ForceField.from_openmm(amber.system)
    coordinates = InternalCoordinates.from_molecule(amber, energy)
    assert sorted(r.order for r in coordinates.rotors) == [3, 3]
    positions = torch.tensor(amber.positions)
    found = find_rotors(coordinates.zmatrix, amber.elements, amber.bonds, positions)
    differences = {r.order: label_energy(r, positions, energy) for r in found}
    assert differences[3] == 0.0
    assert 0.1 < differences[2] < 10.0


@pytest.mark.slow
def test_charmm_flips_a_phenyl_ring() -> None:
    molecule = Molecule.from_sequence("GLY PHE", forcefield=("charmm36.xml",))
    _, energy, coordinates = prepared(molecule)
    assert sorted(r.order for r in coordinates.rotors) == [2, 3]
    xyz, _ = coordinates.to_xyz(draw(coordinates, 20))
    mixed = coordinates.permute_rotors(xyz, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(energy.potential(mixed), energy.potential(xyz), rtol=1e-9)


def test_isopropyl_and_unlike_groups_are_no_rotors() -> None:
    molecule, _, coordinates = even("ACE ASN NME")
    axes = {molecule.labels[r.leader] for r in coordinates.rotors}
    assert axes == {"ACE1-HH31", "NME3-HH31", "ASN2-HD21"}
    leu = Molecule.from_sequence("ACE LEU NME", forcefield=("amber96.xml",))
    found = InternalCoordinates.from_molecule(leu, ForceField.from_openmm(leu.system)).rotors
    assert [r.order for r in found] == [3, 3, 3, 3]  # four methyls; their CH is chiral by label


RING = " ".join(f"{i}-{(i + 1) % 12}" for i in range(12))


def test_ring_torsions_are_stiff_or_flexible_by_their_hessian() -> None:
    """A ring of twelve with soft angles: its torsions swing wider the hotter it is."""
    molecule, energy, cold = by_hand("C" * 12, RING, angle=1.0, torsion=0.0, size=0.3)
    hot = InternalCoordinates.from_molecule(molecule, energy, temperature=1000.0)
    assert cold.dim == hot.dim == 30
    assert int(cold.periodic.sum()) == 0
    assert 0 < int(hot.periodic.sum()) < 9
    rows = hot.rows[hot.periodic]
    widths = cold.spread[rows].norm(dim=1) * math.sqrt(1000.0 / 300.0)
    assert (widths > math.pi / 3).all()
    stiff = [hot.placer.row_of_torsion[p.atom] for p in hot.zmatrix.placements if not p.flexible]
    assert (hot.spread[stiff].norm(dim=1) <= math.pi / 3).all()
    for coordinates in (cold, hot):
        x = draw(coordinates, 50)
        x[:, : coordinates.n_stiff] *= 0.3
        xyz, log_det = coordinates.to_xyz(x)
        ok = torch.isfinite(log_det)
        assert ok.double().mean() > 0.9
        assert (coordinates.from_xyz(xyz)[0] - x)[ok].abs().max() < 1e-8


def test_atoms_in_a_row_are_refused() -> None:
    molecule, _, coordinates = by_hand(*ETHANOL)
    positions = torch.tensor(molecule.positions)
    i, j, k = coordinates.zmatrix.root
    positions[k] = 2 * positions[j] - positions[i]
    with pytest.raises(CoordinateError, match=r"between 6 and 174 degrees .*= 180\.0"):
        InternalCoordinates(coordinates.zmatrix, (), positions)
