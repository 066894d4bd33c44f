"""Runs of several seeds as one table."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from runs.cli import CommandError
from runs.summary import find_runs, table, write_csv


def write_run(folder: Path, *, system: str, name: str, seed: int, ess: float) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"system: {{name: {system}}}\nname: {name}\nseed: {seed}\n"
    )
    metrics = {
        "ess": ess, "log_z": -1.5, "log_z_exact": -2.0, "n": 1000,
        "populations": {"alpha_L": {"raw": {"value": 0.002 * seed, "se": 1e-4}}},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [{"step": s, "n_evals": 64 * s, "time_s": 0.1 * s, "stage": "a"} for s in (5, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, ess in ((2, 0.8), (0, 0.5), (1, 0.65)):
        write_run(tmp_path / "a" / f"run{seed}", system="aldp", name="fab", seed=seed, ess=ess)
    write_run(tmp_path / "b", system="aldp", name="cmt", seed=7, ess=0.9)
    return tmp_path


def test_every_seed_is_shown_and_their_mean_with_its_error(runs: Path) -> None:
    head, *rows = table(find_runs(runs))
    assert head[:4] == ["system", "name", "seed", "n"]
    assert [row[1:3] for row in rows] == [
        ["cmt", "7"], ["fab", "0"], ["fab", "1"], ["fab", "2"], ["fab", "mean of 3"],
    ]  # fmt: skip
    by_name = dict(zip(head, rows[-1], strict=True))
    # Deviation 0.15 over √3.
    assert by_name["ess"] == "0.65 ± 0.087"
    assert by_name["alpha_L.raw"] == "0.002 ± 0.0012"
    assert by_name["n_evals"] == "640 ± 0"
    assert by_name["log_z_error"] == "0.5 ± 0"


def test_csv_holds_every_figure_of_every_run(runs: Path) -> None:
    write_csv(find_runs(runs), runs / "summary.csv")
    with (runs / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ess"]) for row in rows] == [0.9, 0.5, 0.65, 0.8]
    assert rows[0]["populations.alpha_L.raw.se"] == "0.0001"
    assert {row["folder"] for row in rows} >= {str(runs / "b")}


def test_command_prints_the_table(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runs.summary", str(runs)], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].split()[:4] == ["aldp", "fab", "mean", "of"]
    assert (runs / "summary.csv").is_file()


def test_bad_input(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="Expected the folder of some runs, got"):
        find_runs(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CommandError, match="Expected evaluated runs below"):
        find_runs(empty)
    (runs / "b" / "metrics.json").write_text("{")
    with pytest.raises(CommandError, match=r"metrics.jsonl of a run in .*b, got"):
        find_runs(runs)
