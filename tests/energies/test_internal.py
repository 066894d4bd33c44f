"""Internal coordinates of real molecules: round trips, determinants, chirality, symmetry."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from energies.dihedrals import torsions
from energies.errors import CoordinateError, EnergyInputError
from energies.forcefield import ForceField
from energies.internal import InternalCoordinates
from energies.molecule import Molecule
from energies.target import MolecularTarget
from energies.zmatrix import build_zmatrix

# Methyls; a carboxylate and an ammonium; rings; two stereocentres in one residue.
SEQUENCES = [
    "ACE ALA NME",
    "ALA ALA",
    "ACE PRO NME",
    "ACE PHE NME",
    "ACE ILE NME",
    "ACE THR ASN NME",
]


@cache
def build(sequence: str) -> tuple[Molecule, ForceField, InternalCoordinates]:
    molecule = Molecule.from_sequence(sequence, forcefield=("amber96.xml", "implicit/obc1.xml"))
    energy = ForceField.from_openmm(molecule.system)
    return molecule, energy, InternalCoordinates.from_molecule(molecule, energy)


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


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_log_det_against_autograd(sequence: str) -> None:
    _, _, coordinates = build(sequence)
    order = coordinates.placer.order

    def free(x: Tensor) -> Tensor:
        """Positions without the six numbers that the frame of the root atoms fixes."""
        p = coordinates.to_xyz(x)[0][order]
        return torch.cat([p[1, :1], p[2, :2], p[3:].reshape(-1)])

    for x in draw(coordinates, 3):
        jacobian = torch.autograd.functional.jacobian(free, x)
        p = coordinates.to_xyz(x)[0][order]
        # Turning the frame moves atom 1 by |x1| in two directions and atom 2 by |y2| in one.
        frame = 2 * p[1, 0].log() + p[2, 1].log()
        expected = torch.linalg.slogdet(jacobian).logabsdet + frame
        assert float(coordinates.to_xyz(x)[1]) == pytest.approx(float(expected), abs=1e-8)


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
    molecule = Molecule.from_sequence(
        "ACE ALA NME", forcefield=("amber96.xml",), constraints="HBonds"
    )
    energy = ForceField.from_openmm(molecule.system)
    coordinates = InternalCoordinates.from_molecule(molecule, energy)
    assert coordinates.dim == 60 - 12
    xyz, _ = coordinates.to_xyz(draw(coordinates, 20))
    for i, j in molecule.constrained_bonds:
        length = (xyz[:, i] - xyz[:, j]).norm(dim=-1)
        reference = torch.tensor(molecule.positions[i] - molecule.positions[j]).norm()
        assert (length - reference).abs().max() < 1e-9


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
    with pytest.raises(EnergyInputError, match="Expected temperature > 0"):
        InternalCoordinates.from_molecule(
            build("ALA ALA")[0], build("ALA ALA")[1], temperature=0.0
        )
