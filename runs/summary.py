"""python -m runs.summary <folder>: every run below a folder, and means over seeds with errors."""

import argparse
import csv
import json
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flows.files import replacing
from runs.cli import CommandError
from runs.folder import RunFolder

Figures = dict[str, float]

COLUMNS = (
    "n", "n_evals", "steps", "time_s", "ess", "ess_clip1e-4", "log_z", "log_z_error",
    "forward_kl", "reverse_kl", "pareto_k", "basins.found", "basins.worst",
    "reference.forward_kl", "reference.energy.w1_reweighted.value", "reference.torus_w2.raw",
)  # fmt: skip
"""What the text shows first, where a run has it; populations follow. The CSV has everything."""


class Run(NamedTuple):
    """One evaluated run.

    Attributes:
        folder: Where it lies.
        system: Name of its system.
        name: Name of the run: those of one name differ by their seeds.
        seed: Of flow and samples.
        figures: All numbers of metrics.json by dotted name, and what training cost.
    """

    folder: Path
    system: str
    name: str
    seed: int
    figures: Figures


def find_runs(folder: Path) -> list[Run]:
    """Return the evaluated runs below a folder, by system, name and seed.

    Raises:
        CommandError: The folder is not there, or holds no evaluated run.
    """
    if not folder.is_dir():
        raise CommandError(f"Expected the folder of some runs, got {folder}: no such one.")
    runs = [read_run(RunFolder(path.parent)) for path in folder.rglob("metrics.json")]
    if not runs:
        raise CommandError(f"Expected evaluated runs below {folder}, got none.")
    return sorted(runs, key=lambda run: (run.system, run.name, run.seed, run.folder))


def read_run(folder: RunFolder) -> Run:
    """Return the figures of one evaluated run.

    Raises:
        CommandError: The folder lacks them, or they cannot be read.
    """
    config = folder.read_config()
    try:
        figures = _flat(json.loads(folder.metrics.read_text(encoding="utf-8")))
        *_, last = folder.log.read_text(encoding="utf-8").splitlines() or ["{}"]
        row = json.loads(last)
    except (ValueError, OSError) as error:
        raise CommandError(
            f"Expected metrics.json and metrics.jsonl of a run in {folder.path}, got: {error}."
        ) from error
    cost = {"n_evals": "n_evals", "steps": "step", "time_s": "time_s"}
    figures |= {name: float(row[key]) for name, key in cost.items() if key in row}
    if "log_z_exact" in figures:
        figures["log_z_error"] = figures["log_z"] - figures["log_z_exact"]
    return Run(folder.path, config.system.name, config.name, int(config.seed), figures)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Figures:
    """Return the numbers of nested mappings under dotted names."""
    figures: Figures = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            figures |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            figures[f"{prefix}{key}"] = float(value)
    return figures


def shown(runs: Sequence[Run]) -> list[str]:
    """Return the columns of the text: `COLUMNS` that occur, then maps, then populations."""
    known = {name for run in runs for name in run.figures}
    kinds = tuple(
        re.compile(kind)
        for kind in (r"reference\.maps\..*\.tv_(raw\.value|floor)", r"populations\..*\.value")
    )
    further = [sorted(filter(kind.fullmatch, known)) for kind in kinds]
    return [name for name in COLUMNS if name in known] + [f for group in further for f in group]


def table(runs: Sequence[Run]) -> list[list[str]]:
    """Return rows of text: a head, each run, and under the runs of one name their mean.

    A mean of k runs stands with its standard error s / √k, s the standard deviation between them.
    """
    columns = shown(runs)
    rows = [["system", "name", "seed", *(_short(name) for name in columns)]]
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.system, run.name].append(run)
    for (system, name), group in groups.items():
        for run in group:
            numbers = [_number(run.figures.get(column)) for column in columns]
            rows.append([system, name, str(run.seed), *numbers])
        if len(group) > 1:
            means = [_mean([r.figures[c] for r in group if c in r.figures]) for c in columns]
            rows.append([system, name, f"mean of {len(group)}", *means])
    return rows


def _short(name: str) -> str:
    for kind in ("populations.", "reference.maps.", "reference."):
        name = name.removeprefix(kind)
    return name.removesuffix(".value")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _mean(values: Sequence[float]) -> str:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return _number(statistics.fmean(values) if values else None)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.4g} ± {error:.2g}"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Write every figure of every run, a line each."""
    columns = sorted({name for run in runs for name in run.figures})
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["folder", "system", "name", "seed", *columns])
        for run in runs:
            figures = [run.figures.get(column, "") for column in columns]
            writer.writerow([run.folder, run.system, run.name, run.seed, *figures])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m runs.summary", description=__doc__)
    parser.add_argument("folder", type=Path, help="runs are looked for anywhere below it")
    folder = parser.parse_args().folder
    try:
        runs = find_runs(folder)
        write_csv(runs, folder / "summary.csv")
    except (CommandError, OSError) as error:
        sys.exit(str(error))
    sys.stdout.write(f"{as_text(table(runs))}\n")


if __name__ == "__main__":
    main()
