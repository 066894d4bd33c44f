"""python -m runs.export run=<folder> out=<folder>: a trained flow as small files to hand on."""

import logging

import torch
from omegaconf import DictConfig

from runs.building import build_system
from runs.cli import CommandError, run_command
from runs.folder import RunFolder, writing_into
from runs.weights import export_flow, load_flow

log = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Write the averaged weights of a run and what is needed to build its flow and system.

    The folder `out` can be given wherever a command takes run=<folder>.

    Args:
        config: Composed from `configs/export.yaml`.
    """
    folder = RunFolder.open(config.run)
    if config.out is None:
        raise CommandError("Expected out=<folder for the files>, got none.")
    made = RunFolder(config.out)
    system = build_system(folder.config, device=torch.device("cpu"))
    flow = load_flow(folder, system)
    with writing_into(made.path):
        made.start(folder.config)
        export_flow(flow, system, made.exported)
    size = sum(path.stat().st_size for path in made.path.iterdir()) / 1e6
    log.info("%s: %s, %.1f MB", made.path, system.name, size)


def main() -> None:
    """Run the command."""
    run_command(run, "export")


if __name__ == "__main__":
    main()
