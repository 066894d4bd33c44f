"""python -m runs.free_energy run=<folder>: between basins, temperatures, force fields and runs."""

import copy
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from energies.base import R
from flows.metrics.bootstrap import bootstrap_free_energies, effective_inside
from flows.metrics.boxes import Box, in_box
from flows.metrics.free_energies import require_overlap
from runs.building import choose_device
from runs.cli import CommandError, run_command
from runs.ends import between_ends, gather
from runs.folder import RunFolder, write_json
from runs.samples import StoredSamples, read_samples

log = logging.getLogger(__name__)

REST = "rest"


def free_energy(
    folder: Path | str | None,
    *,
    basins: Mapping[str, Any] | None = None,
    start: str = REST,
    to: Mapping[str, Any] | None = None,
    other: Path | str | None = None,
    n: int = 100_000,
    file: str = "free_energy.json",
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Estimate free energy differences from a run, in every way that its points allow.

    Args:
        folder: A training run that was evaluated: the start.
        basins: Torsion boxes, name -> torsion -> (lo, hi), radians; those of the system if
            nothing else is asked for.
        start: The basin that the others are counted from; "rest" is what lies in none.
        to: Keys of the run's system that differ at the end, such as a temperature.
        other: A run whose system is the end; not both.
        n: Samples used of the run, at most, and points drawn of the other.
        file: What to write into the folder.
        seed: Of points that are drawn.
        device: "auto", "cpu" or "cuda".

    Returns:
        What the file holds: `basins` with ΔG in kJ/mol, `ends` with the reduced difference
        -log(Z_end / Z_start) by each method, or why it refused.

    Raises:
        CommandError: The folder is not that of an evaluated run, a basin is empty, the ends are
            not comparable, or every method refused.
        FlowInputError: A box names no torsion of the samples, or the weights carry no average.
    """
    if not n >= 2:
        raise CommandError(f"Expected n >= 2, got {n}.")
    if to is not None and other is not None:
        raise CommandError("Expected one other end, got both to and other.")
    run = RunFolder.open(folder)
    stored = read_samples(run.samples)
    if basins is None and to is None and other is None:
        basins = run.config.system.get("basins")
    asked = boxes(basins)
    if not asked and to is None and other is None:
        raise CommandError(
            f"Expected basins, to or other, got none, and {run.config.system.name} names no basin."
        )
    report: dict[str, Any] = {"temperature": stored.temperature, "n": len(stored.samples)}
    if asked:
        report["basins"] = between_basins(stored, asked, start)
    if to is not None or other is not None:
        end = None if other is None else RunFolder.open(other, key="other")
        config = _changed(run.config, to) if end is None else end.config
        points = gather(
            run,
            stored.samples[: int(n)],
            config,
            end,
            seed=seed,
            device=choose_device(device),
        )
        report["ends"] = {
            "end": OmegaConf.to_container(OmegaConf.create(to)) if end is None else str(other),
            **between_ends(points),
        }
    write_json(run.path / file, report)
    return report


def between_basins(
    stored: StoredSamples, boxes: Mapping[str, Box], start: str = REST
) -> dict[str, Any]:
    """Return ΔG of basins relative to one of them, kJ/mol, from weighted samples alone.

    `low` and `high` are a 95 % bootstrap interval; `effective` tells how many samples of equal
    weight those in the basin are worth.

    Args:
        stored: Of a run.
        boxes: Torsion boxes by name.
        start: Name of one of them, or "rest".
    """
    log_w = stored.samples.log_w
    require_overlap(log_w, "the target of the run")
    inside = {name: in_box(stored.observed, box) for name, box in boxes.items()}
    rest = ~torch.stack([*inside.values()]).any(0)
    weighted = log_w > -math.inf
    for name, rows in inside.items():
        if not bool((rows & weighted).any()):
            raise CommandError(
                f"Expected samples in basin {name!r}, got none of {len(log_w)}: it is empty, or "
                "the flow does not reach it; python -m runs.probe looks for what is missing."
            )
    if bool((rest & weighted).any()):
        inside = {REST: rest, **inside}
    if start not in inside:
        raise CommandError(f"Expected start to be one of {', '.join(inside)}, got {start!r}.")
    from_start = inside.pop(start)
    found = bootstrap_free_energies(
        inside,
        from_start,
        log_w,
        temperature=stored.temperature,
        generator=torch.Generator().manual_seed(0),
    )
    return {
        "start": start,
        "differences": {
            name: {**found[name]._asdict(), "effective": effective_inside(rows, log_w)}
            for name, rows in inside.items()
        },
    }


def boxes(basins: Any) -> dict[str, Box]:
    """Return the basins of a config as boxes; none of None."""
    plain = OmegaConf.to_container(basins) if OmegaConf.is_config(basins) else basins
    found: dict[str, Box] = {}
    for name, box in (plain or {}).items():
        try:
            found[name] = {torsion: (float(lo), float(hi)) for torsion, (lo, hi) in box.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise CommandError(
                f"Expected basins.{name} to be torsions with two angles each, "
                f"such as {{phi_2: [0, 2.3]}}, got {box}."
            ) from error
    return found


def _changed(config: DictConfig, to: Any) -> DictConfig:
    """The config of a run with other keys of its system."""
    changed = copy.deepcopy(config)
    OmegaConf.set_struct(changed.system, True)
    try:
        changed.system = OmegaConf.merge(changed.system, to)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise CommandError(
            f"Expected to={{key: value}} with keys of the run's system "
            f"({', '.join(map(str, config.system))}), got {to}: {str(error).splitlines()[0]}."
        ) from error
    return changed


def summary(report: dict[str, Any]) -> str:
    """Say every difference in a line."""
    lines = []
    if "basins" in report:
        start = report["basins"]["start"]
        lines += [
            f"ΔG from {start} to {name} at {report['temperature']:g} K: {d['value']:.2f} ± "
            f"{d['se']:.2f} kJ/mol, {d['effective']:.0f} effective samples there"
            for name, d in report["basins"]["differences"].items()
        ]
    if "ends" in report:
        ends = report["ends"]
        first, last = ends["temperatures"]
        lines.append(f"Δ(F/RT) from {first:g} K to {ends['end']} at {last:g} K:")
        for name, d in ends["reduced"].items():
            if "refused" in d:
                lines.append(f"  {name}: refused. {d['refused']}")
                continue
            line = f"  {name}: {d['value']:.4f} ± {d['se']:.4f}"
            if first == last:
                line += f" ({R * last * d['value']:.3f} ± {R * last * d['se']:.3f} kJ/mol)"
            lines.append(line)
    return "\n".join(lines)


def run(config: DictConfig) -> None:
    """Estimate what the command line asks for.

    Args:
        config: Composed from `configs/free_energy.yaml`.
    """
    arguments = {name: config[name] for name in config if name not in ("run", "allow")}
    try:
        log.info("%s", summary(free_energy(config.run, **arguments)))
    except OSError as error:
        raise CommandError(f"Expected to write into {config.run}, got: {error}.") from error


def main() -> None:
    """Run the command."""
    run_command(run, "free_energy")


if __name__ == "__main__":
    main()
