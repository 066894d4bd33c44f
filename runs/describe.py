"""python -m runs.describe system=aldp: print the internal coordinates of a system."""

import sys

from hydra.utils import instantiate
from omegaconf import DictConfig

from energies import describe
from runs.cli import CommandError, run_command


def run(config: DictConfig) -> None:
    """Build the molecule and its energy, and print the tree of placements.

    Args:
        config: Composed from `configs/describe.yaml`.

    Raises:
        CommandError: The system is not a molecule.
    """
    if "molecule" not in config.system:
        raise CommandError(
            f"Expected a system with a molecule, got {config.system.name}: it has no internal "
            "coordinates."
        )
    molecule = instantiate(config.system.molecule)
    energy = instantiate(config.energy)(molecule.system)
    text = describe(molecule, energy, temperature=float(config.system.temperature))
    sys.stdout.write(f"{text}\n")


def main() -> None:
    """Run the command."""
    run_command(run, "describe")


if __name__ == "__main__":
    main()
