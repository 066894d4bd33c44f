"""`make bench`: energies and forces a second, torch against OpenMM, on the same cores in one run.

OpenMM runs one worker process a core, on its CPU platform with one thread each (single precision)
and on its Reference platform (double); torch runs the module in float32 on every core. The
contenders take turns, round by round, so that a disturbance of the machine meets all of them; a
figure is the median over the rounds. What the machine does beside this moves every figure: only
the ratios mean something then.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from energies.base import Energy
from energies.compiled import rows_in_cache
from energies.forcefield import ForceField
from energies.molecule import Molecule
from energies.openmm import OpenMMEnergy

SYSTEMS = {
    "aldp": ("ACE ALA NME", ("amber96.xml", "implicit/obc1.xml")),
    "hexa": ("ACE ALA ALA ALA ALA ALA NME", ("amber99sbildn.xml", "amber99_obc.xml")),
}
BARS = {
    ("aldp", "energy"): 100,
    ("aldp", "energy + forces"): 30,
    ("hexa", "energy"): 20,
    ("hexa", "energy + forces"): 10,
}
"""How many times OpenMM's rate the compiled module must reach."""

ROUNDS = 9
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def energy_only(energy: Energy, xyz: Tensor) -> None:
    with torch.no_grad():
        energy.potential(xyz)


def energy_and_forces(energy: Energy, xyz: Tensor) -> None:
    x = xyz.clone().requires_grad_()
    torch.autograd.grad(energy.potential(x).sum(), x)


TASKS = {"energy": energy_only, "energy + forces": energy_and_forces}


def rate(task: Callable[[Energy, Tensor], None], energy: Energy, xyz: Tensor) -> float:
    """Return conformations a second, over at least a quarter of a second."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < 0.25:
        task(energy, xyz)
        count += len(xyz)
    return count / elapsed


@pytest.fixture
def all_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(CORES)
    yield
    torch.set_num_threads(threads)


def medians(name: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each task with the rate of each contender."""
    sequence, field = SYSTEMS[name]
    molecule = Molecule.from_sequence(sequence, forcefield=field)
    compiled = ForceField.from_openmm(molecule.system).to(torch.float32)
    compiled.compile()
    contenders: dict[str, Energy] = {
        "OpenMM CPU": OpenMMEnergy(molecule.system, platform="CPU", n_workers=CORES),
        "OpenMM Reference": OpenMMEnergy(molecule.system, n_workers=CORES),
        "torch eager": ForceField.from_openmm(molecule.system).to(torch.float32),
        "torch compiled": compiled,
    }
    n = 4 * CORES * rows_in_cache(molecule.n_atoms)
    for task, work in TASKS.items():
        noise = 0.003 * torch.randn(n, molecule.n_atoms, 3)
        xyz = torch.as_tensor(molecule.positions, dtype=torch.float32) + noise
        for energy in contenders.values():  # Workers start, code compiles.
            work(energy, xyz)
        rounds = [
            {who: rate(work, energy, xyz) for who, energy in contenders.items()}
            for _ in range(ROUNDS)
        ]
        yield task, {who: statistics.median(r[who] for r in rounds) for who in contenders}


@pytest.mark.bench
@pytest.mark.usefixtures("all_cores")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_energies_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    missed = []
    with capsys.disabled():
        print(f"\nframes a second, {CORES} cores, float32, median of {ROUNDS} rounds in turns")
        print(f"{'':6}{'':16}{'':17}{'rate':>10}{'x OpenMM':>10}{'bar':>6}")
        for name in SYSTEMS:
            for task, median in medians(name):
                bar = BARS[name, task]
                for who, value in median.items():
                    ratio = value / median["OpenMM CPU"]
                    goal = bar if who == "torch compiled" else ""
                    print(f"{name:6}{task:16}{who:17}{value:10.3g}{ratio:10.3g}{goal:>6}")
                if median["torch compiled"] < bar * median["OpenMM CPU"]:
                    missed.append(f"{name}, {task}")
    assert not missed, f"below the bar: {'; '.join(missed)}"
