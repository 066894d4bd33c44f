"""runs.report: verdicts, what is left out, refusals; and the page in a real browser."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from energies.base import R
from energies.reference import Reference, pack_reference
from flows.evaluation import weight_report
from runs import report
from runs.cli import CommandError
from runs.free_energy import free_energy
from runs.page import Figures, Listing, Section, Table, Verdict, Words, render
from runs.report import write_report
from runs.report_figures import density_map, line_density
from runs.report_figures import free_energy as surface
from runs.report_sections import command as command_of
from runs.report_sections import estimate
from runs.report_training import training_curves
from runs.samples import read_samples
from tests.runs.browser import DRAWN, Browser, needs_browser
from tests.runs.in_process import command
from tests.runs.stored import write_run

MISSED = {
    "verdict": "Not to be trusted: 20.00% ± 1.00% of the target lies where it is <missing>.",
    "found": True, "effective_walkers": 80.0, "highest_temperature": 750.0, "factor": 20.0,
    "regions": [{
        "mass": {"value": 0.2, "se": 0.01}, "known": {"value": 0.0, "se": 0.0}, "log_ratio": 7.0,
        "n_walkers": 40, "heaviest": {"phi_2": 1.0}, "structures": "probe/region_1.pdb",
    }],
}  # fmt: skip
QUIET = MISSED | {"verdict": "Nothing missing was found.", "found": False, "regions": []}


def make(folder: Path, *overrides: str) -> Path:
    """A run folder as training and evaluation leave it, from samples of weight one."""
    system = write_run(folder, *overrides, n=600, turn=0.25)
    stored = read_samples(folder / "samples.npz")
    metrics = weight_report(stored.samples) | {"temperature": system.temperature}
    metrics |= system.report(stored.observed, stored.samples.log_w)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [
        {"step": 5 * k, "stage": "hot" if k < 6 else "cool", "n_evals": 640 * k, "time_s": 0.1 * k,
         "loss": 1 / k, "ess": 0.1 * k / 2, "temperature": 700.0 - 30 * k, "skipped": 0.0}
        for k in range(1, 12)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "versions.json").write_text(
        json.dumps({"command": "/a/runs/train.py system=x", "git_revision": "abc",
                    "git_changes": False})
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def molecule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alanine dipeptide in vacuum, evaluated, without a probe."""
    return make(tmp_path_factory.mktemp("runs") / "molecule", "system=aldp_vacuum")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A density without atoms."""
    return make(tmp_path_factory.mktemp("runs") / "plane", "system=double_well")


@pytest.fixture(scope="module")
def truth(molecule: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples themselves as a reference."""
    from runs.report_pictures import View
    from runs.run_files import read_run_files

    view = View(read_run_files(molecule), None)
    system, samples = view.system, view.stored.samples
    with torch.no_grad():
        xyz = system.frames(system.target.coordinates.to_xyz(samples.x)[0].double())
    points = system.maps(view.stored.observed)["2"].numpy()
    density, _ = density_map(points, [np.linspace(-math.pi, math.pi, 101)] * 2)
    halves = {"tv_between_halves_all": 0.1, "kl_between_halves_all": 0.1}
    diagnostics = {
        "maps": {"2": halves}, "averages": {}, "temperatures": [300.0], "system": "aldp_vacuum",
        "n_atoms": 22, "n_evals": 0, "n_replicas": 1, "n_chains": 1, "n_steps": 1,
        "ps_per_replica": 1.0, "origin": {},
    }  # fmt: skip
    exact = torch.from_numpy(density)
    reference = Reference(
        torch.tensor([300.0]).double(), {"2": (1000 * exact).long()[None]}, {"2": exact},
        xyz, samples.potential, diagnostics,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("truth") / "reference.npz"
    np.savez_compressed(path, **pack_reference(reference))
    return path


def with_probe(folder: Path, copy: Path, found: dict[str, object]) -> Path:
    shutil.copytree(folder, copy)
    (copy / "probe.json").write_text(json.dumps(found))
    return copy


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(
    molecule: Path, plane: Path, truth: Path, tmp_path: Path, width: int
) -> None:
    """One run with a reference, and two runs beside each other."""
    # Surfaces, marginals, structures, energies and weights, training.
    one, two, flat = 5 + 4 + 1 + 3 + 3, 3 + 4 + 1 + 3 + 3, 3 + 2 + 3 + 3
    pages = {
        write_report([molecule], reference=str(truth), out=tmp_path / "one.html"): one,
        write_report([molecule, plane], out=tmp_path / "two.html"): two + flat,
    }
    with Browser(tmp_path / "profile", width=width) as browser:
        for page, n_figures in pages.items():
            browser.open(page)
            assert browser.evaluate(DRAWN) == {"figures": n_figures, "faults": []}
            assert browser.complaints == []
            assert browser.requests == []
            assert browser.evaluate("performance.getEntriesByType('resource').length") == 0
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate("document.querySelectorAll('[data-title*=hare]').length") == 0


@needs_browser
def test_browser_notices_what_is_broken(tmp_path: Path) -> None:
    sound = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], mode="lines"))
    empty = go.Figure(go.Scatter(x=[0, 1], y=[math.nan, math.nan], mode="lines"))
    blank = go.Figure(go.Scatter3d(x=[math.nan], y=[0.0], z=[0.0], mode="markers"))
    html = render("", Verdict("good", ""), [Section("", [Figures([sound, empty, blank, sound])])])
    html = html.replace('"figure-4",', '"nowhere",')  # Plotly looks for an element of that name
    wide = '<div style="width:900px">wide</div><script>fetch("http://example.org/x")</script>'
    page = tmp_path / "broken.html"
    page.write_text(html.replace("</body>", f"{wide}</body>"))
    with Browser(tmp_path / "profile", width=390) as browser:
        browser.open(page)
        faults = browser.evaluate(DRAWN)["faults"]
        assert faults == [
            "figure-2 drew 0 of 1 traces", "figure-3 is blank in three dimensions",
            "figure 4 was not drawn",
        ]  # fmt: skip
        complaints = "\n".join(browser.complaints)
        assert "nowhere" in complaints
        assert "Content Security Policy" in complaints
        assert browser.evaluate("document.documentElement.scrollWidth") > 390


