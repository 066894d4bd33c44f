"""Several processes at one run: each draws its share of the points, all of them see the whole.

Rank r of N draws, evaluates and takes through the flow every Nth point of a batch. Their densities
are then gathered, so that whatever is estimated or decided from them (losses, weights, ESS, log Z,
the next aim of a path) is that of the joint batch on every rank alike. A loss knows of no ranks:
it is given the joint batch, and a flow that computes each log density on one rank only.

Every rank holds the same loss L. Derivatives pass through the gathering as those of the sum of all
ranks' losses, so that the mean of the ranks' gradients is ∇L, whatever the loss is made of.

With one process every function here does nothing, or what is obvious. All of them must be called
by all ranks in the same order.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from flows.errors import ProcessLostError
from flows.flow import Flow
from flows.types import Samples

T = TypeVar("T")

_STRIDE = 1_000_000_007
"""Between the seeds of two streams: odd, as torch keeps the last 32 bits of a seed on a CPU."""
_MOST_RANKS = 4096


def local_rank() -> int:
    """Return the number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that `torchrun` started beside this one, if it did."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group()
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_ranks() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(n: int) -> int:
    """Return how many of n points each rank draws; what does not divide is rounded up."""
    return -(-n // n_ranks())


def own_rows(n: int, device: torch.device) -> Tensor:
    """Return the rows of a joint set of n that are this rank's: every Nth, int64."""
    return torch.arange(rank(), n, n_ranks(), device=device)


def seed_of(seed: int, *, step: int = 0) -> int:
    """Return the seed of this rank's stream of random numbers; rank 0 starts from `seed` itself.

    Args:
        seed: Of the run.
        step: At which the stream begins, if not at the start.
    """
    return (seed + _STRIDE * (rank() + _MOST_RANKS * step)) % 2**63


def own_stream(generator: torch.Generator) -> torch.Generator:
    """Return a generator seeded alike on all ranks, with a stream of its own on each of them."""
    return generator if rank() == 0 else generator.manual_seed(seed_of(generator.initial_seed()))


def joint(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, [N n, ...], of this rank's [n, ...]: in turn, 0 to N - 1.

    The derivative with respect to `rows` is that of the sum of all ranks' results.
    """
    if n_ranks() == 1:
        return rows
    gathered: Any = _Joint.apply
    result: Tensor = gathered(rows)
    return result


def joint_batch(samples: Samples) -> Samples:
    """Return the points of all ranks, [N n], of this rank's [n]."""
    if n_ranks() == 1:
        return samples
    names = [f.name for f in fields(samples) if f.name != "x"]
    columns = joint(torch.stack([getattr(samples, name) for name in names], dim=1)).unbind(1)
    return replace(samples, x=joint(samples.x), **dict(zip(names, columns, strict=True)))


def joint_flow(flow: Flow) -> Flow:
    """Return a view of `flow` that shares the points of a joint batch among the ranks."""
    return flow if n_ranks() == 1 else _JointFlow(flow)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over ranks, all in one message."""
    if n_ranks() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients]) / n_ranks()
    with _together():
        dist.all_reduce(flat)
    parts = torch.split(flat, [g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def largest(*values: float) -> list[float]:
    """Return the largest of each number over ranks: what clocks and signals say to all."""
    found: list[float] = joint(torch.tensor([values], dtype=torch.float64)).amax(0).tolist()
    return found


def total(value: int) -> int:
    """Return the sum of a number over ranks."""
    return int(joint(torch.tensor([value])).sum())


def at_first(make: Callable[[], T]) -> T:
    """Return on all ranks what `make` gives on rank 0; an error there is raised on all of them.

    Args:
        make: Called on rank 0 alone; its result must be possible to pickle.
    """
    if n_ranks() == 1:
        return make()
    said: tuple[Any, Exception | None] = None, None
    if rank() == 0:
        try:
            said = make(), None
        except Exception as error:  # noqa: BLE001  # raised below, on every rank
            said = None, error
    message = [_packed(said)]
    with _together():
        dist.broadcast_object_list(message)
    if rank() > 0:
        said = _unpacked(message[0])
    if said[1] is not None:
        raise said[1]
    result: T = said[0]
    return result


def collect(item: T) -> list[T]:
    """Return on rank 0 the items of all ranks in their order, elsewhere this rank's alone."""
    if n_ranks() == 1:
        return [item]
    items: list[Any] | None = [None] * n_ranks() if rank() == 0 else None
    with _together():
        dist.gather_object(_packed(item), items)
    return [item] if items is None else [_unpacked(data) for data in items]


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(n_ranks())]
        with _together():
            dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        with _together():
            dist.all_reduce(gradient)
        return gradient[own_rows(len(gradient), gradient.device)]


class _JointFlow(Flow):
    """A flow whose log density at the points of a joint batch each rank computes for its own."""

    def __init__(self, flow: Flow) -> None:
        self.__dict__.update(flow.__dict__)  # the same layers and parameters

    def log_prob(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return log q of the points, [n], of which each rank knows all."""
        n = len(inputs)
        rows = own_rows(share(n) * n_ranks(), inputs.device).clamp_max(n - 1)
        return joint(super().log_prob(inputs[rows], context))[:n]


def _packed(item: Any) -> bytes:
    """Return what other processes unpack; tensors come out on the CPU, wherever they were."""
    data = io.BytesIO()
    torch.save(item, data)
    return data.getvalue()


def _unpacked(data: bytes) -> Any:
    # Of a process of this very run: not what a file of someone else may hold.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            f"Expected all {n_ranks()} processes to go on, got no answer from another one: it has "
            "ended, having said why if it could. The last checkpoint is whole; resume=auto goes "
            "on from it."
        ) from error
