"""python -m runs.reweight run=<folder>: averages at other temperatures, in other force fields."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from flows.metrics.bootstrap import bootstrap_means, bootstrap_populations, effective_inside
from flows.metrics.boxes import in_box
from flows.metrics.weights import (
    effective_size,
    log_z,
    pareto_k,
    pareto_k_threshold,
    verdict,
)
from runs.cli import CommandError, run_command
from runs.folder import RunFolder, write_json, writing_into
from runs.samples import StoredSamples, check_belongs, read_samples

if TYPE_CHECKING:
    from runs.systems import System

log = logging.getLogger(__name__)

FEW = 50
"""Effective samples of a basin below which a population is shown with a warning."""


class Condition(NamedTuple):
    """What samples are reweighted to.

    Attributes:
        system: Name of the energy.
        temperature: kelvin.
        potential: U of the samples by that energy, kJ/mol, [n].
    """

    system: str
    temperature: float
    potential: Tensor


class Settings(NamedTuple):
    """How averages are taken.

    Attributes:
        min_size: Effective samples below which no average is given.
        level: Probability of the intervals.
        n_rep: Bootstrap replicates.
        seed: Of the bootstrap.
    """

    min_size: float = 100.0
    level: float = 0.95
    n_rep: int = 1000
    seed: int = 0


DEFAULTS = Settings()


def reweight(
    stored: StoredSamples,
    condition: Condition,
    averages: Mapping[str, Tensor],
    populations: Mapping[str, Tensor],
    settings: Settings = DEFAULTS,
) -> dict[str, Any]:
    """Average over samples as if they were those of another condition.

    Args:
        stored: Weighted samples.
        condition: Temperature and energy wanted.
        averages: Name -> observable of each sample, any unit, [n].
        populations: Basin -> which samples are in it, bool [n].
        settings: When to refuse, and how to estimate errors.

    Returns:
        What reweight.json holds of a condition: what the weights say of their own quality, and,
        if `reliable`, "averages" (the potential energy among them) and "populations" with value,
        se, low, high.
    """
    log_w = stored.log_weights(condition.temperature, condition.potential)
    n = len(log_w)
    trust = verdict(log_w, min_size=settings.min_size)
    size = effective_size(log_w)
    report: dict[str, Any] = {
        "system": condition.system,
        "temperature": condition.temperature,
        "n": n,
        "ess": size / n,
        "effective_size": size,
        "pareto_k": pareto_k(log_w),
        "pareto_k_threshold": pareto_k_threshold(n),
        "reliable": trust.reliable,
        "verdict": trust.reason,
    }
    if not trust.reliable:
        return report
    z = log_z(log_w)
    how = {
        "level": settings.level,
        "n_rep": settings.n_rep,
        "generator": torch.Generator().manual_seed(settings.seed),
    }
    means = bootstrap_means({"potential": condition.potential, **averages}, log_w, **how)
    inside = bootstrap_populations(populations, log_w, **how)
    return report | {
        "log_z": z.value,
        "log_z_se": z.se,
        "averages": {name: mean._asdict() for name, mean in means.items()},
        "populations": {
            name: p._asdict() | {"effective_size": effective_inside(populations[name], log_w)}
            for name, p in inside.items()
        },
    }


def other_potential(
    stored: StoredSamples, own: "System", other: "System", *, chunk: int
) -> Tensor:
    """Return the energy of another force field or solvent, of every sample.

    Args:
        stored: Samples of `own`.
        own: Turns them into positions.
        other: Has the energy wanted.
        chunk: Rows at a time.

    Returns:
        U', kJ/mol, float64 [n].

    Raises:
        CommandError: The two are not of the same atoms, in the same order, held by the same
            constraints.
    """
    if own.particles != other.particles:
        mine, theirs = (set(s.particles) for s in (own, other))
        odd = sorted(mine ^ theirs)[:4]
        what = f"which differ in {', '.join(odd)}" if odd else "in another order"
        raise CommandError(
            f"Expected system={other.name} to have the atoms and fixed bonds of {own.name}, "
            f"got {other.size}, {what}."
        )
    device = own.target.periodic.device
    with torch.no_grad():
        parts = [
            other.target.energy.potential(own.target.coordinates.to_xyz(x.to(device))[0]).cpu()
            for x in stored.samples.x.split(chunk)
        ]
    return torch.cat(parts)


def table(conditions: list[dict[str, Any]]) -> str:
    """Say the results of all conditions in lines."""
    lines = []
    for c in conditions:
        where = f"{c['system']} at {c['temperature']:g} K"
        if not c["reliable"]:
            lines.append(f"{where}: refused; {c['verdict']}")
            continue
        lines.append(f"{where}: {c['verdict']}")
        rows = {**c["averages"], **{f"P({k})": p for k, p in c["populations"].items()}}
        width = max(map(len, rows))
        lines += [f"  {name.ljust(width)}  {_say(**estimate)}" for name, estimate in rows.items()]
    return "\n".join(lines)


def _say(
    value: float, se: float, low: float, high: float, effective_size: float | None = None
) -> str:
    if value == low == 0 < high:
        return f"none seen, below {high:.2g}"
    text = f"{value:.5g} ± {se:.2g}  [{low:.5g}, {high:.5g}]"
    if effective_size is None:
        return text
    few = " only: the error may be larger" if effective_size < FEW else ""
    return f"{text}  from {effective_size:.3g} effective samples{few}"


def run(config: DictConfig) -> None:
    """Reweight the samples of a run.

    Args:
        config: Composed from `configs/reweight.yaml`.

    Raises:
        CommandError: Wrong input, or no condition whose averages can be believed.
    """
    folder = RunFolder.open(config.run, needs=() if config.samples else ("samples.npz",))
    stored = read_samples(config.samples or folder.samples)
    known = _known(config, folder, stored)
    populations = {
        name: in_box(known.torsions, box) for name, box in _basins(config, folder).items()
    }
    settings = Settings(*(config[field] for field in Settings._fields))
    conditions = [
        reweight(stored, known.condition._replace(temperature=t), known.averages, populations,
                 settings)
        for t in _temperatures(config, known.condition.temperature)
    ]  # fmt: skip
    text = table(conditions)
    if not any(c["reliable"] for c in conditions):
        raise CommandError(
            f"Expected samples that overlap with what is asked for, got {text}. "
            "Train a flow there, or ask for conditions that lie nearer."
        )
    out = Path(config.out) if config.out else folder.path / "reweight.json"
    with writing_into(out.parent):
        write_json(out, {"samples": str(stored.source), "conditions": conditions})
    log.info("%s", text)


class _Known(NamedTuple):
    """The energy wanted at its own temperature, what to average, and angles for basins, [n]."""

    condition: Condition
    averages: dict[str, Tensor]
    torsions: dict[str, Tensor]


def _known(config: DictConfig, folder: RunFolder, stored: StoredSamples) -> _Known:
    """Take from the samples what they hold, and from their molecule only what they do not."""
    has_config = folder.config_file.is_file()
    name = folder.config.system.name if has_config else folder.path.name
    condition = Condition(name, stored.temperature, stored.samples.potential)
    torsions = dict(stored.observed) if stored.kind == "torsion" else {}
    averages = {} if torsions else dict(stored.observed)
    other = config.get("system") is not None
    if not other and not config.observables:
        return _Known(condition, averages, torsions)
    # These load OpenMM.
    from runs.building import build_system, choose_device
    from runs.observables import build_observables, observe

    device = choose_device(config.device)
    own = build_system(folder.config, device=device)
    check_belongs(stored, own)
    if other:
        system = build_system(config, device=device)
        potential = other_potential(stored, own, system, chunk=config.chunk)
        condition = Condition(system.name, system.temperature, potential)
    if config.observables:
        wanted = build_observables(config.observables)
        generator = torch.Generator().manual_seed(config.seed)
        frames = own.trajectories(stored.samples.x, generator)
        found = observe(wanted.averaged | wanted.torsions, frames)
        averages |= {key: found[key] for key in wanted.averaged}
        torsions |= {key: found[key] for key in wanted.torsions}
    return _Known(condition, averages, torsions)


def _temperatures(config: DictConfig, default: float) -> list[float]:
    wanted = config.temperatures
    if wanted is None:
        return [default]
    listed = OmegaConf.to_container(wanted) if OmegaConf.is_list(wanted) else [wanted]
    assert isinstance(listed, list)
    if not listed or not all(isinstance(t, int | float) and t > 0 for t in listed):
        raise CommandError(f"Expected temperatures > 0 kelvin, got {listed}.")
    return [float(t) for t in listed]


def _basins(config: DictConfig, folder: RunFolder) -> dict[str, dict[str, tuple[float, float]]]:
    """Boxes that the command line or else the run's config names."""
    basins = config.basins
    if basins is None and folder.config_file.is_file():
        basins = folder.config.system.get("basins")
    try:
        return {
            str(name): {str(t): (float(lo), float(hi)) for t, (lo, hi) in box.items()}
            for name, box in (basins or {}).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise CommandError(
            f"Expected basins to map names to torsions and torsions to [lo, hi], got {basins}."
        ) from error


def main() -> None:
    """Run the command."""
    run_command(run, "reweight")


if __name__ == "__main__":
    main()