def test_what_the_probe_found_stands_above_any_ess(molecule: Path, tmp_path: Path) -> None:
    metrics = json.loads((molecule / "metrics.json").read_text())
    assert metrics["ess"] == pytest.approx(1.0)
    assert metrics["reliable"]
    collapsed = with_probe(molecule, tmp_path / "collapsed", MISSED)
    html = write_report([collapsed]).read_text()
    top = html.partition("</h1>")[2].partition("<h2")[0]
    assert '<p class="verdict bad">' in top
    assert "Not to be trusted." in top
    assert "&lt;missing&gt;" in top
    assert "ESS" not in top
    # Beside a sound run it is named.
    sound = with_probe(molecule, tmp_path / "sound", QUIET)
    top = write_report([sound, collapsed]).read_text().partition("</h1>")[2].partition("<h2")[0]
    assert "collapsed: The probe found" in top
    assert "sound:" not in top
    assert "To be trusted, as far as" in write_report([sound]).read_text()


def test_weights_and_reference_have_a_say(molecule: Path, tmp_path: Path) -> None:
    run = with_probe(molecule, tmp_path / "run", QUIET)
    metrics = json.loads((run / "metrics.json").read_text())

    def verdict(**changes: object) -> str:
        (run / "metrics.json").write_text(json.dumps(metrics | changes))
        return write_report([run]).read_text().partition("</h1>")[2].partition("<h2")[0]

    assert "carry no averages: 3 effective" in verdict(reliable=False, verdict="3 effective")
    exact = {"reference": {"value": 0.5, "se": 0.1}, "z_score": -9.0}
    compared = {"n_frames": 5, "energy": {}, "populations": {"alpha_L": exact}}
    assert "alpha_L by -9.0" in verdict(reference=compared)
    del metrics["verdict"]
    assert "Evaluated by an earlier version" in verdict()


def test_density_without_atoms_leaves_out_what_makes_no_sense(plane: Path) -> None:
    html = write_report([plane]).read_text()
    assert "<h3" in html
    assert ">Structures</h3>" not in html
    assert "y_0" in html
    assert "<th>Mean</th><th>raw</th><th>reweighted</th><th>exact</th>" in html


def test_what_is_missing_is_named_with_its_command(molecule: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(molecule / "config.yaml", bare)
    html = write_report([bare]).read_text()
    for name in ("evaluate", "probe", "free_energy", "reweight", "train"):
        assert f"python -m runs.{name}" in html
    assert "Not evaluated" in html
    assert "scatter" not in html.partition("</head>")[2]
    (bare / "samples.npz").write_bytes((molecule / "samples.npz").read_bytes())
    (bare / "checkpoints").mkdir()
    (bare / "checkpoints" / "last.pt").touch()  # asked for, not read
    middle = float(read_samples(bare / "samples.npz").observed["phi_2"].median())
    free_energy(bare, basins={"upper": {"phi_2": (middle, middle + 1)}})
    assert "ΔG (kJ/mol)" in write_report([bare]).read_text()


def test_training_that_went_on_is_noticed(plane: Path, tmp_path: Path) -> None:
    folder = with_probe(plane, tmp_path / "older", QUIET | {"step": 30})
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"step": 55}))
    html = write_report([folder]).read_text()
    said = "The flow was trained further, up to step 55, after {} had been written"
    assert said.format("probe.json (step 30)") in html
    (folder / "metrics.json").write_text(json.dumps(metrics | {"step": 50}))
    (folder / "probe.json").write_text(json.dumps(QUIET | {"step": 55}))
    assert said.format("metrics.json (step 50)") in write_report([folder]).read_text()
    (folder / "metrics.json").write_text(json.dumps(metrics | {"step": 55}))
    assert "trained further" not in write_report([folder]).read_text()


