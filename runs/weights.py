"""The trained flow of a run: from its last checkpoint, or from what `runs.export` made of it."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flows.files import replacing
from flows.flow import Flow
from flows.training.checkpoint import load_checkpoint, read_reached
from runs.building import build_flow
from runs.cli import CommandError
from runs.folder import RunFolder
from runs.systems import System

_FLOW, _COORDINATES = "flow.", "coordinates."


def load_flow(folder: RunFolder, system: System) -> Flow:
    """Return the averaged weights of a run.

    An exported flow brings the coordinates it was trained in; those of `system`, found anew on
    this machine, may differ in their last digits and are replaced.

    Raises:
        CommandError: They belong to another system or another flow, or their file is damaged.
    """
    if folder.exported.is_file():
        stored = _read(folder.exported)
        weights = _part(stored, _FLOW)
        _restore_coordinates(system.target.coordinates, _part(stored, _COORDINATES), folder)
    else:
        state = load_checkpoint(folder.checkpoint)
        if state.get("dim") != system.target.dim:
            raise CommandError(
                f"Expected a checkpoint of {folder.config.system.name} ({system.target.dim} "
                f"coordinates) in {folder.path}, got one of another system ({state.get('dim')})."
            )
        weights = state["ema"]
    flow = build_flow(folder.config, system.target)
    try:
        flow.load_state_dict(weights)
    except RuntimeError as error:
        raise CommandError(
            f"Expected the weights of the flow in {folder.config_file}, got other layers."
        ) from error
    return flow


def export_flow(flow: Flow, system: System, path: Path) -> None:
    """Write weights and coordinates as one safetensors file, which holds nothing but numbers."""
    coordinates = system.target.coordinates
    parts = {_FLOW: flow.state_dict(), _COORDINATES: coordinates.state_dict()}
    tensors = {
        f"{prefix}{name}": tensor.cpu().clone(memory_format=torch.contiguous_format)
        for prefix, state in parts.items()
        for name, tensor in state.items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def trained_steps(folder: RunFolder) -> int | None:
    """Return the steps of training that the flow of a run has behind it, if its file says so."""
    reached = read_reached(folder.checkpoint)
    return None if reached is None else reached.steps


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CommandError(
            f"Expected a whole file of weights at {path}, got: {type(error).__name__}: {error}."
        ) from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _restore_coordinates(
    coordinates: nn.Module, stored: dict[str, Tensor], folder: RunFolder
) -> None:
    built = coordinates.state_dict()
    same = built.keys() == stored.keys() and all(
        built[name].shape == tensor.shape
        and (tensor.is_floating_point() or torch.equal(built[name].cpu(), tensor))
        for name, tensor in stored.items()
    )
    if not same:
        raise CommandError(
            f"Expected coordinates of {folder.config.system.name} in {folder.exported}, got those "
            "of another molecule or another version."
        )
    coordinates.load_state_dict(stored)
