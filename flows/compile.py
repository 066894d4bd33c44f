"""Regional compilation: one graph for a coupling layer, used by all of them."""

import os
import shutil
import warnings
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from flows.transforms.coupling import Direction, SplineCoupling

FlowT = TypeVar("FlowT", bound=nn.Module)


def compile_flow(flow: FlowT) -> FlowT:
    """Make every coupling of the flow run compiled code, in place.

    Each direction is compiled when it is first used, once for every batch size, coupling size and
    with or without gradient. Couplings of equal size share the graph whatever their masks, so the
    time to compile does not grow with depth. Without a C++ compiler this warns and does nothing.

    Args:
        flow: Any module that holds `SplineCoupling` layers.

    Returns:
        The same module.
    """
    if not _has_compiler():
        warnings.warn("no C++ compiler found: the flow runs uncompiled", stacklevel=2)
        return flow
    for module in flow.modules():
        if isinstance(module, SplineCoupling):
            module.wrapper = compiled
    return flow


@cache
def compiled(direction: Direction) -> Direction:
    """Return the compiled form of a coupling's direction; one for the whole process."""
    run: Any = torch.compile(direction, dynamic=False, fullgraph=True)
    return run  # type: ignore[no-any-return]


def _has_compiler() -> bool:
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl"]
    return any(name and shutil.which(name) for name in names)
