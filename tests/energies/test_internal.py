"""Internal coordinates of real molecules: round trips, determinants, chirality, symmetry."""

import copy
import math
import random
from dataclasses import replace
from functools import cache

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from torch import Tensor

from energies.base import R
from energies.dihedrals import torsions
from energies.errors import CoordinateError, EnergyInputError
from energies.forcefield import ForceField
from energies.internal import InternalCoordinates
from energies.molecule import Molecule
from energies.sequence import AMINO_ACIDS
from energies.target import MolecularTarget
from energies.zmatrix import build_zmatrix

AMBER96, FF99 = ("amber96.xml", "implicit/obc1.xml"), ("amber99sbildn.xml", "amber99_obc.xml")
VACUUM = ("amber96.xml",)


@cache
def build(
    sequence: str,
    forcefield: tuple[str, ...] = AMBER96,
    constraints: str | None = None,
) -> tuple[Molecule, ForceField, InternalCoordinates]:
    molecule = Molecule.from_sequence(sequence, forcefield=forcefield, constraints=constraints)
    energy = ForceField.from_openmm(molecule.system)
    return molecule, energy, InternalCoordinates.from_molecule(molecule, energy)


# Methyls; a carboxylate and an ammonium; rings; two stereocentres in one residue.
SEQUENCES = [
    "ACE ALA NME",
    "ALA ALA",
    "ACE PRO NME",
    "ACE PHE NME",
    "ACE ILE NME",
    "ACE THR ASN NME",
]

TETRA, HEXA = "ACE ALA ALA ALA NME", "ACE ALA ALA ALA ALA ALA NME"
# Arguments of `build`, number of coordinates; the dimensions are those of the publications.
NAMED = {
    "aldp": (("ACE ALA NME", AMBER96), 60),
    "aldp_vacuum": (("ACE ALA NME", VACUUM), 60),
    "tetra": ((TETRA, FF99), 120),
    "tetra_hbonds": ((TETRA, FF99, "HBonds"), 98),
    "hexa": ((HEXA, FF99), 180),
    "hexa_hbonds": ((HEXA, FF99, "HBonds"), 148),
    "elil": (("GLU LEU ILE LEU", FF99), 219),
    "proline": (("ACE PRO NME", AMBER96), 72),
}


def drawn_sequences() -> list[str]:
    """Ten capped dipeptides drawn at random; all twenty amino acids occur."""
    names = list(AMINO_ACIDS)
    random.Random(0).shuffle(names)
    return [f"ACE {a} {b} NME" for a, b in zip(names[::2], names[1::2], strict=True)]


