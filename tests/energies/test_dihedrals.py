"""Torsions against geometry done by hand, finite rotations, gradients and mdtraj."""

import math

import mdtraj
import numpy as np
import pytest
import torch
from torch import Tensor

from energies.dihedrals import backbone_torsions, torsions
from energies.errors import EnergyInputError

PI = math.pi

ALDP = [
    *((1, "ACE", name) for name in ("H1", "CH3", "H2", "H3", "C", "O")),
    *((2, "ALA", name) for name in ("N", "H", "CA", "HA", "CB", "HB1", "HB2", "HB3", "C", "O")),
    *((3, "NME", name) for name in ("N", "H", "CH3", "HH31", "HH32", "HH33")),
]


def four_atoms(angle: float) -> Tensor:
    """Axis j -> k along +z; seen along it, l is `angle` clockwise from i."""
    i, j, k = [1.0, 0.0, -0.3], [0.0, 0.0, 0.0], [0.0, 0.0, 1.5]
    return torch.tensor(
        [i, j, k, [2 * math.cos(angle), 2 * math.sin(angle), 1.7]], dtype=torch.float64
    )


@pytest.mark.parametrize("angle", [-3.0, -PI / 2, -1e-9, 0.0, 1e-9, 0.7, PI / 2, 3.14159])
def test_angle_and_sign_by_hand(angle: float) -> None:
    """Looking along +z, a turn from x to y is clockwise, which IUPAC counts as positive."""
    got = torsions(four_atoms(angle), [(0, 1, 2, 3)])
    assert got.shape == (1,)
    assert float(got) == pytest.approx(angle, abs=1e-14)
    assert float(torsions(four_atoms(angle), [(3, 2, 1, 0)])) == pytest.approx(angle, abs=1e-14)


def test_trans_is_minus_pi() -> None:
    xyz = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [-1, 0, 1]])
    assert float(torsions(xyz, [(0, 1, 2, 3)])) == -PI


def test_mirror_image_has_the_other_sign() -> None:
    xyz = torch.randn(50, 6, 3, generator=torch.Generator().manual_seed(0))
    quads = [(0, 1, 2, 3), (1, 2, 3, 4), (5, 3, 0, 1)]
    mirrored = xyz * torch.tensor([1.0, 1.0, -1.0])
    torch.testing.assert_close(torsions(mirrored, quads), -torsions(xyz, quads))


def test_against_mdtraj() -> None:
    n = 9
    xyz = np.random.default_rng(1).normal(size=(200, n, 3)).astype(np.float32)
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for i in range(n):
        topology.add_atom(f"C{i}", mdtraj.element.carbon, residue)
    quads = np.array([[0, 1, 2, 3], [8, 3, 5, 1], [2, 7, 6, 4]])
    expected = mdtraj.compute_dihedrals(
        mdtraj.Trajectory(xyz, topology), quads, periodic=False, opt=False
    )
    got = torsions(torch.from_numpy(xyz).reshape(20, 10, n, 3), torch.from_numpy(quads))
    assert got.shape == (20, 10, 3)
    assert got.dtype == torch.float64
    difference = (
        torch.remainder(got.reshape(200, 3) - torch.from_numpy(expected) + PI, 2 * PI) - PI
    )
    assert difference.abs().max() < 2e-5


def test_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    xyz = torch.randn(3, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: torsions(r, [(0, 1, 2, 3), (4, 2, 1, 3)]), (xyz,))


def test_backbone_of_alanine_dipeptide() -> None:
    assert backbone_torsions(ALDP) == {
        "omega_1": (1, 4, 6, 8),
        "phi_2": (4, 6, 8, 14),
        "psi_2": (6, 8, 14, 16),
        "omega_2": (8, 14, 16, 18),
    }


def test_n_methyl_carbon_called_c_is_no_carbonyl() -> None:
    names = [(r, n, "C" if (n, a) == ("NME", "CH3") else a) for r, n, a in ALDP]
    assert backbone_torsions(names) == backbone_torsions(ALDP)


def test_backbone_without_caps_and_across_a_gap() -> None:
    """Four residues, a gap in the numbering after the second: two chains."""
    names = [(r, "GLY", atom) for r in (0, 1, 5, 6) for atom in ("N", "CA", "C", "O")]
    found = backbone_torsions(names)
    assert list(found) == ["psi_0", "omega_0", "phi_1", "psi_5", "omega_5", "phi_6"]
    assert found["psi_0"] == (0, 1, 2, 4)
    assert found["phi_6"] == (10, 12, 13, 14)


def test_backbone_of_water_is_empty() -> None:
    assert backbone_torsions([(0, "HOH", "O"), (0, "HOH", "H1"), (0, "HOH", "H2")]) == {}


def test_no_torsion_at_all() -> None:
    assert torsions(torch.zeros(7, 4, 3), []).shape == (7, 0)


def test_bad_arguments_raise() -> None:
    with pytest.raises(EnergyInputError, match=r"Expected xyz of shape \[\.\.\., N, 3\]"):
        torsions(torch.zeros(4, 2), [(0, 1, 2, 3)])
    with pytest.raises(EnergyInputError, match=r"Expected quadruples of shape \[K, 4\]"):
        torsions(torch.zeros(4, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(EnergyInputError, match=r"Expected quadruples within 0\.\.3"):
        torsions(torch.zeros(4, 3), [(0, 1, 2, 4)])
    with pytest.raises(EnergyInputError, match="got a second 'CA' in residue 2"):
        backbone_torsions([*ALDP, (2, "ALA", "CA")])
