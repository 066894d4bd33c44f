"""python -m runs.reference: the ground truth of a system, by parallel tempering."""

import logging
import time
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from energies.dihedrals import torsions
from energies.reference import (
    Langevin,
    ParallelTempering,
    Plan,
    ReferenceSession,
    geometric_ladder,
    masses_from_openmm,
    pack_reference,
    repartition,
)
from flows.training import InterruptedRunError
from flows.training.checkpoint import load_checkpoint, save_checkpoint
from flows.training.signals import stop_on_signal
from runs.building import build_system, choose_device
from runs.cli import CommandError, run_command
from runs.compiling import wants_compiled
from runs.folder import RunFolder, write_arrays, write_json
from runs.reference_report import report, summary
from runs.systems.molecular import MolecularSystem

log = logging.getLogger(__name__)


def build_session(
    config: DictConfig, system: MolecularSystem, *, device: torch.device
) -> ReferenceSession:
    """Build the simulation that the config describes, its replicas at the minimum.

    Args:
        config: Composed from `configs/reference.yaml`.
        system: What is simulated.
        device: Where.
    """
    ladder = geometric_ladder(
        system.temperature, config.temperatures.highest, config.temperatures.n
    )
    masses = masses_from_openmm(system.molecule.system)
    if config.hydrogen_mass is not None:
        bonds = system.molecule.bonds
        masses = repartition(masses, bonds, hydrogen_mass=config.hydrogen_mass)
    langevin = Langevin(system.target.energy, masses.to(device), **config.langevin)
    if wants_compiled(config.compile):
        langevin.compile()
    tempering = ParallelTempering(
        langevin,
        ladder,
        torch.tensor(system.molecule.positions, dtype=torch.float32, device=device),
        n_chains=config.n_chains,
        swap_every=config.swap_every,
        generator=torch.Generator(device).manual_seed(config.seed),
    )
    quadruples = list(system.torsions.values())

    def observe(xyz: Tensor) -> Tensor:
        return torsions(xyz, quadruples)

    return ReferenceSession(tempering, Plan(**config.plan), observe)


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
    bar = tqdm(total=session.plan.n_blocks, initial=session.n_blocks, unit="block", disable=None)
    with bar, stop_on_signal() as stop:
        while not session.finished:
            session.advance()
            bar.update()
            bar.set_postfix_str(
                f"{tempering.langevin.energy.n_evals:.2e} energies, "
                f"{int(tempering.round_trips.sum())} round trips"
            )
            if session.n_blocks % checkpoint_every == 0 or stop.is_set() or session.finished:
                save_checkpoint(checkpoint, session.state_dict())
            if stop.is_set() and not session.finished:
                raise InterruptedRunError(
                    f"Stopped at block {session.n_blocks}; the checkpoint is {checkpoint}."
                )
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
        RunFolder.open(config.resume, key="resume")
    system = build_system(config, device=device)
    if not isinstance(system, MolecularSystem):
        raise CommandError(
            f"Expected system to be a molecule, got {system.name}, whose exact results are known."
        )
    session = build_session(config, system, device=device)
    folder = RunFolder(config.resume or HydraConfig.get().runtime.output_dir)
    folder.start(config)
    log.info(
        "%s: %d atoms, %d temperatures x %d chains from %.0f to %.0f K, %.4g ps each of "
        "production; folder %s",
        config.system.name,
        system.molecule.n_atoms,
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
        torsion_names=list(system.torsions),
        **{name: table.numpy() for name, table in session.records.items()},
    )
    reference = report(session, system, bins=config.bins)
    write_arrays(folder.path / "reference.npz", **pack_reference(reference))
    write_json(folder.path / "diagnostics.json", reference.diagnostics)
    log.info("%s", summary(reference.diagnostics))


def main() -> None:
    """Run the command."""
    run_command(run, "reference")


if __name__ == "__main__":
    main()
