import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch

from energies import contexts
from energies.affine import AffineCoordinates
from energies.errors import EnergyInputError
from energies.openmm import OpenMMEnergy
from energies.target import EnergyTarget
from tests.energies.against_openmm import evaluate


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
    with pytest.raises(RuntimeError, match="at most one derivative of an energy"):
        gradient.sum().backward()


def test_its_target_asked_to_compile_runs_as_it_is() -> None:
    target = EnergyTarget(OpenMMEnergy(trimer()), AffineCoordinates(3, 3, centre=0.0, scale=1.0))
    x = frames(4).flatten(1)
    expected = target.evaluate(x)
    target.compile()
    assert torch.equal(target.evaluate(x).potential, expected.potential)
    assert bool(torch.isfinite(expected.potential).all())


def test_arguments_are_checked() -> None:
    with pytest.raises(EnergyInputError, match=r"Expected platform to be one of .*'Abacus'"):
        OpenMMEnergy(trimer(), platform="Abacus")
    with pytest.raises(EnergyInputError, match="Expected n_workers >= 1, got 0"):
        OpenMMEnergy(trimer(), n_workers=0)
    with pytest.raises(EnergyInputError, match=r"shape \[..., 3, 3\], got \[4, 3\]"):
        OpenMMEnergy(trimer()).potential(torch.zeros(4, 3))


@pytest.fixture(scope="module")
def pool() -> OpenMMEnergy:
    return OpenMMEnergy(trimer(), n_workers=2)


@pytest.fixture
def own() -> Iterator[Callable[[], list[BaseProcess]]]:
    """The worker processes started in this test that are alive, by name; none outlives it."""
    before = set(multiprocessing.active_children())

    def workers() -> list[BaseProcess]:
        started = set(multiprocessing.active_children()) - before
        return sorted(started, key=lambda process: process.name)

    yield workers
    assert not workers()


# 1 frame leaves a worker idle, 7 do not divide evenly, 0 reach nobody.
@pytest.mark.parametrize("n", [1, 7, 0])
def test_pool_equals_serial(n: int, pool: OpenMMEnergy) -> None:
    xyz = frames(n)
    results = evaluate(OpenMMEnergy(trimer()), xyz), evaluate(pool, xyz)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("at_work", [False, True])
def test_a_killed_worker_raises(at_work: bool, own: Callable) -> None:
    pool = OpenMMEnergy(trimer(), n_workers=2)
    worker = own()[1]
    # Stopped, it is given its frames and killed before it can answer.
    os.kill(worker.pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, worker.kill)
    killer.start()
    if not at_work:
        worker.join()
    start = time.perf_counter()
    for _ in range(2):  # The pool is closed for good, and says so.
        with pytest.raises(RuntimeError, match=r"got openmm-worker-1 .* dead with exit code -9"):
            pool.potential(frames(4))
    assert time.perf_counter() - start < 10.0
    assert not own()


def test_half_an_answer_is_that_of_a_dead_worker(own: Callable) -> None:
    pool = contexts.Pool(trimer(), "Reference", 1)
    (process, connection), (ours, theirs) = pool.workers[0], multiprocessing.Pipe()
    pool.workers[0] = (process, ours)
    os.write(theirs.fileno(), struct.pack("!i", 100) + b"half")
    with socket.socket(fileno=os.dup(theirs.fileno())) as end:
        end.shutdown(socket.SHUT_WR)
    with pytest.raises(RuntimeError, match=r"got openmm-worker-0 .* dead"):
        pool.evaluate(np.zeros((1, 3, 3)), False)
    connection.close()
    theirs.close()
    assert not own()


def test_pool_closes_with_its_energy(own: Callable) -> None:
    pool = OpenMMEnergy(trimer(), n_workers=2)
    assert [process.name for process in own()] == ["openmm-worker-0", "openmm-worker-1"]
    del pool
    assert not own()


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """What this process sends to workers: frames in a message, whether forces are wanted."""
    sent: list[tuple[int, bool]] = []
    send = Connection.send

    def record(self: Connection, message: object) -> None:
        if isinstance(message, tuple) and isinstance(message[0], np.ndarray):
            sent.append((len(message[0]), message[1]))
        send(self, message)

    monkeypatch.setattr(Connection, "send", record)
    return sent


def test_one_message_a_worker_and_forces_only_when_asked(
    messages: list, pool: OpenMMEnergy
) -> None:
    pool.potential(frames(101))
    assert messages == [(51, False), (50, False)]
    pool.potential(frames(101).requires_grad_())
    assert messages[2:] == [(51, True), (50, True)]


def test_pool_of_the_cpu_platform_equals_serial_and_is_single_precision() -> None:
    xyz = frames(9)
    results = [
        evaluate(energy, xyz)
        for energy in (
            OpenMMEnergy(trimer(), platform="CPU"),
            OpenMMEnergy(trimer(), platform="CPU", n_workers=2),
            OpenMMEnergy(trimer()),
        )
    ]
    for one, other, exact in zip(*results, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, exact, rtol=1e-4, atol=1e-3)
        assert not torch.equal(one, exact)


def test_bad_frame_in_a_pool_is_infinite_and_alone(pool: OpenMMEnergy) -> None:
    xyz = frames(6)
    alone = evaluate(OpenMMEnergy(trimer()), xyz)
    xyz[1, 2, 0] = torch.nan
    xyz[4, 2] = xyz[4, 1]
    u, gradient = evaluate(pool, xyz)
    assert torch.isposinf(u).tolist() == [False, True, False, False, True, False]
    good = [0, 2, 3, 5]
    assert torch.equal(u[good], alone[0][good])
    assert torch.equal(gradient[good], alone[1][good])
    assert not gradient[[1, 4]].any()


def test_an_interrupted_call_closes_the_pool(
    monkeypatch: pytest.MonkeyPatch, own: Callable
) -> None:
    pool = OpenMMEnergy(trimer(), n_workers=2)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(contexts, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.potential(frames(4))
    with pytest.raises(RuntimeError, match="got an interrupted one"):
        pool.potential(frames(4))
    assert not own()


SCRIPT = """
import multiprocessing, os, signal

if __name__ == "__main__":
    from tests.energies.test_openmm import frames, trimer
    from energies.openmm import OpenMMEnergy

    energy = OpenMMEnergy(trimer(), n_workers=2)
    energy.potential(frames(8))
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("raise SystemExit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -9)],
)
def test_no_hang_at_exit_and_no_orphans(end: str, code: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{end}", end))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20.0
    while alive := [pid for pid in workers if _runs(pid)]:
        assert time.monotonic() < deadline, f"orphans: {alive}"
        time.sleep(0.05)
    assert "Traceback" not in done.stderr


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    # A zombie that nobody has reaped runs no more.
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


PLATFORMS = [
    openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())
]


@pytest.mark.gpu
@pytest.mark.skipif("CUDA" not in PLATFORMS, reason="this OpenMM has no CUDA platform")
def test_cuda_platform() -> None:
    xyz = frames(4)
    u = OpenMMEnergy(trimer(), platform="CUDA").potential(xyz)
    torch.testing.assert_close(u, OpenMMEnergy(trimer()).potential(xyz), rtol=1e-4, atol=1e-3)
