"""python -m runs.evaluate run=<folder>: figures, samples, trajectory and pictures of a flow."""

import logging
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from energies.reference import Reference
from flows import parallel
from flows.evaluation import draw_weighted, weight_report
from flows.flow import Flow
from flows.progress import Progress
from flows.types import Samples
from runs.building import build_system, choose_device
from runs.cli import CommandError, run_command
from runs.comparison import compare, load_reference
from runs.comparison import summary as comparison_summary
from runs.compiling import SAMPLED, compile_all, worth_compiling
from runs.folder import RunFolder, write_json, writing_into
from runs.pictures import draw_pictures
from runs.records import Records, find_records, read_records
from runs.results import read_run
from runs.samples import write_samples
from runs.summary import as_text, table
from runs.systems import System
from runs.weights import load_flow, trained_steps

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
    flow: Flow,
    system: System,
    folder: RunFolder,
    sizes: Sizes,
    *,
    seed: int,
    reference: Reference | None = None,
    records: Records | None = None,
) -> dict[str, Any]:
    """Draw weighted samples and write everything that is known from them.

    Several processes draw them together; what comes then is left to the first.

    Args:
        flow: A trained flow of the system.
        system: What it samples.
        folder: Receives metrics.json, samples.npz, figures/ and what the system adds to them.
        sizes: How many samples to draw and to write.
        seed: Of the samples; training uses another stream.
        reference: Ground truth to compare with.
        records: Of the simulation that made the reference.

    Returns:
        What metrics.json holds; nothing in the other processes.
    """
    generator = parallel.own_stream(torch.Generator().manual_seed(seed + 1_000_003))
    samples, observed, x = _draw(flow, system, sizes, generator)
    if parallel.rank() > 0:
        return {}
    report = weight_report(samples)
    report["temperature"] = system.temperature
    report["step"] = trained_steps(folder)
    report |= system.report(observed, samples.log_w)
    report |= system.held_out(flow, sizes.n, chunk=sizes.chunk)
    said = [summary(report), *system.summary(report)]
    if reference is not None:
        found = compare(
            flow, system, reference, samples, observed, report,
            chunk=sizes.chunk, records=records,
        )  # fmt: skip
        report["reference"] = found
        said += comparison_summary(found)
    saved = slice(0, sizes.n_saved)
    write_samples(
        folder.samples,
        replace(samples[saved], x=x[saved]),
        {name: values[saved] for name, values in observed.items()},
        kind=system.kind,
        temperature=system.temperature,
    )
    system.write_frames(folder.path, x[: sizes.n_frames], generator)
    draw_pictures(folder, system, samples, observed)
    write_json(folder.metrics, report)  # last: what it tells of is there
    log.info("%s", "\n".join(said))
    return report


def summary(report: dict[str, Any]) -> str:
    """Say what the weights tell in two lines, three if it is not to be believed."""
    doubts = [] if report["reliable"] else [f"NOT TO BE TRUSTED: {report['verdict']}"]
    return "\n".join(
        [
            *doubts,
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
    first = parallel.rank() == 0
    with Progress(sizes.n, unit="sample", name="evaluate", shown=first) as bar:
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
            bar.reach(sum(map(len, parts)))
    columns = torch.cat(observed).unbind(-1)
    return Samples.cat(parts), dict(zip(system.observed, columns, strict=True)), torch.cat(x)


def evaluate_run(folder: RunFolder, config: DictConfig) -> None:
    """Evaluate one run folder again.

    Args:
        folder: Of a training run.
        config: Composed from `configs/evaluate.yaml`.
    """
    sizes = read_sizes(config.evaluation)
    device = choose_device(config.device)
    system = build_system(folder.config, device=device)
    reference = records = None
    if config.reference is not None:
        reference = load_reference(config.reference, system)
        if (path := find_records(config.records, config.reference)) is not None:
            records = read_records(path, reference, system)
    flow = load_flow(folder, system).to(device)
    if worth_compiling(config.compile, flow, SAMPLED * sizes.n):
        compile_all(flow, system.target)
    with writing_into(folder.path):
        evaluate(
            flow, system, folder, sizes, seed=config.seed, reference=reference, records=records
        )


def run(config: DictConfig) -> None:
    """Evaluate one run folder, or several and show them side by side.

    Args:
        config: Composed from `configs/evaluate.yaml`; `run` is a folder or a list of them.
    """
    several = OmegaConf.is_list(config.run)
    folders = [RunFolder.open(path) for path in (config.run if several else [config.run])]
    for folder in folders:
        if folder.shipped:
            raise CommandError(
                f"Expected run to be a folder to write into, got {folder.path}, which comes with "
                "the package: evaluate a copy of it."
            )
    if not folders:
        raise CommandError("Expected run=<folder of a training run>, got none.")
    for folder in folders:
        evaluate_run(folder, config)
    if several:
        log.info("%s", as_text(table([read_run(folder.path) for folder in folders])))


def main() -> None:
    """Run the command."""
    run_command(run, "evaluate")


if __name__ == "__main__":
    main()
