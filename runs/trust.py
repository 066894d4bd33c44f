"""Whom the user trusts: what a stored config may name beside this package (see `targets`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

allowed: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())
"""Packages, modules and files that the user named."""


@contextmanager
def trusting(names: str | Sequence[str] | None) -> Iterator[None]:
    """Trust packages, modules and files by name for a while."""
    token = allowed.set((names,) if isinstance(names, str) else tuple(names or ()))
    try:
        yield
    finally:
        allowed.reset(token)
