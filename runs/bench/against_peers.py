"""One flow in four packages, and the matrix products that all of them need."""

import statistics
from collections.abc import Iterator, Sequence

import torch

from runs.bench.contenders import Contender, ours, peers
from runs.bench.setup import Setup, milliseconds
from runs.bench.table import Row
from runs.bench.timing import Figure, Task, ratio
from runs.bench.work import Copy, Products, Work, matrices

LAYOUTS = {"products, batch last": True, "products, batch first": False}


def against_peers(setup: Setup) -> Iterator[Row]:
    """Yield times and ratios of training steps and of sampling, for each size of flow.

    Peers run as they come; on a CPU also compiled. What counts is the fastest of them.
    """
    for name in setup.flows:
        yield from _rows(name, setup)


def _rows(size: str, setup: Setup) -> Iterator[Row]:
    torch._dynamo.reset()  # or peers meet a second size with code for any, which is slower
    architecture, n = setup.architecture(size), setup.batch_size
    mine = ours(architecture, setup.device, compiled=setup.compiled)
    compiled = setup.compiled and setup.device.type == "cpu"
    others = [*peers(architecture, setup.device, compiled=compiled)]
    shapes, work = matrices(mine.module), Work.of(mine.module, n)
    floors = {
        name: Products(shapes, n, device=setup.device, batch_last=last)
        for name, last in LAYOUTS.items()
    }
    copy = Copy(setup.device)
    x = 1.5 * torch.randn(n, architecture.dim, device=setup.device)
    head = f"{size} flow, train step"
    tasks: dict[str, Task] = {c.name: c.trainer(x) for c in [mine, *others]}
    tasks |= {name: products.step for name, products in floors.items()} | {"copy": copy}
    times = setup.times(tasks)
    yield from _contenders(head, mine, others, times)
    bandwidth = copy.bytes / statistics.median(times["copy"])
    yield Row(
        f"{head}: bytes that products and Adam move", Figure.of([work.bytes / 1e9]), "GB",
        f"{1e3 * work.bytes / bandwidth:.3g} ms at the {bandwidth / 1e9:.3g} GB/s of a copy",
    )  # fmt: skip
    yield from _floor(head, mine, times, work.flops)
    head = f"{size} flow, sampling"
    tasks = {c.name: c.sampler(n) for c in [mine, *others]}
    times = setup.times(tasks | {name: p.forward for name, p in floors.items()})
    yield from _contenders(head, mine, others, times)
    yield from _floor(head, mine, times, work.flops / 3)


def _contenders(
    head: str, mine: Contender, others: Sequence[Contender], times: dict[str, list[float]]
) -> Iterator[Row]:
    for c in [mine, *others]:
        note = f"{c.n_parameters:.3g} parameters; {c.call}"
        yield Row(f"{head}: {c.name}", milliseconds(times[c.name]), "ms", note)
    fastest = _fastest([c.name for c in others], times)
    figure = ratio(times[fastest], times[mine.name])
    yield Row(f"{head}: times as fast as the fastest peer", figure, "x", fastest)


def _floor(
    head: str, mine: Contender, times: dict[str, list[float]], flops: float
) -> Iterator[Row]:
    """Yield the products of this package's conditioners, and what a step costs beyond them."""
    best = _fastest([*LAYOUTS], times)
    rate = flops / statistics.median(times[best])
    yield Row(
        f"{head}: matrix products alone", milliseconds(times[best]), "ms",
        f"{flops / 1e9:.3g} GFLOP at {rate / 1e9:.3g} GFLOP/s; {best}",
    )  # fmt: skip
    gap = [a - b for a, b in zip(times[mine.name], times[best], strict=True)]
    yield Row(f"{head}: gap to them", milliseconds(gap), "ms")
    yield Row(f"{head}: over its matrix products", ratio(times[mine.name], times[best]), "x")


def _fastest(names: Sequence[str], times: dict[str, list[float]]) -> str:
    return min(names, key=lambda name: statistics.median(times[name]))
