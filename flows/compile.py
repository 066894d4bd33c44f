"""Regional compilation: one graph for a coupling layer, used by all of them."""

import os
import shutil
import sysconfig
import warnings
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from flows.transforms.coupling import Direction, SplineCoupling

FlowT = TypeVar("FlowT", bound=nn.Module)


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
    for module in flow.modules():
        if isinstance(module, SplineCoupling):
            module.wrapper = compiled
    return flow


@cache
def compiled(direction: Direction) -> Direction:
    """Return the compiled form of a coupling's direction; one for the whole process."""
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
    return not missing
