"""Checkpoints: tensors and plain containers only, read without running anything."""

import io
import logging
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flows import parallel
from flows.errors import FlowInputError
from flows.files import replacing

log = logging.getLogger(__name__)


class DamagedCheckpointError(FlowInputError):
    """A checkpoint is missing, not whole, or holds something that was never saved here."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` whole or not at all.

    Args:
        path: Final name; an older file of this name stays whole until the new one is.
        state: Tensors, numbers, strings and containers of them.

    Raises:
        OSError: The disk does not take it.
    """
    data = io.BytesIO()  # torch's own writer hides what a disk says in a RuntimeError
    torch.save(state, data)
    with replacing(path) as temporary:
        temporary.write_bytes(data.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; only tensors and plain containers are accepted.

    Raises:
        DamagedCheckpointError: The file is missing, cut short, changed, or holds anything else.
    """
    if not path.is_file():
        raise DamagedCheckpointError(f"Expected a checkpoint at {path}, got no such file.")
    try:
        with zipfile.ZipFile(path) as archive:
            if (name := archive.testzip()) is not None:  # torch's reader compares no checksum
                raise ValueError(f"{name} was changed")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise DamagedCheckpointError(
            f"Expected a complete checkpoint of tensors at {path}, got a file that cannot be "
            f"read ({type(error).__name__})."
        ) from error
    if not isinstance(state, dict):
        raise DamagedCheckpointError(
            f"Expected a checkpoint at {path}, got a {type(state).__name__}."
        )
    return state


class Reached(NamedTuple):
    """How far a training has come: steps, and seconds over all sessions."""

    steps: int
    seconds: float


def read_reached(path: Path) -> Reached | None:
    """Return how far the training of a checkpoint had come; None if it does not say."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return Reached(int(state["total_steps"]), float(state["total_seconds"]))
    except _UNREADABLE:
        return None


_UNREADABLE = (
    RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError,
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What changed bytes have been seen to raise, and what may come of them."""


class Checkpoints:
    """The checkpoints of a run: the newest, those of regular steps before it, and the best.

    Beside `last` lie step_<n>.pt and best.pt: other names of what `last` was once, so that they
    cost neither time nor, while they are the same, space.

    Args:
        last: Name of the newest, such as checkpoints/last.pt.
        keep: How many of regular steps are kept.
    """

    def __init__(self, last: Path, *, keep: int) -> None:
        self.last, self.keep = last, keep
        self.best = last.with_name("best.pt")

    @property
    def regular(self) -> list[Path]:
        """Those of regular steps, the newest first."""
        return sorted(self.last.parent.glob("step_*.pt"), reverse=True)

    def save(self, state: dict[str, Any], *, step: int | None = None, best: bool = False) -> None:
        """Write the newest.

        Args:
            state: As of `save_checkpoint`.
            step: Number of a regular step, under which it is kept as well.
            best: Whether it is the best so far, and kept as such.
        """
        save_checkpoint(self.last, state)
        if best:
            _link(self.last, self.best)
        if step is not None:
            mine = self.last.with_name(f"step_{step:09d}.pt")
            _link(self.last, mine)
            later = [path for path in self.regular if path.name > mine.name]
            # Later ones are of a training that went on from here before, and was given up.
            for path in later + self.regular[len(later) + self.keep :]:
                path.unlink()

    def restore(self, load: Callable[[Path], None], paths: Sequence[Path] | None = None) -> bool:
        """Load the newest that is whole; each damaged one is named and skipped.

        Of several processes the first one looks which there are.

        Args:
            load: Takes the name of one; raises DamagedCheckpointError before it changes anything.
            paths: Those to choose from, the first that is whole; all by default.

        Returns:
            False if there is none at all.

        Raises:
            DamagedCheckpointError: There are some, and all are damaged.
        """
        every = [self.last, *self.regular] if paths is None else paths
        found = parallel.at_first(lambda: [path for path in every if path.is_file()])
        for path in found:
            try:
                load(path)
            except DamagedCheckpointError as error:
                log.warning("%s The one before it is taken.", error)
            else:
                return True
        if found:
            raise DamagedCheckpointError(
                f"Expected a complete checkpoint in {self.last.parent}, got none: "
                f"{', '.join(path.name for path in found)} cannot be read."
            )
        return False


def _link(path: Path, name: Path) -> None:
    """Give a file another name, or copy it where the file system knows no such thing."""
    with replacing(name) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
