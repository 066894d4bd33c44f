"""What is asked of a GPU alone."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from energies.base import Energy
from flows.losses import ForwardKL
from flows.proposals import Points
from runs.bench.setup import Setup, milliseconds
from runs.bench.table import Row
from runs.bench.timing import Figure
from runs.compiling import compile_all
from runs.systems.molecular import MolecularSystem

HOT, ANNEALING = "TA-BG, reverse KL step", "TA-BG, weighted step"
WHOLE = "TA-BG, the whole recipe"


def energies(setup: Setup) -> Iterator[Row]:
    """Yield energies with forces a second."""
    tasks, frames = {}, {}
    for name, n in setup.config.frames.items():
        system = setup.system(name)
        assert isinstance(system, MolecularSystem)
        energy = system.target.energy
        if setup.compiled:
            energy.compile()
        start = torch.tensor(system.molecule.positions, dtype=torch.float32, device=setup.device)
        xyz = start + 0.003 * torch.randn(n, *start.shape, device=setup.device)
        tasks[name], frames[name] = partial(_forces, energy, xyz), n
    for name, seconds in setup.times(tasks).items():
        rate = Figure.of([frames[name] / s for s in seconds])
        yield Row(f"{name}, energies with forces", rate, "/s", f"{frames[name]} frames at once")


def recipe(setup: Setup) -> Iterator[Row]:
    """Yield the cost of TA-BG's two kinds of steps; the recipe itself is a run of its own."""
    system = setup.system("aldp")
    hot, annealing = setup.config.recipe.hot, setup.config.recipe.annealing
    first = next(iter(setup.flows.values()))
    flows = [setup.flow(system, first) for _ in range(2)]
    for flow in flows:
        if setup.compiled:
            compile_all(flow, system.target)
    x = flows[1].sample_and_log_prob(4 * annealing)[0].cpu().numpy()
    sessions = {
        HOT: setup.session(flows[0], system, batch_size=hot),
        ANNEALING: setup.session(
            flows[1],
            system,
            proposal=Points({"x": x}),
            loss=ForwardKL(baseline=0.0),
            batch_size=annealing,
        ),
    }
    times = setup.times({name: session.step for name, session in sessions.items()})
    for name, seconds in times.items():
        note = f"{sessions[name].stage.batch_size} points"
        yield Row(name, milliseconds(seconds), "ms", note)
    yield Row(WHOLE, None, note="a run of its own: runs.train stages=ta_bg")


def _forces(energy: Energy, xyz: Tensor) -> None:
    leaf = xyz.clone().requires_grad_()
    torch.autograd.grad(energy.potential(leaf).sum(), leaf)
