"""What a reference says of a flow's samples: distances beside those that noise alone gives."""

import math
from typing import Any

import torch
from torch import Tensor

from energies.reference import Reference, read_reference
from flows.evaluation import forward_report
from flows.flow import Flow
from flows.metrics.bootstrap import bootstrap, bootstrap_distances
from flows.metrics.histograms import (
    blocked_histogram,
    floor,
    jensen_shannon,
    kl_divergence,
    torsion_histogram,
    total_variation,
)
from flows.metrics.transport import line_distance, torus_distance, torus_floor
from flows.types import Samples
from runs.cli import CommandError
from runs.records import Records, slow_report
from runs.samples import check_energies
from runs.systems import System

MOST = 100_000
"""Samples that enter distances whose cost grows faster than their number."""

_MAP_DISTANCES = {"tv": total_variation, "kl": kl_divergence}
_N_REP = 200


def load_reference(path: str, system: System) -> Reference:
    """Read a reference and hold it against the system by its energies.

    Args:
        path: A file of `runs.reference`, or the name of a shipped one.
        system: What the flow samples.

    Raises:
        CommandError: It is one of another system: of other atoms, another order of atoms, another
            force field or another temperature.
        EnergyInputError: The file is missing or damaged.
    """
    reference = read_reference(path)
    what = f"a reference of {system.name} in {path}"
    energy = system.target.energy
    if reference.xyz.shape[1:] != (energy.n_atoms, energy.n_dims):
        raise CommandError(
            f"Expected {what}, frames of [{energy.n_atoms}, {energy.n_dims}], "
            f"got {list(reference.xyz.shape[1:])}."
        )
    temperature = float(reference.temperatures[0])
    if not math.isclose(temperature, system.temperature, rel_tol=1e-6):
        raise CommandError(f"Expected {what} at {system.temperature} K, got {temperature} K.")
    some = reference.xyz[:64].to(system.target.periodic.device, torch.float32)
    with torch.no_grad():
        again = energy.potential(some).cpu()
    check_energies(again, reference.potential[:64], what)
    return reference


