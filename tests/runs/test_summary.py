"""Runs as a table: how each stands, means over seeds, what went wrong."""

import csv
import html.parser
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.files import locked
from runs.errors import CommandError
from runs.results import find_runs, groups, separating
from runs.status import LOCK, Status, write_status
from runs.summary import count, page, sorted_groups, table, text, write_csv
from runs.summary_figure import compared_curves


def write_run(
    folder: Path,
    *,
    name: str,
    seed: int,
    ess: float | None,
    system: str = "aldp",
    lr: float = 1e-3,
) -> None:
    """A run; one without ESS was not evaluated."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"system: {{name: aldp}}\nname: {name}\nseed: {seed}\nflow: {{seed: {seed}}}\n"
        f"optimizer: {{_target_: torch.optim.Adam, lr: {lr}}}\nlogger: {{mode: {seed}}}\n"
    )
    rows = [{"step": s, "n_evals": 64 * s, "time_s": 0.1 * s, "stage": "a"} for s in (5, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if ess is not None:
        metrics = {
            "ess": ess, "log_z": -1.5, "log_z_exact": -2.0, "n": 1000,
            "populations": {"alpha_L": {"raw": {"value": 0.002 * seed, "se": 1e-4}}},
        }  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, ess in ((2, 0.8), (0, 0.5), (1, 0.65)):
        write_run(tmp_path / "a" / f"run{seed}", name="fab", seed=seed, ess=ess)
    write_run(tmp_path / "b", name="cmt", seed=7, ess=0.9)
    return tmp_path


@pytest.fixture
def sweep(runs: Path) -> Path:
    """The runs above, and five more that are not done."""
    for k, status in enumerate(
        [
            Status("failed", step=5, error="Expected a finite loss <b>, got nan.", exit_status=1),
            Status("nan", step=5, error="Too many points are not finite.", exit_status=1),
            Status("queued", step=5, error="Stopped after step 5.", exit_status=130),
        ]
    ):
        write_run(runs / "a" / f"run{k + 3}", name="fab", seed=k + 3, ess=None)
        write_status(runs / "a" / f"run{k + 3}", status)
    write_status(runs / "loss-l2" / "waiting", Status("queued"))
    write_run(runs / "killed", name="cmt", seed=8, ess=None)
    write_status(runs / "killed", Status("running", step=3, n_steps=10))
    return runs


def test_every_seed_is_shown_and_their_mean_with_its_error(runs: Path) -> None:
    head, *rows = table(find_runs(runs))
    assert head[:5] == ["system", "name", "seed", "state", "n"]
    assert [row[1:3] for row in rows] == [
        ["cmt", "7"], ["fab", "0"], ["fab", "1"], ["fab", "2"], ["fab", "mean of 3"],
    ]  # fmt: skip
    by_name = dict(zip(head, rows[-1], strict=True))
    # Deviation 0.15 over √3.
    assert by_name["ess"] == "0.65 ± 0.087"
    assert by_name["alpha_L.raw"] == "0.002 ± 0.0012"
    assert by_name["n_evals"] == "640 ± 0"
    assert by_name["log_z_error"] == "0.5 ± 0"


def test_every_state_and_why(sweep: Path) -> None:
    found = find_runs(sweep)
    assert count(found) == "4 done, 2 queued, 2 failed, 1 nan"
    said = text(found)
    *_, wrong, last = said.split("\n\n")
    assert last == f"9 runs: {count(found)}"
    assert wrong.splitlines()[0].startswith(f"failed: {sweep / 'killed'}: Its process ended")
    assert f"failed: {sweep / 'a' / 'run3'}: Expected a finite loss <b>, got nan." in wrong
    assert f"nan: {sweep / 'a' / 'run4'}: Too many points are not finite." in wrong
    assert f"queued: {sweep / 'a' / 'run5'}: Stopped after step 5." in wrong
    assert str(sweep / "waiting") not in wrong  # it waits: nothing went wrong
    assert said.splitlines()[1].split() == ["loss-l2/waiting", "queued"]
    (mean,) = [line for line in said.splitlines() if line.startswith("aldp    fab   mean")]
    assert "0.65 ± 0.087" in mean  # of the three that were evaluated
    assert "3 done, 1 queued, 1 failed, 1 nan" in mean


def test_a_run_that_runs_says_how_far_it_is(sweep: Path) -> None:
    with locked(sweep / "killed" / LOCK):
        (run,) = [r for r in find_runs(sweep) if r.folder.name == "killed"]
    assert (run.state, run.error) == ("running 30%", None)


def test_runs_of_one_name_but_another_config_have_no_mean_in_common(tmp_path: Path) -> None:
    for lr in (1e-3, 1e-4):
        for seed in (0, 1):
            write_run(tmp_path / f"{lr}{seed}", name="x", seed=seed, ess=lr * 100, lr=lr)
    found = groups(find_runs(tmp_path))
    assert {g.name: [r.seed for r in g.runs] for g in found} == {
        "x lr=0.0001": [0, 1],
        "x lr=0.001": [0, 1],
    }


def test_few_keys_tell_configs_apart() -> None:
    losses = [
        {"n": 1, "loss._target_": "a.L2", "loss.drop": 0.1, "lr": 1},
        {"n": 1, "loss._target_": "a.L1", "lr": 1},
        {"n": 1, "loss._target_": "a.KL", "loss.drop": 0.1, "lr": 1},
    ]
    assert separating(losses) == ["loss._target_"]
    assert separating([*losses, losses[0] | {"lr": 2}]) == ["loss._target_", "lr"]
    assert separating(losses[:1] * 3) == []


def test_order_by_a_figure(runs: Path) -> None:
    found = find_runs(runs)
    assert [g.name for g in sorted_groups(found, "ess")] == ["fab", "cmt"]
    assert [g.name for g in sorted_groups(found, "-ess")] == ["cmt", "fab"]
    with pytest.raises(CommandError, match=r"--sort to be a figure .*ess.*, got 'esss'"):
        sorted_groups(found, "-esss")


def test_csv_holds_every_figure_of_every_run(sweep: Path) -> None:
    write_csv(find_runs(sweep), sweep / "summary.csv")
    with (sweep / "summary.csv").open() as file:
        rows = {row["folder"]: row for row in csv.DictReader(file)}
    assert len(rows) == 9
    assert float(rows[str(sweep / "a" / "run1")]["ess"]) == 0.65
    assert rows[str(sweep / "b")]["populations.alpha_L.raw.se"] == "0.0001"
    failed = rows[str(sweep / "a" / "run3")]
    assert (failed["state"], failed["ess"], failed["steps"]) == ("failed", "", "10.0")
    assert failed["error"] == "Expected a finite loss <b>, got nan."


class Cells(html.parser.HTMLParser):
    """Rows of a page's tables; fails on what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert not any(k == "src" or (v or "").startswith("http") for k, v in attributes)
        self.inside = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif self.inside:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def test_page_is_one_small_file(sweep: Path) -> None:
    written = page(find_runs(sweep), "Runs")
    assert len(written) < 30_000  # nothing is drawn: no Plotly
    cells = Cells()
    cells.feed(written)
    assert [str(sweep / "a" / "run3"), "failed", "Expected a finite loss <b>, got nan."] in (
        cells.rows
    )
    assert any(row[1:3] == ["fab", "mean of 6"] and "0.65 ± 0.087" in row for row in cells.rows)
    assert sum(row[-1].startswith(str(sweep)) for row in cells.rows) == 9


