"""Regional compilation: one graph for a coupling layer, used by all of them."""

import copy
import copyreg
import multiprocessing
import os
import shutil
import signal
import sysconfig
import tempfile
import warnings
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from flows.flow import Flow
from flows.transforms.coupling import Direction, couplings, encode

FlowT = TypeVar("FlowT", bound=nn.Module)

_ahead: list[BaseProcess] = []


def _memory_format(name: str) -> torch.memory_format:
    value: torch.memory_format = getattr(torch, name)
    return value


# torch's cache knows a graph by what it pickles to. A memory format pickles as an attribute of
# whichever module came first to import torch: each command would have a cache of its own.
copyreg.pickle(torch.memory_format, lambda f: (_memory_format, (str(f).rpartition(".")[2],)))


def compile_flow(flow: FlowT) -> FlowT:
    """Make every coupling of the flow run compiled code, in place.

    Each direction is compiled when it is first used, once for every batch size, coupling size and
    with or without gradient. Couplings of equal size share the graph whatever their masks, so the
    time to compile does not grow with depth. Ask `can_compile` first.

    Args:
        flow: Any module that holds `SplineCoupling` layers.

    Returns:
        The same module.
    """
    # One graph for every size of coupling and batch and every use: torch's default allows eight.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # torch 2.13 looks at the .grad of what it traces, and warns that a hidden layer's has none.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    for layer in couplings(flow):
        layer.wrapper = compiled
    return flow


def compile_ahead(flow: Flow, n: int) -> None:
    """Compile data → noise with gradient in a second process, unless this one has begun to.

    A step on detached points asks for noise → data and the energy first, which are compiled here
    meanwhile; when it comes to the loss it waits for that process and takes its code from torch's
    cache on disk. On two cores that is a third off the first step.

    Args:
        flow: Made ready by `compile_flow`.
        n: Batch size.
    """
    if not _ahead and (os.cpu_count() or 1) > 1:
        process = multiprocessing.get_context("spawn").Process(
            target=_encode, args=(copy.deepcopy(flow), n, torch.get_num_threads()), daemon=True
        )
        process.start()
        _ahead.append(process)


def _encode(flow: Flow, n: int, n_threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run
    torch.set_num_threads(n_threads)  # part of the code
    compile_flow(flow)
    flow.log_prob(flow.base.draw(n)).mean().backward()  # type: ignore[no-untyped-call]


@cache
def compiled(direction: Direction) -> Direction:
    """Return the compiled form of a coupling's direction; one for the whole process."""
    if direction is encode:
        for process in _ahead:
            process.join()
    run: Any = torch.compile(direction, dynamic=False, fullgraph=True)
    return run  # type: ignore[no-any-return]


def can_compile() -> bool:
    """Whether torch.compile finds what it needs on a CPU; says in one warning what is missing."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl"]
    missing = []
    if not any(name and shutil.which(name) for name in names):
        missing.append("a C++ compiler (Debian: apt-get install g++)")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing.append("Python's headers (Debian: apt-get install python3-dev)")
    if missing:
        warnings.warn(
            f"Running uncompiled, which is slower: {' and '.join(missing)} not found.",
            stacklevel=2,
        )
        return False
    try:
        check_cache()
    except OSError as error:
        warnings.warn(
            f"Running uncompiled, which is slower: compiled code cannot be kept: {error}. "
            "TORCHINDUCTOR_CACHE_DIR names another folder.",
            stacklevel=2,
        )
        return False
    return True


def check_cache() -> None:
    """Raise OSError unless torch.compile can write into its folder."""
    # Of torch's compiler, which takes its time to import.
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    with tempfile.TemporaryFile(dir=cache_dir()):
        pass