def test_command_writes_the_file_whole_or_not_at_all(
    molecule: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    command(report, f"run={molecule}", f"out={out}")
    assert str(out) in capsys.readouterr().out
    before = out.read_bytes()
    assert before.endswith(b"</html>\n")
    cases = {
        "run=/nowhere": "Expected run to be the folder of a run, got /nowhere",
        "run=[]": "Expected run=<folder of a training run>, got none",
        "run=null": "Expected run=<folder of a training run>, got none",
    }
    for override, sentence in cases.items():
        with pytest.raises(SystemExit):
            command(report, override, f"out={out}")
        assert sentence in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command(report, f"run={molecule}", f"out={tmp_path / 'file' / 'page.html'}")
    assert "Expected to write into" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "page.html"]


def test_damaged_and_foreign_files_are_refused(
    molecule: Path, plane: Path, truth: Path, tmp_path: Path
) -> None:
    run = with_probe(molecule, tmp_path / "run", QUIET)
    (run / "probe.json").write_text('{"verdict": ')
    with pytest.raises(CommandError, match=r"Expected whole JSON of a run in .*probe.json"):
        write_report([run])
    (run / "probe.json").unlink()
    with pytest.raises(CommandError, match="a reference of double_well"):
        write_report([plane], reference=str(truth))
    (run / "samples.npz").write_bytes((plane / "samples.npz").read_bytes())
    with pytest.raises(CommandError, match="those of another system"):
        write_report([run])
    assert not (run / "report.html").exists()


def test_surface_and_its_error_by_hand() -> None:
    points = np.array([[0.5, 0.5], [0.5, 0.5], [1.5, 0.5], [9.0, 9.0]])
    log_w = np.log([1.0, 3.0, 4.0, 8.0])
    edges = [np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0])]
    density, error = density_map(points, edges, log_w)
    np.testing.assert_allclose(density[:, 0], [4 / 16 / 2, 4 / 16 / 2])
    np.testing.assert_allclose(error[:, 0], [math.sqrt(10) / 4, 1.0])
    f = surface(np.array([[0.2, 0.1], [0.0, 0.05]]), temperature=300.0)
    np.testing.assert_allclose(f, R * 300 * np.log([[1.0, 2.0], [math.nan, 4.0]]))
    inside = line_density([0.5, 0.5, 5.0, 5.0], np.array([0.0, 2.0]))
    np.testing.assert_allclose(inside, [0.25])


def test_training_curves_leave_out_what_never_changed() -> None:
    rows = [
        {"step": k, "stage": s, "loss": 1.0 / k, "ess": 0.1, "ess_clip": 0.1 * k, "skipped": 0}
        for k, s in ((1, "a"), (2, "a"), (3, "b"))
    ]
    figures, still = training_curves(rows)
    assert still == {"ess": 0.1, "skipped": 0.0}
    assert [f.layout.yaxis.title.text for f in figures] == [
        "loss (nats)",
        "ESS / N of a batch (%)",
    ]
    assert [a.text for a in figures[0].layout.annotations] == ["a", "b"]


def test_words_of_numbers() -> None:
    assert estimate(
        {"value": 0.0024, "se": 0.0001, "low": 0.002, "high": 0.003}, percent=True
    ) == ("0.240 ± 0.010 [0.2, 0.3] %")
    assert estimate({"value": 1.5, "se": None}) == "1.5"
    versions = {"command": "/x/runs/train.py a=1", "git_revision": "abc", "git_changes": True}
    assert command_of(versions).splitlines() == [
        "git checkout abc  # which had changes that are in no revision",
        "python -m runs.train a=1",
    ]


def test_page_escapes_words() -> None:
    parts = [Words("a < `b`"), Table(["<"], [["&"]]), Listing("t", "</pre>")]
    html = render("<x>", Verdict("open", "?"), [Section("s", parts)])
    body = html.partition("</head>")[2]
    assert "a &lt; <code>b</code>" in body
    assert "<th>&lt;</th>" in body
    assert "&amp;" in body
    assert "&lt;/pre&gt;" in body
    assert "<h1>&lt;x&gt;</h1>" in body
