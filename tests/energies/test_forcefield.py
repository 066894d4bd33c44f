"""Whole molecules: the torch force field against OpenMM's Reference platform."""

import copy

import pytest
import torch
from openmm import app

from energies.forcefield import ForceField
from energies.openmm import OpenMMEnergy
from tests.energies.against_openmm import (
    CASES,
    SLOW,
    evaluate,
    frames,
    molecule,
    reference,
    relative_force_error,
)


@pytest.fixture(
    scope="session",
    params=[pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES],
)
def case(request: pytest.FixtureRequest) -> str:
    """Every force field; as a fixture, so that pytest keeps the tests of one together."""
    return request.param


def test_agrees_with_openmm_reference(case: str) -> None:
    u, gradient = evaluate(ForceField.from_openmm(molecule(case).system), frames(case))
    expected, expected_gradient = reference(case)
    assert len(u) == 200
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(u, expected, rtol=1e-6, atol=1e-6)
    assert relative_force_error(gradient, expected_gradient).max() < 1e-5


def test_float32_errors_are_those_documented(case: str) -> None:
    """Two to three times the table in the docstring of ForceField."""
    system, xyz = molecule(case).system, frames(case)
    expected, expected_gradient = reference(case)
    single = ForceField.from_openmm(system).to(torch.float32)
    u, gradient = evaluate(single, xyz.float())
    magnitude = sum(term.abs() for term in single.terms(xyz.float()).values())
    assert u.dtype == torch.float64
    assert gradient.dtype == torch.float32
    error, force_error = (
        (u - expected).abs(),
        relative_force_error(gradient.double(), expected_gradient),
    )
    assert error[:50].max() < 1e-3  # kJ/mol
    assert (error / magnitude).max() < 6e-6
    assert force_error.max() < 3e-5


def test_gradient_found_with_the_energy_is_that_of_autograd(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled finds its gradient by other means, here without a compiler."""
    forcefield, xyz = ForceField.from_openmm(molecule(case).system), frames(case)[::10].clone()
    xyz[3, 0, 0] = torch.nan
    u, gradient = evaluate(forcefield, xyz)
    monkeypatch.setattr("torch.compile", lambda function, **how: function)
    forcefield.compile()
    fused, fused_gradient = evaluate(forcefield, xyz)
    torch.testing.assert_close(fused, u, rtol=1e-14, atol=0)
    torch.testing.assert_close(fused_gradient, gradient, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("case", ["amber96-obc1", "ff19SB-cmap", "charmm36"])
def test_terms_add_up_and_agree_one_by_one(case: str) -> None:
    system, xyz = molecule(case).system, frames(case)[::20]
    forcefield = ForceField.from_openmm(system)
    terms = forcefield.terms(xyz.reshape(2, 5, *xyz.shape[1:]))
    assert list(terms) == [force.getName() for force in system.getForces()]
    total = sum(terms.values())
    torch.testing.assert_close(total.flatten(), forcefield.potential(xyz), rtol=1e-13, atol=1e-9)
    for k, name in enumerate(terms):
        alone = copy.deepcopy(system)
        for other in reversed(range(alone.getNumForces())):
            if other != k:
                alone.removeForce(other)
        expected = OpenMMEnergy(alone).potential(xyz)
        torch.testing.assert_close(terms[name].flatten(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", ["nan", "inf", "overlap"])
def test_bad_frame_is_infinite_and_alone(bad: str, dtype: torch.dtype) -> None:
    forcefield = ForceField.from_openmm(molecule("amber96-obc1").system).to(dtype)
    xyz = frames("amber96-obc1")[:4].to(dtype)
    alone, gradient_alone = evaluate(forcefield, xyz)
    broken = xyz.clone()
    broken[2, 5] = broken[2, 19] if bad == "overlap" else float(bad)
    u, gradient = evaluate(forcefield, broken)
    others = [0, 1, 3]
    assert u[2] == torch.inf
    assert torch.equal(u[others], alone[others])
    assert torch.equal(gradient[others], gradient_alone[others])
    assert torch.equal(gradient[2], torch.zeros_like(gradient[2]))


@pytest.mark.parametrize("case", ["amber96-obc1", "ff19SB-cmap"])
def test_hessian_agrees_with_finite_differences(case: str) -> None:
    forcefield = ForceField.from_openmm(molecule(case).system)
    x0 = torch.tensor(molecule(case).positions)
    hessian = torch.autograd.functional.hessian(lambda x: forcefield.potential(x), x0)
    hessian = hessian.reshape(x0.numel(), x0.numel())
    steps = 1e-5 * torch.eye(x0.numel(), dtype=x0.dtype).reshape(-1, *x0.shape)
    ahead, behind = (evaluate(forcefield, x0 + s * steps)[1].flatten(1) for s in (1, -1))
    numeric = (ahead - behind) / 2e-5
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(hessian, numeric, rtol=0, atol=1e-4 * hessian.abs().max().item())


def test_state_moves_with_the_module() -> None:
    forcefield = ForceField.from_openmm(molecule("amber96-obc1").system)
    x = frames("amber96-obc1")[:2]
    state = forcefield.state_dict()
    assert all(value.dtype in (torch.float64, torch.int64, torch.bool) for value in state.values())
    assert not list(forcefield.parameters())
    u = forcefield.potential(x.float())
    assert u.dtype == torch.float64
    torch.testing.assert_close(u, forcefield.potential(x), rtol=1e-4, atol=1e-2)
    single = forcefield.to(torch.float32)
    assert {v.dtype for v in single.state_dict().values()} <= {
        torch.float32, torch.int64, torch.bool
    }  # fmt: skip
    assert {v.device.type for v in single.to("meta").state_dict().values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", ["ff19SB-cmap", "ff14SB-gbn2", "restrained"])
def test_same_numbers_on_a_gpu(case: str) -> None:
    forcefield = ForceField.from_openmm(molecule(case).system)
    xyz = frames(case)[::10]
    u, gradient = evaluate(forcefield, xyz)
    there, gradient_there = evaluate(forcefield.to("cuda"), xyz.to("cuda"))
    torch.testing.assert_close(there.cpu(), u, rtol=1e-10, atol=1e-8)
    assert relative_force_error(gradient_there.cpu(), gradient).max() < 1e-9


def test_ends_of_the_reference_data() -> None:
    """`app` gives the same System for a Molecule's topology, so nothing was lost on the way."""
    m = molecule("amber96-obc1")
    system = app.ForceField("amber96.xml", "implicit/obc1.xml").createSystem(
        m.topology, nonbondedMethod=app.NoCutoff
    )
    xyz = frames("amber96-obc1")[:3]
    torch.testing.assert_close(
        ForceField.from_openmm(m.system).potential(xyz), OpenMMEnergy(system).potential(xyz)
    )
