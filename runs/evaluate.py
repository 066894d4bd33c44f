"""python -m runs.evaluate run=<folder>: figures, samples, trajectory and pictures of a flow."""

import logging
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from flows.evaluation import draw_weighted, weight_report
from flows.flow import Flow
from flows.training.checkpoint import load_checkpoint
from flows.types import Samples
from runs.building import build_flow, build_system, choose_device
from runs.cli import CommandError, run_command
from runs.compiling import compile_all
from runs.folder import RunFolder, write_arrays, write_json
from runs.pictures import draw_pictures
from runs.systems import System

log = logging.getLogger(__name__)


class Sizes(NamedTuple):
    """How many samples are drawn, at a time, saved, and written as frames."""

    n: int
    chunk: int
    n_saved: int
    n_frames: int


def read_sizes(settings: DictConfig) -> Sizes:
    """Return the group `evaluation` as whole numbers, of which 1e6 is one.

    Raises:
        CommandError: One of them is not a whole number of at least 1.
    """
    for name in Sizes._fields:
        value = settings[name]
        if not isinstance(value, int | float) or value < 1 or value != int(value):
            raise CommandError(
                f"Expected evaluation.{name} >= 1 and a whole number, got {value!r}."
            )
    return Sizes(**{name: int(settings[name]) for name in Sizes._fields})


def evaluate(
    flow: Flow, system: System, folder: RunFolder, sizes: Sizes, *, seed: int
) -> dict[str, Any]:
    """Draw weighted samples and write everything that is known from them.

    Args:
        flow: A trained flow of the system.
        system: What it samples.
        folder: Receives metrics.json, samples.npz, figures/ and what the system adds to them.
        sizes: How many samples to draw and to write.
        seed: Of the samples; training uses another stream.

    Returns:
        What metrics.json holds.
    """
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    samples, observed, x = _draw(flow, system, sizes, generator)
    report = weight_report(samples)
    report["temperature"] = system.temperature
    report |= system.report(observed, samples.log_w)
    report |= system.held_out(flow, sizes.n, chunk=sizes.chunk)
    write_json(folder.metrics, report)
    saved = slice(0, sizes.n_saved)
    write_arrays(
        folder.samples,
        x=x[saved].numpy(),
        log_q=samples.log_q[saved].numpy(),
        potential=samples.potential[saved].numpy(),
        log_jac=samples.log_jac[saved].numpy(),
        log_w=samples.log_w[saved].numpy(),
        temperature=np.array(system.temperature),
        **{f"{system.kind}_{name}": v[saved].numpy() for name, v in observed.items()},
    )
    system.write_frames(folder.path, x[: sizes.n_frames], generator)
    draw_pictures(folder, system, samples, observed)
    log.info("%s", "\n".join([summary(report), *system.summary(report)]))
    return report


def summary(report: dict[str, Any]) -> str:
    """Say what the weights tell in two lines."""
    return "\n".join(
        [
            f"ESS {report['ess']:.1%} unclipped, {report['ess_clip1e-4']:.1%} clipped at 1e-4, "
            f"N = {report['n']:.0e}; Pareto k {report['pareto_k']:.2f} "
            f"(reliable below {report['pareto_k_threshold']:.2f})",
            f"log Z {report['log_z']:.4f} ± {report['log_z_se']:.4f}, "
            f"ELBO {report['elbo']:.4f}, reverse KL {report['reverse_kl']:.4f} nats",
        ]
    )


def _draw(
    flow: Flow, system: System, sizes: Sizes, generator: torch.Generator
) -> tuple[Samples, dict[str, Tensor], Tensor]:
    """Weighted samples without their x, what is observed in them, and the x that are kept."""
    keep = max(sizes.n_saved, sizes.n_frames)
    parts, observed, x = [], [], []
    kept = 0
    with tqdm(total=sizes.n, unit="sample", desc="evaluate", disable=None) as bar:
        for part in draw_weighted(
            flow,
            system.target,
            system.temperature,
            sizes.n,
            chunk=min(sizes.chunk, sizes.n),
            generator=generator,
        ):
            observed.append(system.observe(part.x).to(torch.float32).cpu())
            if kept < keep:
                x.append(part.x.cpu())
                kept += len(part)
            parts.append(replace(part, x=part.x.new_empty(len(part), 0)).cpu())
            bar.update(len(part))
    columns = torch.cat(observed).unbind(-1)
    return Samples.cat(parts), dict(zip(system.observed, columns, strict=True)), torch.cat(x)


def load_flow(folder: RunFolder, system: System) -> Flow:
    """Return the averaged weights of a run's last checkpoint.

    Raises:
        CommandError: The checkpoint belongs to another system or another flow.
    """
    state = load_checkpoint(folder.checkpoint)
    if state.get("dim") != system.target.dim:
        raise CommandError(
            f"Expected a checkpoint of {folder.config.system.name} ({system.target.dim} "
            f"coordinates) in {folder.path}, got one of another system ({state.get('dim')})."
        )
    flow = build_flow(folder.config, system.target)
    try:
        flow.load_state_dict(state["ema"])
    except RuntimeError as error:
        raise CommandError(
            f"Expected a checkpoint of the flow in {folder.config_file}, got other layers."
        ) from error
    return flow


def run(config: DictConfig) -> None:
    """Evaluate a run folder again.

    Args:
        config: Composed from `configs/evaluate.yaml`.
    """
    folder = RunFolder.open(config.run)
    sizes = read_sizes(config.evaluation)
    stored = folder.config
    device = choose_device(config.device)
    system = build_system(stored, device=device)
    flow = load_flow(folder, system).to(device)
    compile_all(flow, system.target, config.compile)
    try:
        evaluate(flow, system, folder, sizes, seed=config.seed)
    except OSError as error:
        raise CommandError(f"Expected to write into {folder.path}, got: {error}.") from error


def main() -> None:
    """Run the command."""
    run_command(run, "evaluate")


if __name__ == "__main__":
    main()
