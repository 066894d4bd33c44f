"""Checkpoints: tensors and plain containers only, read without running anything."""

import pickle
from pathlib import Path
from typing import Any

import torch

from flows.errors import FlowInputError
from flows.files import replacing


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` whole or not at all.

    Args:
        path: Final name; an older file of this name stays whole until the new one is.
        state: Tensors, numbers, strings and containers of them.
    """
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; only tensors and plain containers are accepted.

    Raises:
        FlowInputError: The file is missing, cut short, or holds anything else.
    """
    if not path.is_file():
        raise FlowInputError(f"Expected a checkpoint at {path}, got no such file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError) as error:
        raise FlowInputError(
            f"Expected a complete checkpoint of tensors at {path}, got a file that cannot be "
            f"read ({type(error).__name__})."
        ) from error
    if not isinstance(state, dict):
        raise FlowInputError(f"Expected a checkpoint at {path}, got a {type(state).__name__}.")
    return state
