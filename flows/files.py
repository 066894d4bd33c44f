"""Files that are there whole or not at all, and locks that die with their process."""

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, with its suffix, that takes its place on success.

    What was written is on the disk before the rename, so that neither an exception nor a power
    cut leaves half a file under the final name, and an older file stays whole until then.

    Args:
        path: The final name; its folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}.", suffix=f"{_PARTIAL}{path.suffix}"
    )
    temporary = Path(name)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


_PARTIAL = ".partial"
_AGE = 60.0
"""Seconds after which a file that nobody has locked is given up: a new one is not locked yet."""


def _clear(folder: Path) -> None:
    """Remove what processes that were killed had begun to write: nobody holds its lock."""
    for left in folder.glob(f".*{_PARTIAL}*"):
        with suppress(OSError), left.open("rb") as file:
            if time.time() - left.stat().st_mtime > _AGE:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk: a rename survives a power cut from here on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when the process ends, however it ends.

    Args:
        path: The file that is locked; it stays, empty.

    Raises:
        BlockingIOError: Another process holds it, or this one already does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # `is_locked` holds it for an instant to find out
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.05)
        yield  # closing the file gives the lock back


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


_ATTEMPTS = 10