def draw(coordinates: InternalCoordinates, n: int, seed: int = 0, *, width: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = width * torch.randn(n, coordinates.dim, generator=generator, dtype=torch.float64)
    turns = torch.rand(n, coordinates.dim, generator=generator, dtype=torch.float64)
    return torch.where(coordinates.periodic, (2 * turns - 1) * math.pi, x)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_round_trip(sequence: str) -> None:
    _, _, coordinates = build(sequence)
    x = draw(coordinates, 100)
    xyz, log_det = coordinates.to_xyz(x)
    back, back_log_det = coordinates.from_xyz(xyz)
    assert (back - x).abs().max() < 1e-9
    assert (log_det + back_log_det).abs().max() < 1e-9
    again, _ = coordinates.to_xyz(back)
    assert (again - xyz).abs().max() < 1e-9


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_reference_structure_is_the_centre(sequence: str) -> None:
    molecule, energy, coordinates = build(sequence)
    positions = torch.tensor(molecule.positions)
    x, _ = coordinates.from_xyz(positions)
    assert x[: coordinates.n_stiff].abs().max() < 1e-9
    u = energy.potential(torch.stack([positions, coordinates.to_xyz(x)[0]]))
    assert float(u[0] - u[1]) == pytest.approx(0.0, abs=1e-8)


def check_log_det(coordinates: InternalCoordinates, x: Tensor) -> None:
    """Compare the closed form at one point with the determinant of autograd's Jacobian."""
    order = coordinates.placer.order

    def free(x: Tensor) -> Tensor:
        """Positions without the six numbers that the frame of the root atoms fixes."""
        p = coordinates.to_xyz(x)[0][order]
        return torch.cat([p[1, :1], p[2, :2], p[3:].reshape(-1)])

    # Constants in place of bond lengths: the determinant is that of the free coordinates alone,
    # read off by the gradient of all the others at the same point.
    jacobian = torch.func.jacrev(free)(x)
    p = coordinates.to_xyz(x)[0][order]
    q = coordinates.placer.measure(coordinates.to_xyz(x)[0])
    fixed = sorted(set(range(coordinates.placer.angle_row)) - set(coordinates.rows.tolist()))
    if fixed:

        def stretched(lengths: Tensor) -> Tensor:
            whole = q.index_copy(0, torch.tensor(fixed), lengths)
            p = coordinates.placer.place(whole)[0][order]
            return torch.cat([p[1, :1], p[2, :2], p[3:].reshape(-1)])

        jacobian = torch.cat([jacobian, torch.func.jacrev(stretched)(q[fixed])], dim=1)
    # Turning the frame moves atom 1 by |x1| in two directions and atom 2 by |y2| in one.
    frame = 2 * p[1, 0].log() + p[2, 1].log()
    expected = torch.linalg.slogdet(jacobian).logabsdet + frame
    assert float(coordinates.to_xyz(x)[1]) == pytest.approx(float(expected), abs=1e-8)


@pytest.mark.parametrize("name", NAMED)
def test_named_molecules(name: str) -> None:
    arguments, dim = NAMED[name]
    molecule, energy, coordinates = build(*arguments)
    assert coordinates.dim == dim == 3 * molecule.n_atoms - 6 - len(molecule.constrained_bonds)
    x = draw(coordinates, 20)
    xyz, log_det = coordinates.to_xyz(x)
    back, back_log_det = coordinates.from_xyz(xyz)
    assert (back - x).abs().max() < 1e-9
    assert (log_det + back_log_det).abs().max() < 1e-9
    check_log_det(coordinates, x[0])
    # Torsions at the minimum, the rest from the base: half of RT for each stiff coordinate.
    minimum = coordinates.from_xyz(torch.tensor(molecule.positions))[0]
    u = energy.potential(coordinates.to_xyz(torch.where(coordinates.periodic, minimum, x))[0])
    rise = u - energy.potential(torch.tensor(molecule.positions))
    assert float(rise.median()) / (R * 300.0 * coordinates.n_stiff) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("sequence", drawn_sequences())
def test_drawn_molecules(sequence: str) -> None:
    _, _, coordinates = build(sequence, VACUUM)
    x = draw(coordinates, 20)
    xyz, log_det = coordinates.to_xyz(x)
    inside = torch.isfinite(log_det)
    assert inside.all()
    back, back_log_det = coordinates.from_xyz(xyz)
    assert (back - x).abs().max() < 1e-9
    assert (log_det + back_log_det).abs().max() < 1e-9
    check_log_det(coordinates, x[0])


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_log_det_against_autograd(sequence: str) -> None:
    _, _, coordinates = build(sequence)
    for x in draw(coordinates, 3):
        check_log_det(coordinates, x)


@pytest.mark.parametrize(
    ("sequence", "constraints"),
    [("ACE ALA NME", None), ("ACE ALA NME", "HBonds"), ("ACE PRO NME", None), ("LYS PHE", None)],
)
def test_frames_of_dynamics_are_inside(sequence: str, constraints: str | None) -> None:
    """Thermal frames of OpenMM go to x and back; those of bonds let loose are off constraints."""
    molecule, _, coordinates = build(sequence, VACUUM, constraints)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.001)
    integrator.setRandomNumberSeed(1)
    integrator.setConstraintTolerance(1e-10)
    context = openmm.Context(
        molecule.system, integrator, openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(300.0, 1)
    frames = []
    for _ in range(20):
        integrator.step(50)
        state = context.getState(positions=True)
        frames.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    xyz = torch.stack([torch.tensor(frame) for frame in frames])
    x, log_det = coordinates.from_xyz(xyz)
    assert torch.isfinite(log_det).all()
    again, again_log_det = coordinates.to_xyz(x)
    assert (again_log_det + log_det).abs().max() < 1e-9
    assert (coordinates.from_xyz(again)[0] - x).abs().max() < 1e-9
    # The same shape up to the names of equal atoms: sorted distances from the first root atom.
    root = coordinates.zmatrix.root[1]
    far = [(p - p[:, root : root + 1]).norm(dim=-1).sort(-1).values for p in (xyz, again)]
    assert (far[0] - far[1]).abs().max() < 1e-6


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_chirality_is_kept(sequence: str) -> None:
    molecule, _, coordinates = build(sequence)
    labels = molecule.labels
    xyz, log_det = coordinates.to_xyz(draw(coordinates, 200, width=2.0))
    xyz = xyz[torch.isfinite(log_det)]
    assert len(xyz) > 150
    for label in labels:
        residue = label.removesuffix("-CA")
        four = [f"{residue}-{name}" for name in ("CA", "N", "C", "CB")]
        if label.endswith("-CA") and all(name in labels for name in four):
            a, n, c, b = (xyz[:, labels.index(name)] for name in four)
            volume = torch.linalg.det(torch.stack([n - a, c - a, b - a], dim=1))
            assert (volume > 0).all(), label


def test_mirror_image_is_outside_the_domain() -> None:
    molecule, _, coordinates = build("ACE ALA NME")
    mirrored = torch.tensor(molecule.positions) * torch.tensor([1.0, 1.0, -1.0])
    assert float(coordinates.from_xyz(mirrored)[1]) == -math.inf


def test_alanine_dipeptide_is_what_its_neighbours_sample() -> None:
    molecule, _, coordinates = build("ACE ALA NME")
    assert coordinates.dim == 60
    assert int(coordinates.periodic.sum()) == 7
    assert sorted(r.order for r in coordinates.rotors) == [3, 3, 3]
    assert [len(level) for level in coordinates.zmatrix.levels] == [6, 7, 6]
    names = {label: i for i, label in enumerate(molecule.labels)}
    quadruples = [
        [names[f"{r}-{a}"] for r, a in four]
        for four in (
            [("ACE1", "C"), ("ALA2", "N"), ("ALA2", "CA"), ("ALA2", "C")],
            [("ALA2", "N"), ("ALA2", "CA"), ("ALA2", "C"), ("NME3", "N")],
        )
    ]
    x = draw(coordinates, 50)
    angles = torsions(coordinates.to_xyz(x)[0], torch.tensor(quadruples))
    columns = [coordinates.names.index(f"t({atom})") for atom in ("ACE1-C", "NME3-N")]
    turn = (angles - x[:, columns] + math.pi) % (2 * math.pi) - math.pi
    assert turn.abs().max() < 1e-9


def test_whitening_makes_the_harmonic_target_normal() -> None:
    molecule, energy, coordinates = build("ACE ALA NME")
    target = MolecularTarget(energy, coordinates)
    x = draw(coordinates, 2000)
    minimum = coordinates.from_xyz(torch.tensor(molecule.positions))[0]
    x = torch.where(coordinates.periodic, minimum, x)
    log_p = target.log_prob(target.evaluate(x), 300.0)
    log_q = -0.5 * (x**2).sum(1)
    # Unscaled coordinates would give a spread of hundreds; anharmonicity alone leaves about 0.5.
    assert float((log_p - log_q).std()) < 0.8


def test_rotors_cover_each_shape_once() -> None:
    _, energy, coordinates = build(
        "ALA ALA"
    )  # two CH3, NH3+; the force field breaks the symmetry of COO-
    assert sorted(r.order for r in coordinates.rotors) == [3, 3, 3]
    x = draw(coordinates, 200)
    xyz, _ = coordinates.to_xyz(x)
    mixed = coordinates.permute_rotors(xyz, generator=torch.Generator().manual_seed(1))
    moved = (mixed - xyz).abs().amax((1, 2)) > 0.01
    # Labels stay put with probability 1/27: 7.4 of 200, standard error 2.7.
    assert int(moved.sum()) > 200 - 7.4 - 6 * 2.7
    assert torch.allclose(energy.potential(mixed), energy.potential(xyz), rtol=1e-9)
    back, log_det = coordinates.from_xyz(mixed)
    assert (back - x).abs().max() < 1e-8
    assert torch.isfinite(log_det).all()


def test_out_of_domain_rows_are_marked_and_harmless() -> None:
    _, energy, coordinates = build("ACE ALA NME")
    target = MolecularTarget(energy, coordinates)
    x = draw(coordinates, 4)
    x[1, 0] = -1e3  # a bond of negative length
    x[2, coordinates.names.index("t(ALA2-CB)")] = 1e3  # the other chirality, many times over
    x.requires_grad_()
    log_p = target.log_prob(target.evaluate(x), 300.0)
    assert torch.isfinite(log_p).tolist() == [True, False, False, True]
    assert coordinates.in_domain(x).tolist() == [True, False, False, True]
    log_p[[0, 3]].sum().backward()
    alone = draw(coordinates, 4)[[0, 3]].requires_grad_()
    target.log_prob(target.evaluate(alone), 300.0).sum().backward()
    assert torch.allclose(x.grad[[0, 3]], alone.grad, rtol=1e-10)
    assert (x.grad[[1, 2]] == 0).all()


def test_constrained_bonds_are_constants() -> None:
    molecule, _, coordinates = build("ACE ALA NME", VACUUM, "HBonds")
    assert coordinates.dim == 60 - 12
    xyz, _ = coordinates.to_xyz(draw(coordinates, 20))
    for i, j in molecule.constrained_bonds:
        length = (xyz[:, i] - xyz[:, j]).norm(dim=-1)
        reference = torch.tensor(molecule.positions[i] - molecule.positions[j]).norm()
        assert (length - reference).abs().max() < 1e-9
    # Frames whose hydrogens were free to stretch are not frames of this molecule.
    loose = build("ACE ALA NME", VACUUM)[2]
    frames, _ = loose.to_xyz(0.1 * draw(loose, 20))
    assert torch.isfinite(coordinates.from_xyz(frames)[1]).all()
    frames, _ = loose.to_xyz(draw(loose, 20))
    assert (coordinates.from_xyz(frames)[1] == -math.inf).double().mean() > 0.9


def all_bonds(sequence: str) -> Molecule:
    """A molecule with every bond held at its length in the minimum."""
    molecule = build(sequence, VACUUM)[0]
    system = copy.deepcopy(molecule.system)
    for i, j in molecule.bonds:
        system.addConstraint(i, j, np.linalg.norm(molecule.positions[i] - molecule.positions[j]))
    return replace(molecule, system=system)


def test_all_bonds_constrained() -> None:
    molecule = all_bonds("ACE ALA NME")
    energy = ForceField.from_openmm(molecule.system)
    coordinates = InternalCoordinates.from_molecule(molecule, energy)
    assert coordinates.dim == 60 - 21
    x = draw(coordinates, 5)
    assert (coordinates.from_xyz(coordinates.to_xyz(x)[0])[0] - x).abs().max() < 1e-9
    check_log_det(coordinates, x[0])


def test_constraints_that_no_coordinate_stands_for_are_refused() -> None:
    rigid = all_bonds("ACE PRO NME")
    with pytest.raises(
        CoordinateError, match=r"fixed length that close rings, .*\[\[\d+, \d+\]\]"
    ):
        InternalCoordinates.from_molecule(rigid, ForceField.from_openmm(rigid.system))
    angled = all_bonds("ACE ALA NME")
    angled.system.addConstraint(0, 2, 0.18)
    with pytest.raises(CoordinateError, match="constraints on bonds only, got 22 of which 21"):
        InternalCoordinates.from_molecule(angled, ForceField.from_openmm(angled.system))


def test_a_frame_without_numbers_is_outside_and_alone() -> None:
    molecule, _, coordinates = build("ACE ALA NME")
    xyz = torch.tensor(molecule.positions).repeat(3, 1, 1)
    xyz[1, 4] = math.nan
    x, log_det = coordinates.from_xyz(xyz)
    assert torch.isfinite(log_det).tolist() == [True, False, True]
    assert torch.equal(x[0], x[2])
    assert torch.isfinite(x[0]).all()


def test_energies_are_counted_once_a_row() -> None:
    _, energy, coordinates = build("ACE ALA NME")
    target = MolecularTarget(energy, coordinates)
    before = target.n_evals
    target.evaluate(draw(coordinates, 7))
    assert target.n_evals - before == 7


def test_bad_input() -> None:
    _, energy, coordinates = build("ACE ALA NME")
    with pytest.raises(CoordinateError, match="not connected to atom 0"):
        build_zmatrix(["C", "C", "C", "O"], [(0, 1), (1, 2)])
    with pytest.raises(CoordinateError, match="at least 3 atoms"):
        build_zmatrix(["H", "H"], [(0, 1)])
    with pytest.raises(EnergyInputError, match=r"Expected x of shape \[\.\.\., 60\]"):
        MolecularTarget(energy, coordinates).evaluate(torch.zeros(2, 59))
    with pytest.raises(EnergyInputError, match=r"Expected xyz of shape \[\.\.\., 22, 3\]"):
        coordinates.from_xyz(torch.zeros(2, 21, 3))
    with pytest.raises(EnergyInputError, match=r"Expected xyz in nm, .* 0\.122 nm .* got 1\.22"):
        coordinates.from_xyz(10 * torch.tensor(build("ACE ALA NME")[0].positions))
    with pytest.raises(EnergyInputError, match="Expected temperature > 0"):
        InternalCoordinates.from_molecule(
            build("ALA ALA")[0], build("ALA ALA")[1], temperature=0.0
        )
