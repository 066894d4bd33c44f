"""The memory that a gradient step takes, and passes in pieces where it is short."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flows.errors import FlowInputError
from flows.frozen import requiring
from flows.transforms import couplings

_GROUP = Path("/sys/fs/cgroup")
_SHARE = 0.5
"""Of free memory, for what the backward pass keeps; the rest is for what passes and the energy."""


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take: of the GPU, or of machine and job."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:  # what a scheduler or container allows, beyond which the process would be killed
        most, taken = ((_GROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, int(most) - int(taken))
    except (OSError, ValueError):  # no such limit
        return free


def bytes_of_row(flow: nn.Module) -> int:
    """Return what the backward pass keeps of a point on its way through the couplings of a flow.

    Of each coupling its input, what the spline makes of it, the outputs of its conditioner and two
    numbers a hidden unit; uncompiled, which keeps a little more than compiled code.
    """
    numbers = 0
    for layer in couplings(flow):
        parts = layer.conditioner.modules()
        hidden = sum(part.out_features for part in parts if isinstance(part, nn.Linear))
        numbers += layer.n_outputs + 2 * hidden + 3 * (len(layer.passive) + layer.n_active)
    return numbers * next(flow.parameters()).element_size()


def rows_that_fit(per_row: int, n: int, free: int) -> int | None:
    """Return into pieces of how many rows to cut n of them.

    Args:
        per_row: Bytes that the backward pass keeps of a row.
        n: Rows of a batch.
        free: Bytes there are.

    Returns:
        The largest n / 2ᵏ, rounded up, that fits; None if all do.

    Raises:
        FlowInputError: A 64th of the batch does not fit either.
    """
    pieces = 1
    while -(-n // pieces) * per_row > _SHARE * free:
        pieces *= 2
    if pieces > 64:
        least = n * per_row / 64
        raise FlowInputError(
            f"Expected trainer.batch_size such that a 64th of it goes through the flow in "
            f"{_SHARE:.0%} of the {free / 2**30:.2g} GiB of memory that are free, got {n}, a 64th "
            f"of which takes {least / 2**30:.2g} GiB."
        )
    return -(-n // pieces) if pieces > 1 else None


def in_pieces(
    function: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor, size: int, module: nn.Module
) -> tuple[Tensor, ...]:
    """Return function(rows), which keeps nothing but the rows for its backward pass.

    That one computes each piece once more: half as fast again, in the memory of one piece.

    Args:
        function: Takes rows [n, ...] to tensors [n, ...]; no row may look at another.
        rows: Its argument.
        size: Rows of a piece.
        module: Whose parameters it uses, frozen or not.
    """
    trained = [p.requires_grad for p in module.parameters()]

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), requiring(module, trained)

    parts = [
        checkpoint(
            function, part, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
        for part in rows.split(size)  # type: ignore[no-untyped-call]
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
