"""Sections of a report that need numbers alone: summary, tables, where it all comes from."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from energies.base import R
from runs.page import Listing, Part, Section, Table, Words
from runs.run_files import RunFiles
from runs.verdicts import verdicts

_FIGURES = {
    "n": "samples N",
    "ess": "ESS / N, unclipped",
    "ess_clip1e-4": "ESS / N, clipped at 1e-4",
    "pareto_k": "Pareto k",
    "pareto_k_threshold": "Pareto k, reliable below",
    "log_z": "log Z (nats)",
    "elbo": "ELBO (nats)",
    "eubo": "EUBO (nats)",
    "reverse_kl": "reverse KL (nats)",
    "forward_kl": "forward KL (nats)",
    "nonfinite_fraction": "share without a density",
    "out_of_domain_fraction": "share outside the domain",
}
_PERCENT = ("ess", "ess_clip1e-4", "nonfinite_fraction", "out_of_domain_fraction")
_GROUPS = {
    "populations": "Population",
    "free_energies": "ΔG to the rest (kJ/mol)",
    "means": "Mean",
}
_KINDS = ("raw", "reweighted", "reference", "exact")


def summary(run: RunFiles) -> Section:
    """Return verdicts, and the figures of the weights."""
    parts: list[Part] = [*verdicts(run)]
    if run.metrics is not None:
        found = run.metrics.get("reference", {}) | run.metrics
        rows = []
        for name, label in _FIGURES.items():
            if name in found:
                text = f"{found[name]:.2%}" if name in _PERCENT else f"{found[name]:.6g}"
                error = found.get(f"{name}_se")
                rows.append([label, text if error is None else number(found[name], error)])
        rows.append(["temperature (K)", f"{found['temperature']:g}"])
        parts.append(Table(["figure", "value"], rows))
    return Section("Summary", parts)


def averages(run: RunFiles) -> list[Part]:
    """Return populations, free energies and means: raw, reweighted, reference or exact."""
    assert run.metrics is not None
    compared = run.metrics.get("reference", {}).get("populations", {})
    parts: list[Part] = []
    for group, label in _GROUPS.items():
        entries = {name: dict(entry) for name, entry in run.metrics.get(group, {}).items()}
        if group == "populations":
            for name, p in compared.items():
                entries[name]["reference"] = p["reference"]
        kinds = [k for k in _KINDS if any(k in entry for entry in entries.values())]
        if kinds:
            rows = [
                [name, *(estimate(entry.get(k), percent=group == "populations") for k in kinds)]
                for name, entry in entries.items()
            ]
            parts.append(Table([label, *kinds], rows))
    return parts or [Words("The system names no basin.")]


def distances(run: RunFiles) -> list[Part]:
    """Return distances from the reference beside those between two parts of it."""
    assert run.metrics is not None
    found = run.metrics["reference"]
    rows = []
    for name, m in found.get("maps", {}).items():
        where = "mean of maps" if name == "mean" else f"residue {name}"
        rows.append(_distance(f"Ramachandran TV, {where}", m, "tv"))
        rows.append(_distance(f"Ramachandran KL, {where} (nats)", m, "kl"))
    for order in (1, 2):
        rows.append(_distance(f"energy W{order} (kJ/mol)", found["energy"], f"w{order}"))
    for name, torsion in found.get("torsions", {}).items():
        rows.append(_distance(f"Jensen-Shannon, {name} (nats)", torsion, "jsd"))
    if "torus_w2" in found:
        torus = {f"w2_{kind}": value for kind, value in found["torus_w2"].items()}
        rows.append(_distance("W2 of all torsions (rad)", torus, "w2"))
    if "tica" in found:
        rows.append(_distance("W2 of the slowest coordinate (its std)", found["tica"], "w2"))
    return [
        Table(["distance from the reference", "raw", "reweighted", "floor"], rows),
        Words(
            f"{found['n_frames']} frames of the reference. Floor: the same distance between two "
            "parts of the reference. Brackets: 95 % bootstrap intervals.",
            remark=True,
        ),
    ]


def differences(run: RunFiles) -> list[Part]:
    """Return what runs.free_energy found."""
    assert run.free_energy is not None
    report = run.free_energy
    parts: list[Part] = []
    if basins := report.get("basins"):
        rows = [
            [f"{basins['start']} → {name}", estimate(d), f"{d['effective']:.3g}"]
            for name, d in basins["differences"].items()
        ]
        head = [f"at {report['temperature']:g} K", "ΔG (kJ/mol)", "effective samples there"]
        parts.append(Table(head, rows))
    if ends := report.get("ends"):
        first, last = ends["temperatures"]
        rows = []
        for method, d in ends["reduced"].items():
            refused = d.get("refused")
            energy = {k: R * last * d[k] for k in ("value", "se") if k in d}
            rows.append([
                method.replace("_", " "),
                f"refused: {refused}" if refused else estimate(d),
                estimate(energy) if first == last and not refused else "",
            ])  # fmt: skip
        parts.append(Words(f"From {first:g} K to {_plain(ends['end'])} at {last:g} K:"))
        parts.append(Table(["method", "Δ(F/RT)", "ΔF (kJ/mol)"], rows))
    return parts


def conditions(run: RunFiles) -> list[Part]:
    """Return averages at other conditions."""
    assert run.reweight is not None
    rows = []
    for c in run.reweight["conditions"]:
        where = f"{c['system']} at {c['temperature']:g} K"
        rows.append([where, "", "" if c["reliable"] else "refused: ", c["verdict"]])
        rows[-1][2:] = ["".join(rows[-1][2:])]
        rows += [["", name, estimate(a)] for name, a in c.get("averages", {}).items()]
        rows += [
            ["", f"population of {name}", estimate(p, percent=True)]
            for name, p in c.get("populations", {}).items()
        ]
    return [Table(["condition", "average", "value"], rows)]


def regions(run: RunFiles) -> list[Part]:
    """Return what the probe's walkers found."""
    assert run.probe is not None
    rows = [
        [
            str(k),
            estimate(region["mass"], percent=True),
            f"e^{region['log_ratio']:.1f}",
            str(region["n_walkers"]),
            ", ".join(f"{name} {value:.2f}" for name, value in region["heaviest"].items()),
            region["structures"] or "",
        ]
        for k, region in enumerate(run.probe["regions"], start=1)
    ]
    head = ["region", "share of the target", "p / q about", "walkers", "at", "structures"]
    said = Words(
        f"Walkers worth {run.probe['effective_walkers']:.0f} points, up to "
        f"{run.probe['highest_temperature']:.0f} K; where p / q > {run.probe['factor']:g}:"
    )
    return [said, Table(head, rows)] if rows else [said, Words("Nowhere.")]