def test_a_thousand_runs_at_a_glance(tmp_path: Path) -> None:
    for k in range(1000):
        folder = tmp_path / f"name-{k // 10}" / f"seed-{k % 10}"
        write_run(folder, name=f"n{k // 10}", seed=k % 10, ess=0.5 if k % 7 else None)
        write_status(folder, Status("done") if k % 7 else Status("failed", error="Why."))
    found = find_runs(tmp_path)
    last = text(found).splitlines()[-1]
    assert last == "1000 runs: 857 done, 143 failed"
    assert len(page(found, "Runs")) < 1_000_000


def test_command_prints_and_writes(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runs.summary", str(runs), "--sort=-ess"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "4 runs: 4 done"
    assert {"summary.csv", "summary.html"} <= {file.name for file in runs.iterdir()}


def test_seeds_that_began_with_runs_of_one_name_have_a_mean(tmp_path: Path) -> None:
    for seed, before in ((0, "hot"), (1, "hot"), (2, "cold")):
        write_run(tmp_path / f"before{seed}", name=before, seed=seed, ess=0.1)
        write_run(tmp_path / "after" / f"{seed}", name="l2", seed=seed, ess=0.1 * seed)
        with (tmp_path / "after" / f"{seed}" / "config.yaml").open("a") as file:
            file.write(f"start: {tmp_path / f'before{seed}'}\n")
    found = groups(find_runs(tmp_path / "after"))
    assert [(g.name, len(g.runs)) for g in found] == [("l2 start=hot", 2), ("l2 start=cold", 1)]


def test_figure_has_a_line_for_every_run_and_a_name_for_every_kind(sweep: Path) -> None:
    for path in sweep.glob("**/metrics.jsonl"):
        rows = [{"step": s, "n_evals": 64 * s, "ess": s / 10} for s in (5, 10)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = compared_curves(groups(find_runs(sweep)))
    assert drawn is not None
    (ax,) = drawn.axes
    assert len(ax.lines) == 8  # one of nine has not begun
    assert all(line.get_xydata().tolist() == [[320, 0.5], [640, 1.0]] for line in ax.lines)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["cmt (2)", "fab (6)"]
    assert len({line.get_color() for line in ax.lines}) == 2


def test_no_figure_of_runs_without_rows(runs: Path) -> None:
    assert compared_curves(groups(find_runs(runs))) is None  # their rows have no ESS


def test_what_cannot_be_read_is_told_of_its_run_alone(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="Expected the folder of some runs, got"):
        find_runs(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CommandError, match="Expected runs below"):
        find_runs(empty)
    (runs / "b" / "metrics.json").write_text("{")
    (runs / "a" / "run0" / "config.yaml").write_text("a: [")
    (runs / "a" / "run1" / "status.json").write_text("")
    found = {run.folder.name: run for run in find_runs(runs)}
    assert {name for name, run in found.items() if run.state == "failed"} == {"b", "run0", "run1"}
    assert "metrics.jsonl of a run in" in found["b"].error
    assert found["run2"].state == "done"
