"""What a reference simulation says: populations, maps, and whether to believe them."""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from energies.reference import (
    Reference,
    ReferenceSession,
    chain_mean,
    free_energies,
    log_weights,
    torus_counts,
)
from flows.metrics.histograms import kl_divergence, torus_histogram, total_variation
from runs.systems.base import Observable, System

_MOST_SAMPLES = 4_000_000
"""Samples from which free energies are computed; more would take memory and tell nothing new."""


def report(
    session: ReferenceSession, system: System, *, bins: int, origin: dict[str, Any]
) -> Reference:
    """Turn the records of a finished simulation into maps, frames and diagnostics.

    "raw" is what was seen at the lowest temperature, "all" the same from the samples of all
    temperatures, reweighted to it (MBAR). Errors come from the spread between chains.

    Args:
        session: The simulation.
        system: What was simulated.
        bins: Of the maps, a dimension.
        origin: What the simulation was made by: command, versions, config.
    """
    records, temperatures = session.records, session.tempering.temperatures.cpu()
    potential = records["potential"].transpose(0, 1)  # [K, S, C]
    thin = max(1, potential.numel() // _MOST_SAMPLES)
    free = free_energies(potential[:, ::thin].flatten(1), temperatures)
    log_w = log_weights(
        potential.flatten(1), temperatures, free, temperature=system.temperature
    ).reshape(potential.shape)
    angles = records["observed"].transpose(0, 1)  # [K, S, C, J]
    columns = dict(zip(system.observed, angles.unbind(-1), strict=True))

    counts, density, maps = {}, {}, {}
    for name, pair in system.maps(columns).items():
        counts[name] = torus_counts(pair.flatten(1, 2), bins=bins)
        density[name] = torus_histogram(pair.flatten(0, 2), log_w.flatten(), bins)
        maps[name] = {
            f"{distance}_between_halves_{kind}": value
            for kind, k in (("raw", slice(1)), ("all", slice(None)))
            for distance, value in _between_halves(
                pair[k], log_w[k] if kind == "all" else torch.zeros_like(log_w[k]), bins
            ).items()
        }
    tempering, langevin, plan = session.tempering, session.tempering.langevin, session.plan
    coordinates = system.target.coordinates
    xyz = records["xyz"].flatten(0, 1)
    frame_rows = slice(session.stride - 1, None, session.stride)
    log_det = coordinates.from_xyz(xyz.to(session.tempering.phase.xyz.device))[1]
    n_steps = plan.production * plan.block
    diagnostics = {
        "system": system.name,
        "n_atoms": langevin.energy.n_atoms,
        "temperatures": temperatures.tolist(),
        "n_evals": langevin.energy.n_evals,
        "n_chains": tempering.n_chains,
        "n_replicas": tempering.n_chains * len(temperatures),
        "n_steps": n_steps,
        "ps_per_replica": n_steps * langevin.time_step,
        "plan": asdict(plan),
        "time_step": langevin.time_step,
        "friction": langevin.friction,
        "swap_acceptance": tempering.acceptance.tolist(),
        "round_trips": int(tempering.round_trips.sum()),
        "chains_without_round_trip": int((tempering.round_trips == 0).sum()),
        "free_energies": free.tolist(),
        "potential": [chain_mean(u)._asdict() for u in potential],
        "potential_all": _reweighted(potential, log_w),
        "configurational_temperature": [
            chain_mean(t)._asdict() for t in records["temperature"].transpose(0, 1)
        ],
        "averages": {
            kind: {name: _average(observable, log_w) for name, observable in group.items()}
            for kind, group in system.averages(columns).items()
        },
        "maps": maps,
        "n_frames": len(xyz),
        "frames_outside_domain": float((log_det == -math.inf).double().mean()),
        "origin": origin,
    }
    return Reference(
        temperatures,
        counts,
        density,
        system.frames(xyz),
        potential[0, frame_rows].flatten(),
        _plain(diagnostics),
    )


def summary(diagnostics: dict[str, Any]) -> str:
    """Say the main figures in a few lines."""
    d = diagnostics
    rates = ["untried" if r is None else f"{r:.0%}" for r in d["swap_acceptance"]] or ["none"]
    u = d["potential"][0]
    lines = [
        f"{d['n_evals']:.3e} energy evaluations with forces, all of them counted",
        f"exchanges accepted: {', '.join(rates)}; {d['round_trips']} round trips in "
        f"{d['n_chains']} chains of {d['ps_per_replica']:.4g} ps, "
        f"{d['chains_without_round_trip']} chains without any",
        f"potential at {d['temperatures'][0]:.0f} K: {u['value']:.3f} ± {_number(u['se'])} "
        f"kJ/mol, split R-hat {_number(u['split_rhat'])}",
        "configurational temperature, where it should be: "
        + ", ".join(
            f"{_figure(t)} ({temperature:.0f})"
            for t, temperature in zip(
                d["configurational_temperature"], d["temperatures"], strict=True
            )
        ),
    ]
    for kind, group in d["averages"].items():
        lines += _say(kind, group)
    for name, m in d["maps"].items():
        lines.append(
            f"total variation between halves, residue {name}: "
            f"{m['tv_between_halves_raw']:.4f} raw, {m['tv_between_halves_all']:.4f} from all"
        )
    lines.append(
        f"{d['n_frames']} frames, {d['frames_outside_domain']:.2%} outside the domain of the "
        f"coordinates"
    )
    return "\n".join(lines)


def _say(kind: str, group: dict[str, Any]) -> list[str]:
    """One line each, or one for all whose exact values are known: the worst of them."""
    checked = {name: a for name, a in group.items() if a["z_score"] is not None}
    lines = []
    for name, a in group.items():
        if name not in checked:
            raw, pooled = a["raw"], a["all"]
            lines.append(
                f"{kind}, {name}: raw {_figure(raw)}, split R-hat {_number(raw['split_rhat'])}; "
                f"from all temperatures {_figure(pooled)} "
                f"(halves {pooled['first_half']:.5g}, {pooled['second_half']:.5g})"
            )
    if checked:
        name, worst = max(checked.items(), key=lambda item: abs(item[1]["z_score"]))
        lines.append(
            f"{kind}: {len(checked)} with exact values, worst {name}: from all temperatures "
            f"{_figure(worst['all'])}, exact {worst['exact']:.5g}, "
            f"{worst['z_score']:+.1f} standard errors off"
        )
    return lines


def _figure(estimate: dict[str, Any]) -> str:
    error = "unknown" if estimate["se"] is None else f"{estimate['se']:.2g}"
    return f"{estimate['value']:.5g} ± {error}"


def _average(observable: Observable, log_w: Tensor) -> dict[str, Any]:
    """Averages of [K, S, C] raw and reweighted, and how far off the exact one they are."""
    values, exact = observable
    pooled = _reweighted(values, log_w)
    known = exact is not None and pooled["se"] > 0
    return {
        "raw": chain_mean(values[0])._asdict(),
        "all": pooled,
        "by_temperature": [chain_mean(row)._asdict() for row in values],
        "exact": exact,
        "z_score": (pooled["value"] - exact) / pooled["se"] if known else None,
    }


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _between_halves(pair: Tensor, log_w: Tensor, bins: int) -> dict[str, float]:
    half = pair.shape[1] // 2
    first, second = (
        torus_histogram(pair[:, s].flatten(0, 2), log_w[:, s].flatten(), bins)
        for s in (slice(half), slice(half, None))
    )
    return {"tv": total_variation(first, second), "kl": kl_divergence(first, second)}


def _reweighted(values: Tensor, log_w: Tensor) -> dict[str, float]:
    """Mean of [K, S, C] at the lowest temperature, with all temperatures of a chain as one."""
    merged = (t.permute(1, 0, 2).flatten(0, 1) for t in (values, log_w.exp()))
    return chain_mean(*merged)._asdict()


def _plain(value: Any) -> Any:
    """The same with NaN, which JSON does not know, as null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
