"""python -m runs.sample run=<folder> n=10000: frames of a trained flow for other programs."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from flows.flow import Flow
from flows.metrics.weights import (
    effective_size,
    known,
    log_z,
    pareto_k,
    pareto_k_threshold,
    resample,
    verdict,
)
from flows.paths import Temperature
from flows.progress import Progress
from flows.proposals import Proposal
from flows.types import Samples, Weights
from runs.building import build_system, choose_device
from runs.cli import CommandError, run_command
from runs.compiling import compile_all, worth_compiling
from runs.folder import RunFolder, provenance, write_json, writing_into
from runs.samples import write_samples
from runs.systems import System
from runs.trajectory import check_format
from runs.weights import load_flow

log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """How much to draw.

    Attributes:
        n: Number of samples; or as many as `size` takes, if None.
        size: Effective number of samples, (Σ w)² / Σ w².
        most: Number of samples at most on the way to `size`.
    """

    n: int | None
    size: float = math.inf
    most: int = 10_000_000


def read_wanted(config: DictConfig) -> Wanted:
    """Return `n`, `ess` and `max_n` of the config as numbers, of which 1e6 is one.

    Raises:
        CommandError: One is not at least 1, or not exactly one of `n` and `ess` is given.
    """
    if (config.n is None) == (config.ess is None):
        raise CommandError(
            f"Expected either n=<samples> or ess=<effective size>, got n={config.n} "
            f"and ess={config.ess}."
        )
    for name in ("n", "ess", "max_n", "chunk", "resample"):
        value = config[name]
        whole = isinstance(value, int | float) and value >= 1 and (name == "ess" or value % 1 == 0)
        if value is not None and not whole:
            raise CommandError(f"Expected {name} >= 1 and a whole number, got {value!r}.")
    if config.n is not None:
        return Wanted(int(config.n))
    return Wanted(None, float(config.ess), int(config.max_n))


def draw(
    flow: Flow,
    system: System,
    source: Proposal,
    wanted: Wanted,
    *,
    chunk: int,
    generator: torch.Generator,
) -> tuple[Samples, dict[str, float]]:
    """Draw weighted samples of a system.

    Args:
        flow: A trained flow of the system.
        system: What it samples.
        source: Where samples come from: the flow itself, or the flow refined.
        wanted: How many. Stopping at an effective size is no proof of it: a weight still unseen
            would lower it, which Pareto k tells.
        chunk: Rows at a time; the last chunk is drawn whole, for its static shape, and cut.
        generator: Source of randomness.

    Returns:
        Samples on the CPU, and the mean figures of `source`, such as its acceptance.

    Raises:
        CommandError: An effective size is wanted of samples that are not independent, or was not
            reached.
    """
    if wanted.n is None and not source.independent:
        raise CommandError(
            f"Expected n=<samples> with {type(source).__name__}, got ess={wanted.size:g}: its "
            "samples depend on each other, and weights do not tell their effective size."
        )
    target, path = system.target, Temperature(system.temperature)
    total = wanted.n if wanted.n is not None else wanted.size
    parts: list[Samples] = []
    figures: list[dict[str, float]] = []
    first = second = torch.tensor(-math.inf, dtype=torch.float64)  # log Σ w, log Σ w²
    n, reached = 0, 0.0
    with Progress(total, unit="sample", name="sample") as bar, torch.no_grad():
        while reached < total:
            if n >= wanted.most and wanted.n is None:
                raise CommandError(
                    f"Expected an effective size of {wanted.size:g} within max_n={wanted.most} "
                    f"samples, got {reached:.4g}."
                )
            part = source.draw(
                flow, target, path, chunk, reparametrised=False, generator=generator
            )
            part = replace(part, log_w=known(part.log_w)).detach().cpu()
            parts.append(part)
            figures.append(source.figures())
            n += len(part)
            first = torch.logaddexp(first, part.log_w.logsumexp(0))
            second = torch.logaddexp(second, (2 * part.log_w).logsumexp(0))
            size = (2 * first - second).nan_to_num(-math.inf)  # while every weight is zero
            reached = float(n) if wanted.n is not None else float(size.exp())
            bar.reach(min(reached, total))
    samples = Samples.cat(parts)[: wanted.n]
    means = {name: fmean(row[name] for row in figures) for name in figures[-1]}
    return samples, means


def evenly(samples: Samples, n: int, generator: torch.Generator) -> Samples:
    """Draw samples of equal weight by their weights, systematically: frames that need none.

    Args:
        samples: Weighted samples.
        n: Number of rows to draw; a row may come more than once.
        generator: Source of randomness.
    """
    drawn = samples[resample(samples.log_w, n, generator, "systematic")]
    return replace(drawn, log_q=drawn.log_p, log_w=torch.zeros_like(drawn.log_w))


def report(samples: Samples, source: Proposal) -> dict[str, Any]:
    """Return what is known of samples.

    Weights judge samples that are independent; of others only log Z is given, if they tell it.

    Args:
        samples: As drawn.
        source: Where they come from.
    """
    n = len(samples)
    found = {"n": n, "distinct": len(samples.log_p.unique())}
    if source.gives < Weights.ABSOLUTE:
        return found
    log_w = samples.log_w
    z = log_z(log_w)
    if not source.independent:
        return found | {"log_z": z.value}
    trust = verdict(log_w)
    return found | {
        "log_z": z.value,
        "log_z_se": z.se,
        "effective_size": effective_size(log_w),
        "pareto_k": pareto_k(log_w),
        "pareto_k_threshold": pareto_k_threshold(n),
        "reliable": trust.reliable,
        "verdict": trust.reason,
    }


def say(found: dict[str, Any]) -> list[str]:
    """Say in lines what a report holds."""
    lines = [f"{found['n']} samples, {found['distinct']} distinct, {found['n_evals']} energies"]
    if "verdict" in found:
        doubt = "" if found["reliable"] else "not to be trusted: "
        lines.append(f"{doubt}{found['verdict']}")
    if "log_z" in found:
        error = f" ± {found['log_z_se']:.4f}" if "log_z_se" in found else ""
        lines.append(f"log Z {found['log_z']:.4f}{error}")
    if "acceptance" in found:
        lines.append(f"{found['acceptance']:.0%} of moves accepted")
    if "frames" in found:
        lines.append(
            f"{found['frames']} frames of equal weight, {found['distinct_frames']} distinct"
        )
    return lines


def write(
    folder: Path,
    system: System,
    samples: Samples,
    generator: torch.Generator,
    *,
    file_format: str,
    chunk: int,
) -> None:
    """Write samples.npz, and the same rows as a trajectory if the system has one.

    Args:
        folder: Receives the files.
        system: What was sampled.
        samples: On the CPU.
        generator: Source of randomness: labels of symmetric rotors are exchanged at random.
        file_format: Of the trajectory, one of `runs.trajectory.FORMATS`.
        chunk: Rows looked at at a time.
    """
    device = system.target.periodic.device
    with torch.no_grad():
        rows = [system.observe(x.to(device)).float().cpu() for x in samples.x.split(chunk)]
    observed = dict(zip(system.observed, torch.cat(rows).unbind(-1), strict=True))
    write_samples(
        folder / "samples.npz",
        samples,
        observed,
        kind=system.kind,
        temperature=system.temperature,
    )
    system.write_frames(folder, samples.x, generator, file_format=file_format)


def run(config: DictConfig) -> None:
    """Draw samples of a run's flow and write them.

    Args:
        config: Composed from `configs/sample.yaml`.
    """
    folder = RunFolder.open(config.run)
    wanted = read_wanted(config)
    check_format(config.format)
    device = choose_device(config.device)
    system = build_system(folder.config, device=device)
    flow = load_flow(folder, system).to(device)
    if worth_compiling(config.compile, flow, wanted.n or wanted.size):
        compile_all(flow, system.target)
    source: Proposal = instantiate(config.refine)
    # Training and evaluation use other streams.
    generator = torch.Generator().manual_seed(config.seed + 2_000_003)
    system.target.energy.n_evals = 0
    chunk = int(config.chunk)
    samples, figures = draw(flow, system, source, wanted, chunk=chunk, generator=generator)
    found = report(samples, source) | figures | {"n_evals": system.target.n_evals}
    if config.resample is not None:
        samples = evenly(samples, int(config.resample), generator)
        found |= {"frames": len(samples), "distinct_frames": len(samples.log_p.unique())}
    beside = Path() if folder.shipped else folder.path
    out = Path(config.out) if config.out else beside / "sampled"
    with writing_into(out):
        write(out, system, samples, generator, file_format=config.format, chunk=chunk)
        write_json(out / "sample.json", found | {"run": str(folder.path)} | provenance())
    log.info("%s", "\n".join([*say(found), f"written into {out}"]))


def main() -> None:
    """Run the command."""
    run_command(run, "sample")


if __name__ == "__main__":
    main()