def origin(run: RunFiles) -> Section:
    """Return the command to reproduce, versions and config."""
    parts: list[Part] = []
    if run.versions is not None:
        parts.append(Listing("Command to reproduce", command(run.versions), open=True))
        parts.append(Listing("versions.json", json.dumps(run.versions, indent=2)))
    else:
        parts.append(Words("versions.json is missing: the run does not say what made it."))
    parts.append(Listing("config.yaml", OmegaConf.to_yaml(run.config)))
    return Section("Config, versions, command", parts)


def command(versions: Mapping[str, Any]) -> str:
    """Return what to type for the same run, with the revision of the code."""
    line = re.sub(r"^\S*/runs/(\w+)\.py", r"python -m runs.\1", versions["command"])
    if revision := versions.get("git_revision"):
        changed = "  # which had changes that are in no revision" * versions["git_changes"]
        line = f"git checkout {revision}{changed}\n{line}"
    return line


def number(value: float, error: float) -> str:
    """Write a number to the second digit of its error."""
    if not (math.isfinite(value) and 0 < error < math.inf):
        return f"{value:.6g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def estimate(found: Mapping[str, float] | float | None, *, percent: bool = False) -> str:
    """Write an estimate with its error and interval, as far as they are known."""
    if found is None:
        return ""
    if not isinstance(found, Mapping):
        return f"{found:.6g}"
    scale, unit = (100.0, " %") if percent else (1.0, "")
    known = {k: math.nan if v is None else scale * v for k, v in found.items() if k in _ESTIMATE}
    error = known.get("se", math.nan)
    text = f"{known['value']:.4g}" if math.isnan(error) else number(known["value"], error)
    if "low" in known:
        text += f" [{known['low']:.4g}, {known['high']:.4g}]"
    return text + unit


_ESTIMATE = ("value", "se", "low", "high")


def _distance(label: str, found: Mapping[str, Any], kind: str) -> list[str]:
    cells = [found.get(f"{kind}_{part}") for part in ("raw", "reweighted", "floor")]
    return [label, *(_interval(cell) for cell in cells)]


def _interval(cell: Any) -> str:
    if isinstance(cell, Mapping):
        return f"{cell['value']:.4g} [{cell['low']:.4g}, {cell['high']:.4g}]"
    return "unknown" if cell is None else f"{cell:.4g}"


def _plain(node: Any) -> str:
    return node if isinstance(node, str) else json.dumps(node)


def comparison(rows: Sequence[Sequence[str]]) -> Table:
    """Return the table of several runs, turned: a line for each figure, which fits a phone."""
    turned = [list(column) for column in zip(*rows, strict=True)]
    head, *lines = turned
    return Table(head, lines)
