"""python -m runs.report run=<folder>: all that is known of a run as one HTML file."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from flows.files import replacing
from runs import report_pictures as pictures
from runs import report_sections as sections
from runs.cli import CommandError, run_command
from runs.folder import writing_into
from runs.page import Part, Section, Words, render
from runs.report_pictures import View
from runs.results import read_run
from runs.run_files import RunFiles, read_run_files
from runs.summary import table
from runs.verdicts import headline

log = logging.getLogger(__name__)


class Source(NamedTuple):
    """A section and what it is made of.

    Attributes:
        title: Of the section.
        needs: What of a run it is made of; false where that is missing.
        make: Makes its parts; none of what makes no sense for the system.
        missing: The command that writes what is missing, and what it does.
    """

    title: str
    needs: Callable[[RunFiles], Any]
    make: Callable[[View], list[Part]]
    missing: str


_EVALUATE = "`python -m runs.evaluate run={run}` draws samples and weighs them."

SOURCES = (
    Source("Free-energy surfaces", lambda run: run.samples, pictures.surfaces, _EVALUATE),
    Source("Marginals", lambda run: run.samples, pictures.marginals, _EVALUATE),
    Source("Structures", lambda run: run.samples, pictures.representatives, _EVALUATE),
    Source(
        "Populations and averages",
        lambda run: run.metrics,
        lambda view: sections.averages(view.run),
        _EVALUATE,
    ),
    Source(
        "Free energy differences",
        lambda run: run.free_energy,
        lambda view: sections.differences(view.run),
        "`python -m runs.free_energy run={run}` estimates them.",
    ),
    Source(
        "Other conditions",
        lambda run: run.reweight,
        lambda view: sections.conditions(view.run),
        "`python -m runs.reweight run={run} temperatures=[...]` averages there.",
    ),
    Source(
        "Distances from the reference",
        lambda run: run.metrics and "reference" in run.metrics,
        lambda view: sections.distances(view.run),
        "`python -m runs.evaluate run={run} reference=<reference.npz>` measures them.",
    ),
    Source(
        "What the flow has missed",
        lambda run: run.probe,
        lambda view: sections.regions(view.run),
        "`python -m runs.probe run={run}` looks for it.",
    ),
    Source(
        "Energies and weights", lambda run: run.samples, pictures.energies_and_weights, _EVALUATE
    ),
    Source(
        "Training",
        lambda run: run.rows,
        lambda view: pictures.training(view.run),
        "`python -m runs.train` writes metrics.jsonl.",
    ),
)
"""Sections of a run between its summary and its origin, in their order."""


def write_report(
    folders: Sequence[Path | str],
    *,
    reference: str | None = None,
    out: Path | str | None = None,
) -> Path:
    """Write a report of one run, or of several with a table that compares them.

    Nothing is drawn from a flow: the report shows what the files of a run folder hold. A few
    energies are computed, to refuse samples and a reference of another molecule.

    Args:
        folders: Of training runs.
        reference: A file of `runs.reference` to draw beside the samples of every run.
        out: The file to write; report.html in the folder, or in that which all of them share.

    Returns:
        The file, written whole or not at all.

    Raises:
        CommandError: A folder is not that of a run, a file in it is damaged, or the reference or
            the samples are those of another system.
    """
    if not folders:
        raise CommandError("Expected run=<folder of a training run>, got none.")
    runs = [read_run_files(folder) for folder in folders]
    chapters = [section for run in runs for section in _chapter(run, reference, len(runs) > 1)]
    evaluated = [run for run in runs if run.metrics is not None and run.rows is not None]
    if len(runs) > 1:
        chapters = [_compared(evaluated), *chapters]
    shared = os.path.commonpath([run.folder.path.resolve() for run in runs])
    path = Path(shared) / "report.html" if out is None else Path(out)
    names = ", ".join(dict.fromkeys(f"{run.config.system.name}" for run in runs))
    page = render(f"Boltzmann samples of {names}", headline(runs), chapters)
    with writing_into(path.parent), replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _compared(runs: Sequence[RunFiles]) -> Section:
    if not runs:
        return Section("Comparison", [Words("None of the runs was evaluated.")], level=2)
    rows = table([read_run(run.folder.path) for run in runs])
    return Section("Comparison", [sections.comparison(rows)], level=2)


def _chapter(run: RunFiles, reference: str | None, several: bool) -> list[Section]:
    """Return the sections of one run."""
    path = run.folder.path
    view = View(run, reference)
    title = f"{run.config.system.name}: {path.name}" if several else "This run"
    found = [Section(title, [Words(f"Folder: `{path}`", remark=True)], 2), sections.summary(run)]
    for source in SOURCES:
        lacking = [Words(f"Not in the folder: {source.missing.format(run=path)}", remark=True)]
        if parts := source.make(view) if source.needs(run) else lacking:
            found.append(Section(source.title, parts))
    return [*found, sections.origin(run)]


def run(config: DictConfig) -> None:
    """Write a report.

    Args:
        config: Composed from `configs/report.yaml`; `run` is a folder or a list of them.
    """
    folders = config.run if OmegaConf.is_list(config.run) else [config.run]
    path = write_report(list(folders), reference=config.reference, out=config.out)
    log.info("%.1f MB written into %s", path.stat().st_size / 1e6, path)


def main() -> None:
    """Run the command."""
    run_command(run, "report")


if __name__ == "__main__":
    main()
