"""python -m runs.probe run=<folder>: look for what a trained flow has missed."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from flows.probe import Probe, Share, probe
from runs.building import build_system, choose_device
from runs.cli import CommandError, run_command
from runs.compiling import wants_compiled
from runs.folder import RunFolder, write_json
from runs.samples import read_samples
from runs.systems import System
from runs.weights import load_flow, trained_steps

log = logging.getLogger(__name__)


def probe_run(
    folder: Path | str | None,
    *,
    n_regions: int = 5,
    n_structures: int = 10,
    seed: int = 0,
    device: str = "auto",
    compile: bool | str = "auto",
    **walkers: Any,
) -> dict[str, Any]:
    """Probe the flow of a run; write probe.json and the worst regions as PDB into its folder.

    Args:
        folder: A training run that was evaluated.
        n_regions: Regions written, the most massive ones.
        n_structures: Structures of each, at most.
        seed: Of the walkers.
        device: "auto", "cpu" or "cuda".
        compile: Whether energies are compiled: True, False, or "auto", where a compiler is found.
        **walkers: Further arguments of `flows.probe.probe`.

    Returns:
        What probe.json holds: `verdict` in words, `found`, the missing share, the regions.

    Raises:
        CommandError: The folder is not that of an evaluated run, or a number is out of range.
    """
    for name, value in (("n_regions", n_regions), ("n_structures", n_structures)):
        if value < 1:
            raise CommandError(f"Expected {name} >= 1, got {value}.")
    run = RunFolder.open(folder)
    stored = read_samples(run.samples)
    where = choose_device(device)
    system = build_system(run.config, device=where)
    flow = load_flow(run, system).to(where)
    if wants_compiled(compile):
        system.target.compile()
    generator = torch.Generator().manual_seed(seed)
    found = probe(
        flow,
        system.target,
        stored.samples.to(where),
        temperature=stored.temperature,
        features=system.features,
        generator=generator,
        progress=partial(tqdm, unit="step", desc="probe", disable=None),
        **walkers,
    )
    for older in (run.path / "probe").glob("region_*.pdb"):
        older.unlink()
    regions = [
        _written(system, found, k, run.path / "probe", n_structures, generator)
        for k in range(min(n_regions, len(found.regions)))
    ]
    report = {
        "step": trained_steps(run),
        "verdict": found.verdict,
        "found": found.found,
        **_numbers(found.missing),
        "factor": found.factor,
        "effective_walkers": found.effective,
        "acceptance": found.acceptance,
        "highest_temperature": found.temperature,
        "n_evals": system.target.n_evals,
        "regions": regions,
    }
    write_json(run.path / "probe.json", report)
    return report


def _written(
    system: System, found: Probe, k: int, folder: Path, n: int, generator: torch.Generator
) -> dict[str, Any]:
    """Write the heaviest points of a region, and say what it is."""
    region = found.regions[k]
    x = region.samples.x
    path = folder / f"region_{k + 1}.pdb"
    written = system.write_structures(path, x[:n], generator)
    heaviest = system.observe(x[:1])[0].tolist()
    return {
        **_numbers(region.share),
        "log_ratio": region.log_ratio,
        "n_walkers": len(x),
        "heaviest": dict(zip(system.observed, heaviest, strict=True)),
        "structures": str(path.relative_to(folder.parent)) if written else None,
    }


def _numbers(share: Share) -> dict[str, Any]:
    return {"mass": share.mass._asdict(), "known": share.known._asdict()}


def summary(report: dict[str, Any]) -> str:
    """Say the verdict, and the regions in a line each."""
    lines = [
        report["verdict"],
        f"walkers worth {report['effective_walkers']:.0f} points, up to "
        f"{report['highest_temperature']:.0f} K, {report['acceptance']:.0%} of the last moves "
        f"accepted, {report['n_evals']:.2e} energies with forces",
    ]
    for k, region in enumerate(report["regions"], start=1):
        where = ", ".join(f"{name} {value:.2f}" for name, value in region["heaviest"].items())
        lines.append(
            f"region {k}: {region['mass']['value']:.3%} ± {region['mass']['se']:.3%} of the "
            f"target, p/q about e^{region['log_ratio']:.1f}, {region['n_walkers']} walkers, "
            f"at {where}" + (f"; {region['structures']}" if region["structures"] else "")
        )
    return "\n".join(lines)


def run(config: DictConfig) -> None:
    """Probe a run folder.

    Args:
        config: Composed from `configs/probe.yaml`.
    """
    try:
        report = probe_run(
            config.run,
            n_regions=config.n_regions,
            n_structures=config.n_structures,
            seed=config.seed,
            device=config.device,
            compile=config.compile,
            **config.walkers,
        )
        log.info("%s", summary(report))
    except OSError as error:
        raise CommandError(f"Expected to write into {config.run}, got: {error}.") from error


def main() -> None:
    """Run the command."""
    run_command(run, "probe")


if __name__ == "__main__":
    main()
