"""From a config to the objects it names: the only place where what is sampled meets a flow."""

from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from energies.base import Target
from flows import parallel
from flows.flow import Flow
from flows.training import Stage
from runs.cli import CommandError
from runs.systems import System

MOLECULE = "runs.systems.molecular.MolecularSystem"
"""What a node of the group `system` describes unless it has a `_target_`."""


def choose_device(name: str) -> torch.device:
    """Return the device that the config asks for; "auto" is a GPU where there is one.

    Of several processes each has a GPU of its own.

    Raises:
        CommandError: It is not one of auto, cpu, cuda; or there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise CommandError(f"Expected device to be auto, cpu or cuda, got {name!r}.")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise CommandError("Expected a GPU for device=cuda, got none; device=auto takes the CPU.")
    if name == "cpu" or not available:
        return torch.device("cpu")
    index, n = parallel.local_rank(), torch.cuda.device_count()
    if index >= n:
        raise CommandError(
            f"Expected a GPU for each process on a machine, got process {index + 1} and {n} GPUs; "
            "device=cpu takes none."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def build_system(config: DictConfig, *, device: torch.device) -> System:
    """Build what the config says is sampled.

    Args:
        config: Has the groups `system` and `energy`.
        device: Where the energy is computed.
    """
    system: System = instantiate(
        config.system,
        _target_=config.system.get("_target_", MOLECULE),
        energy=instantiate(config.energy),
        device=device,
    )
    return system


def build_flow(config: DictConfig, target: Target) -> Flow:
    """Build an untrained flow for `target`."""
    flow: Flow = instantiate(config.flow)(target.periodic)
    return flow


def build_stages(config: DictConfig) -> Sequence[Stage]:
    """Build the stages of the config, in their order.

    Raises:
        CommandError: The last one ends at another temperature than the system's.
    """
    stages: list[Stage] = []
    for name, node in config.stages.items():
        if node is not None:
            arguments: dict[str, Any] = {k: _instantiated(v) for k, v in node.items()}
            stages.append(Stage(name=str(name), **arguments))
    if stages and stages[-1].path.end > config.system.temperature:
        raise CommandError(
            f"Expected the path of the last stage, {stages[-1].name!r}, to end at "
            f"system.temperature = {config.system.temperature} kelvin, got an end at "
            f"{stages[-1].path.end}."
        )
    return stages


def _instantiated(node: Any) -> Any:
    return instantiate(node) if isinstance(node, DictConfig) else node