def compare(
    flow: Flow,
    system: System,
    reference: Reference,
    samples: Samples,
    observed: dict[str, Tensor],
    report: dict[str, Any],
    *,
    chunk: int,
    records: Records | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return distances of a flow's samples from a reference.

    Args:
        flow: A trained flow of the system.
        system: What it samples.
        reference: Ground truth.
        samples: Weighted samples, x not needed.
        observed: What the system looks at, by name, each [n].
        report: Figures of the samples: log_z and populations are looked up.
        chunk: Rows of the reference at a time.
        records: Of the simulation that made the reference, in the order of time.
        seed: Of the bootstrap and of the points drawn for the torus.

    Returns:
        By name: EUBO and forward KL; "maps" (TV and KL of Ramachandran maps, raw and reweighted,
        mean over residues under "mean"), "energy" (W1, W2), "torsions" (Jensen-Shannon),
        "torus_w2", "tica" (W2 along what moves slowest, if there are records), each with its
        floor: the same number between two parts of the reference; and "populations" beside those
        of the reference. An entry that the system has not is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    device, dtype = flow.base.scale.device, flow.base.scale.dtype
    x = system.target.from_xyz(reference.xyz.to(device, dtype))
    found: dict[str, Any] = {"n_frames": len(x)} | forward_report(
        flow, system.target, system.temperature, x, log_z=report["log_z"], chunk=chunk
    )
    log_w = samples.log_w
    if maps := system.maps(observed):
        found["maps"] = _maps(maps, log_w, reference, generator)
    found["energy"] = _energies(samples, reference.potential, generator)
    measured = system.measure(reference.xyz.to(device, dtype)).double().cpu()
    if system.kind == "torsion" and observed:
        columns = dict(zip(system.observed, measured.unbind(-1), strict=True))
        found["torsions"] = {
            name: _torsion(observed[name], log_w, angles, generator)
            for name, angles in columns.items()
        }
        angles = torch.stack([*observed.values()], dim=-1).double()
        found["torus_w2"] = {
            "raw": torus_distance(angles, measured, generator=generator),
            "reweighted": torus_distance(angles, measured, log_w=log_w, generator=generator),
            "floor": torus_floor(measured, generator=generator),
        }
        if records is not None:
            found["tica"] = slow_report(records, angles, log_w, most=MOST, generator=generator)
    found["populations"] = {
        name: {
            "reference": exact._asdict(),
            "z_score": _z_score(report["populations"][name]["reweighted"], exact._asdict()),
        }
        for name, exact in reference.populations.items()
        if name in report.get("populations", {})
    }
    return found


def summary(found: dict[str, Any]) -> list[str]:
    """Say the main figures of a comparison in lines."""
    lines = [
        f"against {found['n_frames']} frames of the reference: forward KL "
        f"{found['forward_kl']:.4f} ± {found['forward_kl_se']:.4f} nats"
    ]
    for name, m in found.get("maps", {}).items():
        where = "mean of maps" if name == "mean" else f"residue {name}"
        for kind, digits in (("tv", 4), ("kl", 4)):
            bottom = m[f"{kind}_floor"]
            known = "unknown" if bottom is None else f"{bottom:.{digits}f}"
            lines.append(
                f"Ramachandran {kind.upper()}, {where}: raw {m[f'{kind}_raw']['value']:.{digits}f}"
                f", reweighted {m[f'{kind}_reweighted']['value']:.{digits}f}, floor {known}"
            )
    e = found["energy"]
    lines.append(
        f"energy W1: raw {e['w1_raw']['value']:.3g}, "
        f"reweighted {e['w1_reweighted']['value']:.3g}, floor {e['w1_floor']:.3g} kJ/mol"
    )
    if "torus_w2" in found:
        t = found["torus_w2"]
        lines.append(
            f"torus W2: raw {t['raw']:.3f}, reweighted {t['reweighted']:.3f}, "
            f"floor {t['floor']:.3f} rad"
        )
    if "tica" in found:
        t = found["tica"]
        lines.append(
            f"slowest coordinate (TICA) W2: raw {t['w2_raw']['value']:.3f}, reweighted "
            f"{t['w2_reweighted']['value']:.3f}, floor {t['w2_floor']:.3f} standard deviations"
        )
    for name, p in found["populations"].items():
        exact = p["reference"]
        lines.append(
            f"population of {name} in the reference: {exact['value']:.3%} ± {exact['se']:.3%}, "
            f"{p['z_score']:+.1f} combined standard errors from the reweighted one"
        )
    return lines


def _maps(
    maps: dict[str, Tensor], log_w: Tensor, reference: Reference, generator: torch.Generator
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, pair in maps.items():
        density = reference.density[name]
        density = density / (density.sum() * (2 * math.pi / len(density)) ** 2)
        entry: dict[str, Any] = {}
        for kind, weights in (("raw", None), ("reweighted", log_w)):
            blocks = blocked_histogram(pair, weights, bins=len(density))
            distances = bootstrap_distances(
                blocks, density, _MAP_DISTANCES, n_rep=_N_REP, generator=generator
            )
            entry |= {f"{d}_{kind}": p._asdict() for d, p in distances.items()}
        halves = reference.diagnostics["maps"][name]
        entry |= {f"{d}_floor": halves.get(f"{d}_between_halves_all") for d in _MAP_DISTANCES}
        entry["visits"] = int(reference.counts[name].sum())
        found[name] = entry
    if len(found) > 1:
        found["mean"] = _mean_over(list(found.values()))
    return found


def _mean_over(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Average each distance and floor over residues; ends of intervals are averaged as well."""
    mean: dict[str, Any] = {}
    for key, first in entries[0].items():
        values = [entry[key] for entry in entries]
        if isinstance(first, dict):
            mean[key] = {k: math.fsum(v[k] for v in values) / len(values) for k in first}
        elif any(v is None for v in values):
            mean[key] = None
        else:
            mean[key] = math.fsum(values) / len(values)
    return mean


def _energies(samples: Samples, exact: Tensor, generator: torch.Generator) -> dict[str, Any]:
    u, lw = samples.potential[:MOST], samples.log_w[:MOST]
    finite = u.isfinite()
    u, lw = u[finite], lw[finite]
    half = len(exact) // 2
    found: dict[str, Any] = {"n": len(u), "n_frames": len(exact)}
    for order in (1, 2):
        for kind, weights in (("raw", torch.zeros_like(lw)), ("reweighted", lw)):

            def distance(rows: Tensor, order: int = order, weights: Tensor = weights) -> float:
                return line_distance(u[rows], exact, order=order, log_w=weights[rows])

            p = bootstrap(distance, len(u), n_rep=50, generator=generator).reflected()
            found[f"w{order}_{kind}"] = p._asdict()
        found[f"w{order}_floor"] = line_distance(exact[:half], exact[half:], order=order)
    return found


def _torsion(
    values: Tensor, log_w: Tensor, exact: Tensor, generator: torch.Generator
) -> dict[str, Any]:
    density = torsion_histogram(exact)
    found: dict[str, Any] = {}
    for kind, weights in (("raw", None), ("reweighted", log_w)):
        blocks = blocked_histogram(values, weights)
        (p,) = bootstrap_distances(
            blocks, density, {"jsd": jensen_shannon}, n_rep=_N_REP, generator=generator
        ).values()
        found[f"jsd_{kind}"] = p._asdict()
    return found | {"jsd_floor": floor(exact, jensen_shannon)}


def _z_score(mine: dict[str, float], exact: dict[str, float]) -> float:
    error = math.hypot(mine["se"], exact["se"])
    return (mine["value"] - exact["value"]) / error if error > 0 else math.nan
