"""A flow's samples beside a reference: distances with floors, several runs, foreign files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from energies.reference import Reference, pack_reference, read_reference
from flows.metrics.histograms import torus_histogram, total_variation
from runs import evaluate, reference, train
from runs.building import build_flow, build_system
from runs.cli import CommandError
from runs.comparison import compare, load_reference
from runs.folder import RunFolder
from runs.samples import read_samples
from runs.systems import System
from tests.runs.in_process import command
from tests.runs.stored import composed, write_run

SMALL = [
    "system=aldp_vacuum", "flow.n_couplings=2", "flow.hidden=[16]", "flow.n_bins=4",
    "trainer.compile=false", "trainer.batch_size=64", "trainer.max_steps=10",
    "trainer.min_samples=1", "evaluation.n=500", "evaluation.chunk=250",
    "evaluation.n_saved=300", "evaluation.n_frames=40",
]  # fmt: skip
AGAIN = ["compile=false", *SMALL[-4:]]
TINY = [
    "system=aldp_vacuum", "n_chains=8", "temperatures.n=2", "temperatures.highest=330",
    "plan.block=5", "plan.hot=3", "plan.burn_in=20", "plan.production=20", "plan.n_frames=64",
    "swap_every=2", "bins=10", "compile=false", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "aldp"
    command(train, *SMALL, f"hydra.run.dir={folder}")
    return folder


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reference"
    command(reference, *TINY, f"hydra.run.dir={folder}")
    return folder / "reference.npz"


def test_metrics_hold_every_distance_and_its_floor(run: Path, truth: Path) -> None:
    command(evaluate, f"run={run}", f"reference={truth}", *AGAIN)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["ess_curve"]["n"] == [100, 500]
    assert metrics["ess_curve"]["ess"][-1] == pytest.approx(metrics["ess"])
    assert not metrics["reliable"]
    found = metrics["reference"]
    exact = read_reference(truth)
    assert found["n_frames"] == len(exact.xyz)
    assert found["forward_kl"] == pytest.approx(found["eubo"] - metrics["log_z"])
    assert found["forward_kl"] > 1  # ten steps of training
    raw, halves = found["maps"]["2"]["tv_raw"], exact.diagnostics["maps"]["2"]
    assert 0 <= raw["low"] <= raw["high"] <= 1.2
    assert found["maps"]["2"]["tv_floor"] == halves["tv_between_halves_all"]
    assert found["maps"]["2"]["kl_floor"] > 0
    assert found["energy"]["w1_raw"]["value"] > found["energy"]["w1_floor"] > 0
    assert found["energy"]["w2_raw"]["value"] >= found["energy"]["w1_raw"]["value"]
    assert set(found["torsions"]) == {"omega_1", "phi_2", "psi_2", "omega_2"}
    assert found["torus_w2"]["raw"] > found["torus_w2"]["floor"] > 0
    slow = found["tica"]  # records.npz lies beside reference.npz
    assert 0 <= slow["w2_raw"]["low"] <= slow["w2_raw"]["high"]
    assert slow["w2_floor"] > 0
    assert slow["lag_ps"] == pytest.approx(0.025)  # a quarter of 20 blocks of 5 fs
    assert found["populations"]["alpha_L"]["reference"]["value"] == pytest.approx(
        exact.populations["alpha_L"].value
    )


def test_samples_of_the_reference_are_at_the_floor(tmp_path: Path) -> None:
    """The frames of a reference as samples: no distance but that of its halves."""
    system = write_run(tmp_path / "run", "system=aldp_vacuum", n=2000, turn=1.0)
    stored = read_samples(tmp_path / "run" / "samples.npz")
    first, second = stored.samples[:1000], stored.samples[1000:]
    observed = {name: values[:1000] for name, values in stored.observed.items()}
    pair = torch.stack([stored.observed["phi_2"], stored.observed["psi_2"]], dim=-1)[1000:]
    density = torus_histogram(pair, bins=10)
    exact = made(system, second.x, second.potential, density)
    flow = build_flow(composed("flow.n_couplings=2", "flow.hidden=[8]"), system.target)
    report = {"log_z": 0.0} | system.report(observed, first.log_w)
    found = compare(flow, system, exact, first, observed, report, chunk=500)
    mine = torus_histogram(torch.stack([observed["phi_2"], observed["psi_2"]], -1), bins=10)
    m = found["maps"]["2"]
    assert m["tv_raw"]["value"] == pytest.approx(total_variation(density, mine))
    assert m["tv_raw"]["value"] == m["tv_reweighted"]["value"]  # all weights are one
    assert m["tv_raw"]["low"] < 0.5 * m["tv_raw"]["value"]  # mostly noise, and it says so
    assert found["energy"]["w1_raw"]["value"] < 3 * found["energy"]["w1_floor"]
    assert found["torus_w2"]["raw"] == pytest.approx(found["torus_w2"]["floor"], rel=0.25)
    for torsion in found["torsions"].values():
        assert torsion["jsd_raw"]["value"] < 2 * torsion["jsd_floor"]


def made(system: System, x: torch.Tensor, u: torch.Tensor, density: torch.Tensor) -> Reference:
    with torch.no_grad():
        xyz = system.target.coordinates.to_xyz(x)[0].double()
    counts = {"2": (density * 1000).long()[None]}
    halves = {"tv_between_halves_all": 0.1, "kl_between_halves_all": 0.1}
    diagnostics = {"maps": {"2": halves}, "averages": {}}
    return Reference(torch.tensor([300.0]).double(), counts, {"2": density}, xyz, u, diagnostics)


def test_several_runs_stand_in_one_table(
    run: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "status.json", "checkpoints/last.pt"):
        (other / name).write_bytes((run / name).read_bytes())
    command(evaluate, f"run=[{run},{other}]", f"reference={truth}", *AGAIN)
    *_, head, first, second, mean = capsys.readouterr().out.strip().splitlines()
    assert head.split()[:5] == ["system", "name", "seed", "state", "n"]
    assert "2.tv_raw" in head
    assert first == second
    assert "mean of 2" in mean


def refusal(run: Path, *overrides: str, capsys: pytest.CaptureFixture[str]) -> str:
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(SystemExit) as exit_:
        command(evaluate, f"run={run}", *AGAIN, *overrides)
    assert exit_.value.code == 1
    assert (run / "metrics.json").read_bytes() == before
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_references_of_something_else(
    run: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = read_reference(truth)
    swapped = exact.xyz.clone()
    swapped[:, [0, 4]] = swapped[:, [4, 0]]  # a hydrogen for a carbon: another order of atoms
    cases = {
        "order": (exact._replace(xyz=swapped), "another molecule, order of atoms or force field"),
        "field": (
            exact._replace(potential=exact.potential + 30.0),
            "30 kJ/mol off those recorded with them",
        ),
    }
    for name, (changed, sentence) in cases.items():
        file = tmp_path / f"{name}.npz"
        np.savez_compressed(file, **pack_reference(changed))
        assert sentence in refusal(run, f"reference={file}", capsys=capsys)
    assert "Expected path to be an existing reference file" in refusal(
        run, "reference=/nowhere.npz", capsys=capsys
    )
    (tmp_path / "half.npz").write_bytes(truth.read_bytes()[:2000])
    assert "Expected path to be a whole reference file" in refusal(
        run, f"reference={tmp_path / 'half.npz'}", capsys=capsys
    )


def test_records_of_something_else(
    run: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(truth.with_name("records.npz")) as data:
        whole = dict(data)
    cases = {
        "names": ({**whole, "observed_names": ["a", "b", "c", "d"]}, "with observed"),
        "ladder": ({**whole, "temperatures": np.array([300.0, 900.0])}, "with temperatures"),
        "other": ({"x": np.zeros(3)}, "Expected records to be a records.npz of runs.reference"),
    }
    for name, (arrays, sentence) in cases.items():
        file = tmp_path / f"{name}.npz"
        np.savez_compressed(file, **arrays)
        said = refusal(run, f"reference={truth}", f"records={file}", capsys=capsys)
        assert sentence in said
    missing = refusal(run, f"reference={truth}", "records=/nowhere.npz", capsys=capsys)
    assert "No such file" in missing


def test_a_reference_at_another_temperature_is_refused(run: Path, truth: Path) -> None:
    config = RunFolder(run).config
    config.system.temperature = 310.0
    with pytest.raises(CommandError, match=r"at 310.0 K, got 300.0 K"):
        load_reference(str(truth), build_system(config, device=torch.device("cpu")))
    config.system.molecule.sequence = "ACE GLY NME"
    with pytest.raises(CommandError, match=r"frames of \[19, 3\], got \[22, 3\]"):
        load_reference(str(truth), build_system(config, device=torch.device("cpu")))
