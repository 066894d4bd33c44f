"""python -m runs.reference: the ground truth of a system, by parallel tempering."""

import logging
import time
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from energies.reference import (
    Langevin,
    ParallelTempering,
    Plan,
    ReferenceSession,
    geometric_ladder,
    pack_reference,
)
from flows.progress import Progress
from flows.training.checkpoint import load_checkpoint, save_checkpoint
from flows.training.signals import stop_on_signal
from runs.building import build_system, choose_device
from runs.cli import CommandError, run_command
from runs.compiling import wants_compiled
from runs.folder import RunFolder, provenance, write_arrays, write_json
from runs.reference_report import report, summary
from runs.systems import System

log = logging.getLogger(__name__)


def build_session(config: DictConfig, system: System, *, device: torch.device) -> ReferenceSession:
    """Build the simulation that the config describes, its replicas where the system starts them.

    Args:
        config: Composed from `configs/reference.yaml`.
        system: What is simulated.
        device: Where.
    """
    ladder = geometric_ladder(
        system.temperature, config.temperatures.highest, config.temperatures.n
    )
    masses = system.masses(hydrogen_mass=config.hydrogen_mass)
    langevin = Langevin(system.target.energy, masses.to(device), **config.langevin)
    if wants_compiled(config.compile):
        system.target.energy.compile()
    generator = torch.Generator(device).manual_seed(config.seed)
    tempering = ParallelTempering(
        langevin,
        ladder,
        system.start((len(ladder), config.n_chains), generator),
        n_chains=config.n_chains,
        swap_every=config.swap_every,
        generator=generator,
    )
    return ReferenceSession(tempering, Plan(**config.plan), system.measure)


def simulate(session: ReferenceSession, checkpoint: Path, *, checkpoint_every: int) -> float:
    """Carry the session to its end, from its checkpoint if there is one.

    Args:
        session: The simulation.
        checkpoint: File to keep its state in.
        checkpoint_every: Blocks between checkpoints.

    Returns:
        Wall time of this call, seconds.

    Raises:
        InterruptedRunError: The process was asked to stop; the checkpoint was written.
    """
    if checkpoint.exists():
        session.load_state_dict(load_checkpoint(checkpoint))
    started, tempering = time.monotonic(), session.tempering
    shown = Progress(
        session.plan.n_blocks, unit="block", name="simulate", initial=session.n_blocks
    )
    with shown, stop_on_signal() as stop:
        while not session.finished:
            session.advance()
            shown.say(
                f"{tempering.langevin.energy.n_evals:.2e} energies, "
                f"{int(tempering.round_trips.sum())} round trips"
            )
            shown.reach(session.n_blocks)
            asked = stop.asked
            if session.n_blocks % checkpoint_every == 0 or asked or session.finished:
                save_checkpoint(checkpoint, session.state_dict())
            if asked and not session.finished:
                raise stop.error(f"after block {session.n_blocks}; the checkpoint is {checkpoint}")
    return time.monotonic() - started


def run(config: DictConfig) -> None:
    """Simulate, then write records, small reference file and diagnostics.

    Args:
        config: Composed from `configs/reference.yaml`.
    """
    for name in ("bins", "checkpoint_every"):  # needed late, so looked at early
        if not (isinstance(config[name], int) and config[name] >= 1):
            raise CommandError(f"Expected {name} >= 1 and a whole number, got {config[name]!r}.")
    device = choose_device(config.device)
    if config.resume is not None:
        RunFolder.open(config.resume, key="resume", needs=("config.yaml", "checkpoints/last.pt"))
    system = build_system(config, device=device)
    session = build_session(config, system, device=device)
    folder = RunFolder(config.resume or HydraConfig.get().runtime.output_dir)
    folder.start(config)
    log.info(
        "%s: %s, %d temperatures x %d chains from %.0f to %.0f K, %.4g ps each of "
        "production; folder %s",
        config.system.name,
        system.size,
        *session.tempering.phase.potential.shape,
        *session.tempering.temperatures[[0, -1]].tolist(),
        session.plan.production * session.plan.block * config.langevin.time_step,
        folder.path,
    )
    seconds = simulate(session, folder.checkpoint, checkpoint_every=config.checkpoint_every)
    log.info("simulated in %.0f s", seconds)
    write_arrays(
        folder.path / "records.npz",
        temperatures=session.tempering.temperatures.cpu().numpy(),
        observed_names=list(system.observed),
        **{name: table.numpy() for name, table in session.records.items()},
    )
    origin = provenance() | {"config": OmegaConf.to_container(config, resolve=True)}
    reference = report(session, system, bins=config.bins, origin=origin)
    write_arrays(folder.path / "reference.npz", **pack_reference(reference))
    write_json(folder.path / "diagnostics.json", reference.diagnostics)
    log.info("%s", summary(reference.diagnostics))


def main() -> None:
    """Run the command."""
    run_command(run, "reference")


if __name__ == "__main__":
    main()
