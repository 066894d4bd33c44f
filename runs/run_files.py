"""All that the files of a run folder tell, read without flow, molecule or OpenMM."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from flows.training.loggers import read_rows
from runs.cli import CommandError
from runs.folder import RunFolder
from runs.samples import StoredSamples, read_samples

Json = dict[str, Any]


class RunFiles(NamedTuple):
    """What a run folder holds; None where a file is missing.

    Attributes:
        folder: The run folder.
        config: What it was started with.
        metrics: metrics.json: the evaluation.
        samples: samples.npz: weighted samples.
        rows: metrics.jsonl: the training.
        probe: probe.json: what the flow has missed.
        free_energy: free_energy.json: free energy differences.
        reweight: reweight.json: averages at other conditions.
        versions: versions.json: code, packages, machine, command.
    """

    folder: RunFolder
    config: DictConfig
    metrics: Json | None
    samples: StoredSamples | None
    rows: list[Json] | None
    probe: Json | None
    free_energy: Json | None
    reweight: Json | None
    versions: Json | None


def read_run_files(path: Path | str | None) -> RunFiles:
    """Read a run folder.

    Args:
        path: The folder; only its config.yaml must be there.

    Raises:
        CommandError: It is not the folder of a run, or a file in it is damaged.
    """
    folder = RunFolder.open(path, needs=("config.yaml",))
    return RunFiles(
        folder=folder,
        config=folder.config,
        metrics=_json(folder.metrics),
        samples=read_samples(folder.samples) if folder.samples.is_file() else None,
        rows=(read_rows(folder.log) or None) if folder.log.is_file() else None,
        probe=_json(folder.path / "probe.json"),
        free_energy=_json(folder.path / "free_energy.json"),
        reweight=_json(folder.path / "reweight.json"),
        versions=_json(folder.path / "versions.json"),
    )


def _json(path: Path) -> Json | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise CommandError(
            f"Expected whole JSON of a run in {path}, got: {error}. The command that wrote it "
            "writes it anew."
        ) from error
    return found
