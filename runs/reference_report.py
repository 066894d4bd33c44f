"""What a reference simulation says: populations, maps, and whether to believe them."""

import math
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
from flows.metrics.histograms import torus_histogram, total_variation
from flows.metrics.populations import in_box
from runs.systems.molecular import MolecularSystem

_MOST_SAMPLES = 4_000_000
"""Samples from which free energies are computed; more would take memory and tell nothing new."""


def report(session: ReferenceSession, system: MolecularSystem, *, bins: int) -> Reference:
    """Turn the records of a finished simulation into maps, frames and diagnostics.

    "raw" is what was seen at the lowest temperature, "all" the same from the samples of all
    temperatures, reweighted to it (MBAR). Errors come from the spread between chains.

    Args:
        session: The simulation.
        system: What was simulated.
        bins: Of the maps, a dimension.
    """
    records, temperatures = session.records, session.tempering.temperatures.cpu()
    potential = records["potential"].transpose(0, 1)  # [K, S, C]
    thin = max(1, potential.numel() // _MOST_SAMPLES)
    free = free_energies(potential[:, ::thin].flatten(1), temperatures)
    log_w = log_weights(
        potential.flatten(1), temperatures, free, temperature=system.temperature
    ).reshape(potential.shape)
    angles = records["observed"].transpose(0, 1)  # [K, S, C, J]
    columns = dict(zip(system.torsions, angles.unbind(-1), strict=True))

    counts, density, maps = {}, {}, {}
    for name, pair in _phi_psi(columns).items():
        counts[name] = torus_counts(pair.flatten(1, 2), bins=bins)
        density[name] = torus_histogram(pair.flatten(0, 2), log_w.flatten(), bins)
        maps[name] = {
            "tv_between_halves_raw": _between_halves(pair[:1], torch.zeros_like(log_w[:1]), bins),
            "tv_between_halves_all": _between_halves(pair, log_w, bins),
        }
    populations = {}
    for name, box in system.basins.items():
        inside = in_box({k: v.flatten() for k, v in columns.items()}, box)
        inside = inside.reshape(potential.shape).double()
        populations[name] = {
            "raw": chain_mean(inside[0])._asdict(),
            "all": _reweighted(inside, log_w),
            "by_temperature": [chain_mean(row)._asdict() for row in inside],
        }
    tempering, langevin = session.tempering, session.tempering.langevin
    xyz = records["xyz"].flatten(0, 1)
    log_det = system.coordinates.from_xyz(xyz.to(system.coordinates.centre.device))[1]
    simulated = session.plan.production * session.plan.block * langevin.time_step
    diagnostics = {
        "system": system.molecule.name,
        "temperatures": temperatures.tolist(),
        "n_evals": langevin.energy.n_evals,
        "n_chains": tempering.n_chains,
        "ps_per_replica": simulated,
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
        "populations": populations,
        "maps": maps,
        "n_frames": len(xyz),
        "frames_outside_domain": float((log_det == -math.inf).double().mean()),
    }
    return Reference(temperatures, counts, density, xyz, _plain(diagnostics))


def summary(diagnostics: dict[str, Any]) -> str:
    """Say the main figures in a few lines."""
    d = diagnostics
    rates = ", ".join(f"{rate:.0%}" for rate in d["swap_acceptance"]) or "none"
    u, t = d["potential"][0], d["configurational_temperature"][0]
    lines = [
        f"{d['n_evals']:.3e} energy evaluations with forces, all of them counted",
        f"exchanges accepted: {rates}; {d['round_trips']} round trips in {d['n_chains']} chains "
        f"of {d['ps_per_replica']:.4g} ps, {d['chains_without_round_trip']} chains without any",
        f"potential at {d['temperatures'][0]:.0f} K: {u['value']:.3f} ± {_number(u['se'])} "
        f"kJ/mol, split R-hat {_number(u['split_rhat'])}, configurational temperature "
        f"{t['value']:.2f} ± {_number(t['se'])} K",
    ]
    for name, p in d["populations"].items():
        raw, pooled = p["raw"], p["all"]
        lines.append(
            f"population of {name}: raw {raw['value']:.4%} ± {_number(raw['se'], 100)} %, "
            f"split R-hat {_number(raw['split_rhat'])}; from all temperatures "
            f"{pooled['value']:.4%} ± {_number(pooled['se'], 100)} % "
            f"(halves {pooled['first_half']:.4%}, {pooled['second_half']:.4%})"
        )
    for name, m in d["maps"].items():
        lines.append(
            f"total variation between halves, residue {name}: "
            f"{m['tv_between_halves_raw']:.4f} raw, {m['tv_between_halves_all']:.4f} from all"
        )
    lines.append(
        f"{d['n_frames']} frames, {d['frames_outside_domain']:.2%} outside the domain of the "
        f"internal coordinates"
    )
    return "\n".join(lines)


def _number(value: float | None, factor: float = 1.0) -> str:
    return "unknown" if value is None else f"{value * factor:.4f}"


def _phi_psi(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Residue -> its (φ, ψ), [K, S, C, 2]."""
    residues = [name.removeprefix("phi_") for name in columns if name.startswith("phi_")]
    return {
        r: torch.stack([columns[f"phi_{r}"], columns[f"psi_{r}"]], dim=-1)
        for r in residues
        if f"psi_{r}" in columns
    }


def _between_halves(pair: Tensor, log_w: Tensor, bins: int) -> float:
    half = pair.shape[1] // 2
    first, second = (
        torus_histogram(pair[:, s].flatten(0, 2), log_w[:, s].flatten(), bins)
        for s in (slice(half), slice(half, None))
    )
    return total_variation(first, second)


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
