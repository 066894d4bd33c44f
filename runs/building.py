"""From a config to the objects it names: the only place where molecules meet flows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from energies.base import Energy
from energies.dihedrals import backbone_torsions
from energies.errors import EnergyInputError
from energies.internal import InternalCoordinates
from energies.molecule import Molecule
from energies.target import MolecularTarget
from flows.flow import Flow
from flows.training import Stage
from runs.cli import CommandError


@dataclass(frozen=True)
class System:
    """A molecule at a temperature, ready to be sampled.

    Attributes:
        molecule: Topology, OpenMM System, minimised structure.
        target: Its density over internal coordinates, float32.
        temperature: T, kelvin.
        torsions: Backbone torsions by name: atom indices.
        basins: Torsion boxes by name, radians.
    """

    molecule: Molecule
    target: MolecularTarget
    temperature: float
    torsions: dict[str, tuple[int, int, int, int]]
    basins: dict[str, dict[str, tuple[float, float]]]

    @property
    def coordinates(self) -> InternalCoordinates:
        """Internal coordinates of the molecule."""
        return self.target.coordinates


def choose_device(name: str) -> torch.device:
    """Return the device that the config asks for; "auto" is a GPU where there is one.

    Raises:
        CommandError: It is not one of auto, cpu, cuda; or there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise CommandError(f"Expected device to be auto, cpu or cuda, got {name!r}.")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise CommandError("Expected a GPU for device=cuda, got none; device=auto takes the CPU.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def build_system(config: DictConfig, *, device: torch.device) -> System:
    """Build the molecule, its energy and its coordinates.

    Args:
        config: Has the groups `system` and `energy`.
        device: Where the energy is computed.
    """
    temperature = float(config.system.temperature)
    if not temperature > 0:
        raise EnergyInputError(f"Expected system.temperature > 0 kelvin, got {temperature}.")
    molecule: Molecule = instantiate(config.system.molecule)
    energy: Energy = instantiate(config.energy)(molecule.system)
    coordinates = InternalCoordinates.from_molecule(molecule, energy, temperature=temperature)
    energy.n_evals = 0  # the Hessian's; what is counted is training
    target = MolecularTarget(
        energy.to(device, torch.float32), coordinates.to(device, torch.float32)
    )
    atoms = [(a.residue.index + 1, a.residue.name, a.name) for a in molecule.topology.atoms()]
    basins = {
        name: {torsion: (float(lo), float(hi)) for torsion, (lo, hi) in box.items()}
        for name, box in config.system.get("basins", {}).items()
    }
    return System(molecule, target, temperature, backbone_torsions(atoms), basins)


def build_flow(config: DictConfig, target: MolecularTarget) -> Flow:
    """Build an untrained flow for `target`."""
    flow: Flow = instantiate(config.flow)(target.periodic)
    return flow


def build_stages(config: DictConfig) -> Sequence[Stage]:
    """Build the stages of the config, in their order."""
    stages: list[Stage] = []
    for name, node in config.stages.items():
        if node is not None:
            arguments: dict[str, Any] = {k: _instantiated(v) for k, v in node.items()}
            stages.append(Stage(name=str(name), **arguments))
    return stages


def _instantiated(node: Any) -> Any:
    return instantiate(node) if isinstance(node, DictConfig) else node
