"""Several processes on this machine, for tests of what they do together."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Phase = tuple[int, Callable[..., Any], tuple[Any, ...]]


def on_ranks(phases: list[Phase]) -> list[list[Any]]:
    """Return what each phase gives on its ranks.

    Args:
        phases: Number of processes, what each of them does, and its arguments. The processes are
            started once: most of their time goes into importing torch.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (folder, phases), nprocs=max(n for n, _, _ in phases))
        return [
            [torch.load(Path(folder) / f"{k}.{rank}.pt") for rank in range(n)]
            for k, (n, _, _) in enumerate(phases)
        ]


def _run(rank: int, folder: str, phases: list[Phase]) -> None:
    torch.set_num_threads(1)
    for k, (n, work, arguments) in enumerate(phases):
        if rank < n:
            store = f"file://{folder}/store{k}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=n)
            torch.save(work(*arguments), Path(folder) / f"{k}.{rank}.pt")
            if dist.is_initialized():
                dist.destroy_process_group()
