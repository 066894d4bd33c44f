"""Whole training steps: what the energy adds to those of the flow, and how they grow."""

import ctypes
import gc
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from energies.base import Evaluation, Target
from energies.target import EnergyTarget
from flows.compile import compile_flow
from runs.bench.against_peers import LAYOUTS
from runs.bench.setup import Setup, milliseconds
from runs.bench.table import Row
from runs.bench.timing import Figure, Task, ratio
from runs.bench.work import Products, matrices
from runs.compiling import compile_all


class Free(Target):
    """A density that costs nothing: a step towards it is what the flow alone costs.

    Args:
        target: Whose coordinates it has.
    """

    def __init__(self, target: EnergyTarget) -> None:
        self.dim, self.periodic = target.dim, target.periodic

    @property
    def n_evals(self) -> int:
        """None are spent."""
        return 0

    def evaluate(self, x: Tensor) -> Evaluation:
        """Return half the square of x as potential, in kJ/mol, and no log-determinant."""
        u = 0.5 * x.double().square().sum(-1)
        return Evaluation(u, torch.zeros_like(u))


def reverse_kl(setup: Setup) -> Iterator[Row]:
    """Yield the cost of a step of the reverse KL on alanine dipeptide, whole and in parts.

    The share of energy and coordinates is what the step takes less towards a free density, all
    else as it was; their time alone, forward and gradient, stands beside it.
    """
    system, n = setup.system("aldp"), setup.batch_size
    first = next(iter(setup.flows))
    for name, sizes in ((first, setup.flows[first]), ("default", {})):
        whole, without = setup.flow(system, sizes), setup.flow(system, sizes)
        if setup.compiled:
            compile_all(whole, system.target)
            compile_flow(without)
        x = whole.sample_and_log_prob(n)[0]
        tasks: dict[str, Task] = {
            "whole": setup.session(whole, system).step,
            "without": setup.session(without, system, target=Free(system.target)).step,
            "energy": lambda x=x: _forces(system.target, x),
        }
        for layout, last in LAYOUTS.items():
            products = Products(matrices(whole), n, device=setup.device, batch_last=last)
            tasks[layout] = products.step
        times = setup.times(tasks)
        head = f"aldp, reverse KL step, {name} flow"
        size = f"{sum(p.numel() for p in whole.parameters()):.3g} parameters"
        yield Row(head, milliseconds(times["whole"]), "ms", size)
        yield Row(f"{head}: towards a free density", milliseconds(times["without"]), "ms")
        yield Row(f"{head}: energy and coordinates alone", milliseconds(times["energy"]), "ms")
        pairs = zip(times["without"], times["whole"], strict=True)
        share = Figure.of([100 * (1 - a / b) for a, b in pairs])
        yield Row(f"{head}: share of energy and coordinates", share, "%")
        best = min(LAYOUTS, key=lambda layout: statistics.median(times[layout]))
        yield Row(f"{head}: matrix products alone", milliseconds(times[best]), "ms", best)
        yield Row(f"{head}: over its matrix products", ratio(times["whole"], times[best]), "x")


def scale(setup: Setup) -> Iterator[Row]:
    """Yield time and memory of a step of the default flow, and how they grow with the atoms.

    The memory is what a step adds to the process, or on a GPU to the allocator, at its peak.
    """
    atoms, steps = {}, {}
    for name in setup.config.systems:
        system = setup.system(name)
        flow = setup.flow(system, {})
        if setup.compiled:
            compile_all(flow, system.target)
        atoms[name] = system.target.energy.n_atoms
        steps[name] = setup.session(flow, system).step
    times = setup.times(steps)
    memory = {name: peak(step, setup.device) for name, step in steps.items()}
    for name, seconds in times.items():
        note = f"{atoms[name]} atoms, batch {setup.batch_size}"
        yield Row(f"scale, reverse KL step, {name}", milliseconds(seconds), "ms", note)
    for name, found in memory.items():
        figure = None if found is None else Figure.of([found / 2**20])
        note = "only Linux and CUDA tell" if found is None else ""
        yield Row(f"scale, memory of a step, {name}", figure, "MiB", note)
    if len(set(atoms.values())) > 1:
        rounds = [exponent(atoms, dict(zip(times, row, strict=True))) for row in _rounds(times)]
        note = "of least squares in logarithms"
        yield Row("scale, exponent of the time in atoms", Figure.of(rounds), "", note)
        known = {name: found for name, found in memory.items() if found}
        if len(known) == len(memory):
            figure = Figure.of([exponent(atoms, known)])
            yield Row("scale, exponent of the memory in atoms", figure, "", note)


def exponent(sizes: dict[str, int], costs: dict[str, float]) -> float:
    """Return p of cost ∝ size^p by least squares in the logarithms."""
    x = [math.log(sizes[name]) for name in costs]
    return statistics.linear_regression(x, [math.log(c) for c in costs.values()]).slope


def peak(task: Task, device: torch.device) -> float | None:
    """Return the bytes that a task needs at its peak beyond those held before, None if unknown."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        task()
        return float(torch.cuda.max_memory_allocated(device) - before)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.is_file() and reset.exists()):
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what earlier steps left would be used again unseen
    reset.write_text("5", encoding="ascii")  # the peak is now what is resident
    before = _resident(status)
    task()
    return float(_resident(status) - before)


def _resident(status: Path) -> int:
    """Return the peak of the resident memory, bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
    assert found is not None
    return 1024 * int(found[1])


def _rounds(times: dict[str, list[float]]) -> Iterator[tuple[float, ...]]:
    return zip(*times.values(), strict=True)


def _forces(target: EnergyTarget, x: Tensor) -> None:
    leaf = x.detach().requires_grad_()
    e = target.evaluate(leaf)
    torch.autograd.grad((e.log_jac - e.potential).sum(), leaf)
