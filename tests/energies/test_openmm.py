import multiprocessing
import os
import signal
import time

import openmm
import pytest
import torch

from energies.errors import EnergyInputError
from energies.openmm import OpenMMEnergy


def trimer() -> openmm.System:
    """Three charged Lennard-Jones particles, two of them bonded."""
    system = openmm.System()
    nonbonded = openmm.NonbondedForce()
    for charge in (0.4, -0.5, 0.1):
        system.addParticle(12.0)
        nonbonded.addParticle(charge, 0.2, 0.5)
    bond = openmm.HarmonicBondForce()
    bond.addBond(0, 1, 0.15, 2e4)
    nonbonded.addException(0, 1, 0.0, 0.2, 0.0)
    system.addForce(nonbonded)
    system.addForce(bond)
    return system


def frames(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = torch.tensor([[0.0, 0, 0], [0.15, 0, 0], [0.1, 0.3, 0]], dtype=torch.float64)
    return base + 0.01 * torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)


def test_forces_agree_with_finite_differences() -> None:
    energy = OpenMMEnergy(trimer())
    xyz = frames(2).requires_grad_()
    assert torch.autograd.gradcheck(energy.potential, (xyz,), eps=1e-6, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_shapes_and_dtypes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    energy = OpenMMEnergy(trimer())
    xyz = frames(max(1, torch.Size(shape).numel())).reshape(*shape, 3, 3).to(dtype)
    xyz.requires_grad_()
    u = energy.potential(xyz)
    (gradient,) = torch.autograd.grad(u.sum(), xyz)
    assert u.shape == shape
    assert u.dtype == torch.float64
    assert gradient.dtype == dtype
    assert energy.n_evals == max(1, torch.Size(shape).numel())
    exact = OpenMMEnergy(trimer()).potential(xyz.detach().double())
    torch.testing.assert_close(u.detach(), exact, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_frame_is_infinite_and_alone(bad: float) -> None:
    energy = OpenMMEnergy(trimer())
    xyz = frames(3)
    alone = energy.potential(xyz)
    xyz[1, 2, 0] = bad
    xyz.requires_grad_()
    u = energy.potential(xyz)
    (gradient,) = torch.autograd.grad(u.sum(), xyz)
    assert u[1] == torch.inf
    assert torch.equal(u[[0, 2]].detach(), alone[[0, 2]])
    assert torch.equal(gradient[1], torch.zeros(3, 3, dtype=torch.float64))
    assert gradient[[0, 2]].abs().amax(dim=(1, 2)).min() > 1.0


def test_overlapping_atoms_are_infinite() -> None:
    xyz = frames(2)
    xyz[0, 2] = xyz[0, 1]
    u = OpenMMEnergy(trimer()).potential(xyz)
    assert torch.isposinf(u).tolist() == [True, False]


def test_second_derivative_is_refused() -> None:
    xyz = frames(1).requires_grad_()
    (gradient,) = torch.autograd.grad(
        OpenMMEnergy(trimer()).potential(xyz).sum(), xyz, create_graph=True
    )
    with pytest.raises(RuntimeError, match="at most one derivative of OpenMMEnergy"):
        gradient.sum().backward()


def test_arguments_are_checked() -> None:
    with pytest.raises(EnergyInputError, match=r"Expected platform to be one of .*'Abacus'"):
        OpenMMEnergy(trimer(), platform="Abacus")
    with pytest.raises(EnergyInputError, match="Expected n_workers >= 1, got 0"):
        OpenMMEnergy(trimer(), n_workers=0)
    with pytest.raises(EnergyInputError, match=r"shape \[..., 3, 3\], got \[4, 3\]"):
        OpenMMEnergy(trimer()).potential(torch.zeros(4, 3))


def test_pool_equals_serial_then_a_killed_worker_raises() -> None:
    serial, pool = OpenMMEnergy(trimer()), OpenMMEnergy(trimer(), n_workers=2)
    # 1 frame leaves a worker idle, 7 do not divide evenly, 0 reach nobody.
    for n in (1, 7, 0):
        xyz = frames(n).requires_grad_()
        results = []
        for energy in (serial, pool):
            u = energy.potential(xyz)
            results.append((u.detach(), *torch.autograd.grad(u.sum(), xyz)))
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)
    worker = min(multiprocessing.active_children(), key=lambda process: process.name)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match=r"got openmm-worker-0 .* dead with exit code -9"):
        pool.potential(frames(4))
    with pytest.raises(RuntimeError, match="openmm-worker-0"):
        pool.potential(frames(4))
    assert time.perf_counter() - start < 10.0
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("openmm-")]


def test_pool_closes_with_its_energy() -> None:
    pool = OpenMMEnergy(trimer(), n_workers=2)
    names = {p.name for p in multiprocessing.active_children()}
    assert names == {"openmm-worker-0", "openmm-worker-1"}
    del pool
    assert not multiprocessing.active_children()
