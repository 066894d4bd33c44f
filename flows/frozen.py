"""Which parameters the graphs that are built have a part for."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import nn


@contextmanager
def requiring(module: nn.Module, flags: Sequence[bool]) -> Iterator[None]:
    """Let gradients of the parameters be asked for as `flags` say, in their order."""
    parameters = list(module.parameters())
    before = [p.requires_grad for p in parameters]
    for p, flag in zip(parameters, flags, strict=True):
        p.requires_grad_(flag)
    try:
        yield
    finally:
        for p, flag in zip(parameters, before, strict=True):
            p.requires_grad_(flag)


def frozen(module: nn.Module) -> AbstractContextManager[None]:
    """Give the parameters no part in the graphs that are built inside: only inputs have one."""
    return requiring(module, [False for _ in module.parameters()])
