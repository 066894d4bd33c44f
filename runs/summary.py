"""python -m runs.summary <folder>: every run below a folder, and means over seeds with errors."""

import argparse
import csv
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flows.files import replacing
from runs.errors import CommandError
from runs.figure_style import save
from runs.page import Section, Table, Verdict, Words, render
from runs.results import Group, Run, find_runs, groups
from runs.summary_figure import compared_curves

COLUMNS = (
    "n", "n_evals", "steps", "time_s", "ess", "ess_clip1e-4", "log_z", "log_z_error",
    "forward_kl", "reverse_kl", "pareto_k", "basins.found", "basins.worst",
    "reference.forward_kl", "reference.energy.w1_reweighted.value", "reference.torus_w2.raw",
)  # fmt: skip
"""What the text shows first, where a run has it; populations follow. The CSV has everything."""


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
    """Return rows of text: a head, each run, and under the runs of one kind their mean."""
    columns = shown(runs)
    rows = [_head(columns)]
    for group in groups(runs):
        rows += _runs(group, columns)
        rows += [_means(group, columns)] if len(group.runs) > 1 else []
    return rows


def sorted_groups(runs: Sequence[Run], by: str) -> list[Group]:
    """Return the runs of each kind, by system and then by the mean of a figure.

    Args:
        runs: Of any kinds.
        by: Name of a figure, with a minus before it for the highest first; "" for the name.

    Raises:
        CommandError: None of the runs has that figure.
    """
    found, name = groups(runs), by.removeprefix("-")
    if not name:
        return found
    if not any(name in run.figures for run in runs):
        known = ", ".join(shown(runs)) or "none yet"
        raise CommandError(f"Expected --sort to be a figure of the runs ({known}), got {name!r}.")

    def place(group: Group) -> tuple[str, float]:
        values = [run.figures[name] for run in group.runs if name in run.figures]
        mean = statistics.fmean(values) if values else math.nan
        mean = -mean if by.startswith("-") else mean
        return group.system, mean if math.isfinite(mean) else math.inf

    return sorted(found, key=place)


def count(runs: Sequence[Run]) -> str:
    """Say how many runs are in which state."""
    counts = Counter(run.state.split()[0] for run in runs)
    order = ("done", "running", "queued", "failed", "nan", "unknown")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state])


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def text(runs: Sequence[Run], by: str = "") -> str:
    """Return all there is to say: each run, means, what went wrong, and counts at the end."""
    columns, found = shown(runs), sorted_groups(runs, by)
    blocks = [as_text([_head(columns), *(row for g in found for row in _runs(g, columns))])]
    if means := [_means(group, columns) for group in found if len(group.runs) > 1]:
        blocks.append(as_text([_head(columns), *means]))
    if wrong := _errors(runs):
        blocks.append("\n".join(f"{state}: {folder}: {why}" for folder, state, why in wrong))
    return "\n\n".join([*blocks, f"{len(runs)} runs: {count(runs)}"])


def page(runs: Sequence[Run], title: str, by: str = "") -> str:
    """Return the same as a page that needs no network; a click on a head sorts its table."""
    columns, found = shown(runs), sorted_groups(runs, by)
    head, wrong = _head(columns), _errors(runs)
    states = {run.state.split()[0] for run in runs}
    level = "bad" if states & {"failed", "nan"} else "good" if states == {"done"} else "open"
    sections = [
        Section("Means over seeds", [Table(head, [_means(group, columns) for group in found])], 2)
    ]
    if wrong:
        sections.append(Section("What went wrong", [Table(("folder", "state", "why"), wrong)], 2))
    every = [
        [*row, str(run.folder)]
        for group in found
        for row, run in zip(_runs(group, columns), group.runs, strict=True)
    ]
    remark = Words("A click on the head of a column sorts by it.", remark=True)
    sections.append(Section("Runs", [remark, Table([*head, "folder"], every)], 2))
    return render(title, Verdict(level, f"{len(runs)} runs: {count(runs)}."), sections)


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Write every figure of every run, a line each."""
    columns = sorted({name for run in runs for name in run.figures})
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["folder", "system", "name", "seed", "state", "error", *columns])
        for group in groups(runs):
            for run in group.runs:
                figures = [run.figures.get(column, "") for column in columns]
                told = [run.folder, run.system, group.name, run.seed, run.state, run.error]
                writer.writerow([*told, *figures])


def _head(columns: Sequence[str]) -> list[str]:
    return ["system", "name", "seed", "state", *(_short(name) for name in columns)]


def _runs(group: Group, columns: Sequence[str]) -> list[list[str]]:
    """Return a row for each run of a group."""
    return [
        [
            group.system, group.name, "" if run.seed is None else str(run.seed), run.state,
            *(_number(run.figures.get(column)) for column in columns),
        ]
        for run in group.runs
    ]  # fmt: skip


def _means(group: Group, columns: Sequence[str]) -> list[str]:
    """Return the means of a group.

    A mean of k runs stands with its standard error s / √k, s the standard deviation between them;
    runs that lack a figure are no part of it.
    """
    having = [[run.figures[c] for run in group.runs if c in run.figures] for c in columns]
    of = f"mean of {len(group.runs)}"
    return [group.system, group.name, of, count(group.runs), *map(_mean, having)]


def _errors(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    return [(str(run.folder), run.state, run.error) for run in runs if run.error]


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


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m runs.summary", description=__doc__, epilog="Written into the folder: "
        "summary.csv with every figure, summary.html for a browser, and summary.png, the ESS of "
        "batches against energy evaluations.",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="runs are looked for anywhere below it")
    parser.add_argument(
        "--sort", default="", metavar="FIGURE",
        help="order of the kinds of runs within a system, as --sort=-ess: the highest first",
    )  # fmt: skip
    given = parser.parse_args()
    try:
        runs = find_runs(given.folder)
        sys.stdout.write(f"{text(runs, given.sort)}\n")
        write_csv(runs, given.folder / "summary.csv")
        with replacing(given.folder / "summary.html") as temporary:
            title = f"Runs in {given.folder}"
            temporary.write_text(page(runs, title, given.sort), encoding="utf-8")
        if (curves := compared_curves(sorted_groups(runs, given.sort))) is not None:
            save(curves, given.folder / "summary.png")
    except (CommandError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
