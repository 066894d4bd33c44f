"""The command line, end to end: train, evaluate, resume, refuse."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from flows.metrics.weights import ess, log_z
from flows.training.checkpoint import load_checkpoint
from flows.training.loggers import read_rows
from runs import evaluate, train
from tests.wandb_files import read_sessions

SMALL = [
    "system=aldp_vacuum", "flow.n_couplings=2", "flow.hidden=[16]", "flow.n_bins=4",
    "flow.n_circle_couplings=2", "flow.circle_hidden=[16]", "flow.circle_bins=4",
    "trainer.compile=false", "trainer.log_every=5", "trainer.checkpoint_every=10",
    "trainer.batch_size=64", "trainer.min_samples=1", "evaluation.n=500", "evaluation.chunk=200",
    "evaluation.n_saved=300", "evaluation.n_frames=40",
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


def command(module: str, *overrides: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", f"runs.{module}", *overrides]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of two stages, made by the real command in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    stages = ["stages=hot_then_cool", *(f"stages.{s}.batch_size=64" for s in STAGES)]
    steps = [f"stages.{s}.steps=15" for s in STAGES]
    subprocess.run(
        [*command("train", *SMALL, *stages, *steps), f"hydra.run.dir={folder}"],
        check=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    return folder


STAGES = ("hot", "cool", "polish")


def test_run_folder_is_complete(trained: Path) -> None:
    names = {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()}
    assert {
        "config.yaml", "versions.json", "metrics.jsonl", "metrics.json", "checkpoints/last.pt",
        "samples.npz", "samples.xtc", "topology.pdb", "figures/ramachandran_2.png",
        "figures/torsions.png", "figures/energy.png", "figures/training.png",
        "figures/weights.png",
    } <= names  # fmt: skip
    config = OmegaConf.load(trained / "config.yaml")
    assert config.system.name == "aldp_vacuum"
    assert "${" not in (trained / "config.yaml").read_text()
    versions = json.loads((trained / "versions.json").read_text())
    assert versions["packages"]["torch"] == torch.__version__
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 46, 5))
    assert [row["stage"] for row in rows] == ["hot"] * 3 + ["cool"] * 3 + ["polish"] * 3
    assert rows[-1]["n_evals"] == 45 * 64


def test_samples_carry_the_metrics(trained: Path) -> None:
    data = np.load(trained / "samples.npz")
    metrics = json.loads((trained / "metrics.json").read_text())
    assert data["x"].shape == (300, 60)
    log_w = -data["potential"] / (8.31446261815324e-3 * 300) + data["log_jac"] - data["log_q"]
    log_w = np.where(np.isfinite(log_w), log_w, -np.inf)
    assert log_w == pytest.approx(data["log_w"], rel=1e-9)
    assert metrics["n"] == 500
    # 300 of the same 500 samples: an estimate of the same log Z.
    z = log_z(torch.tensor(log_w))
    assert abs(z.value - metrics["log_z"]) < 6 * (z.se + metrics["log_z_se"])
    assert 0 < metrics["ess"] <= metrics["ess_clip1e-4"] <= 1
    assert {"raw", "reweighted"} == set(metrics["populations"]["alpha_L"])


def test_trajectory_opens_and_matches_the_samples(trained: Path) -> None:
    frames = mdtraj.load(str(trained / "samples.xtc"), top=str(trained / "topology.pdb"))
    assert frames.n_frames == 40
    assert frames.n_atoms == 22
    phi = mdtraj.compute_phi(frames)[1][:, 0]
    expected = np.load(trained / "samples.npz")["torsion_phi_2"][:40]
    turn = (phi - expected + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(turn).max() < 0.05  # XTC keeps 0.001 nm


def test_evaluate_again(trained: Path) -> None:
    before = json.loads((trained / "metrics.json").read_text())
    out = subprocess.run(
        command("evaluate", f"run={trained}", "compile=false", "evaluation.n=5e2",
                "evaluation.chunk=200", "evaluation.n_saved=300", "evaluation.n_frames=40"),
        check=True, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "ESS" in out.stdout + out.stderr
    after = json.loads((trained / "metrics.json").read_text())
    for nested in ("populations", "free_energies", "ess_curve"):
        assert after.pop(nested) == before.pop(nested)
    assert after.pop("verdict").split()[1:] == before.pop("verdict").split()[1:]
    assert after == pytest.approx(before, rel=1e-6)  # the same seed draws the same samples


def test_resume_continues_where_training_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*command("train", *SMALL, "trainer.max_steps=100000"), f"hydra.run.dir={folder}"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"the checkpoint is {folder / 'checkpoints' / 'last.pt'}" in message
    assert "Traceback" not in message
    steps = load_checkpoint(folder / "checkpoints" / "last.pt")["total_steps"]
    assert steps >= 15
    subprocess.run(
        command("train", *SMALL, f"trainer.max_steps={steps + 10}", f"resume={folder}"),
        check=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["total_steps"] == steps + 10
    assert (folder / "metrics.json").exists()


def refused(
    module: object, arguments: list[str], capsys: pytest.CaptureFixture[str], folder: Path
) -> str:
    """What a command says on standard error when it refuses; it must exit with 1."""
    GlobalHydra.instance().clear()
    sys.argv = ["command", *arguments, f"hydra.run.dir={folder}"]
    with pytest.raises(SystemExit) as exit_:
        module.main()  # type: ignore[attr-defined]
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.max_step=5", "Expected a key of trainer (batch_size, best, budget, checkpoint_"),
        (
            "flow.bins=5",
            "Expected a key of flow (_partial_, _target_, circle_bins, circle_hidden, hidden",
        ),
        ("loss=l3", "Available options in 'loss': alpha_divergence forward_kl"),
        ("system.temperature=0", "kelvin, got 0"),
        ("trainer.batch_size=0", "Expected batch_size >= 2 in stage 'train', got 0"),
        ("trainer.max_steps=0", "Expected steps >= 1 in stage 'train', got 0"),
        ("loss.drop=1.5", "Expected drop in [0, 1), got 1.5"),
        ("trainer.compile=maybe", "Expected compile to be auto, true or false, got 'maybe'"),
        ("flow.n_bins=0", "Expected 1 <= n_bins < 10000, got 0"),
        ("evaluation.n=0", "Expected evaluation.n >= 1 and a whole number, got 0"),
        ("evaluation.chunk=2.5", "Expected evaluation.chunk >= 1 and a whole number, got 2.5"),
        ('system.molecule.sequence="ACE XYZ NME"', "XYZ"),
        ("system.molecule.forcefield=[nothing.xml]", "nothing.xml"),
        ("resume=/nowhere/at/all", "Expected resume to be the folder of a run"),
    ],
)
def test_bad_input_is_one_sentence(
    override: str, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sentence in refused(train, [*SMALL, override], capsys, tmp_path)


def test_missing_and_foreign_run_folders(
    trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "Expected run=<folder" in refused(evaluate, [], capsys, tmp_path)
    said = refused(evaluate, [f"run={tmp_path / 'no'}"], capsys, tmp_path)
    assert "no such one" in said
    (tmp_path / "half").mkdir()
    said = refused(evaluate, [f"run={tmp_path / 'half'}"], capsys, tmp_path)
    assert "which lacks config.yaml" in said
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    os.link(trained / "checkpoints" / "last.pt", other / "checkpoints" / "last.pt")
    config = OmegaConf.load(trained / "config.yaml")
    config.system.molecule.sequence = "ACE GLY NME"
    OmegaConf.save(config, other / "config.yaml")
    said = refused(evaluate, [f"run={other}", "compile=false"], capsys, tmp_path)
    assert "got one of another system (60)" in said
    assert not (other / "metrics.json").exists()


def test_wandb_offline_holds_what_the_run_folder_holds(tmp_path: Path) -> None:
    subprocess.run(
        [*command("train", *SMALL, "trainer.max_steps=10", "logger=wandb"),
         f"hydra.run.dir={tmp_path}"],
        check=True, cwd=ROOT, timeout=300, env={**os.environ, "WANDB_SILENT": "true"},
    )  # fmt: skip
    (session,) = read_sessions(tmp_path)
    assert session.config["system"]["name"] == "aldp_vacuum"
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [r["loss"] for r in session.history] == [r["loss"] for r in rows]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert session.summary["evaluation/ess"] == metrics["ess"]
    assert session.history[-1]["figures/weights._type"] == "image-file"
    assert session.artifacts == [{"checkpoints/last.pt", "config.yaml"}]
    assert session.exit_code == 0


def test_ess_of_saved_weights_is_the_reported_one(trained: Path) -> None:
    data = np.load(trained / "samples.npz")
    assert ess(torch.tensor(data["log_w"])) == pytest.approx(
        float(np.exp(data["log_w"] - data["log_w"].max()).sum() ** 2)
        / float((np.exp(data["log_w"] - data["log_w"].max()) ** 2).sum())
        / 300,
        rel=1e-9,
    )


def test_openmm_as_the_energy(tmp_path: Path) -> None:
    """The same samples, weighed by OpenMM itself: the same weights to float32 accuracy."""
    tables = []
    for energy in ("torch", "openmm"):
        folder = tmp_path / energy
        subprocess.run(
            [*command("train", *SMALL, "trainer.max_steps=1", "trainer.batch_size=50", "seed=3",
                      "optimizer.lr=1e-12", f"energy={energy}",
                      "evaluation.n=50", "evaluation.chunk=50"), f"hydra.run.dir={folder}"],
            check=True, cwd=ROOT, timeout=300,
        )  # fmt: skip
        tables.append(np.load(folder / "samples.npz"))
    first, second = tables
    assert np.allclose(first["x"], second["x"], atol=1e-3)
    bound = first["potential"] < 1e3  # most of an untrained flow's samples clash
    assert bound.sum() > 5
    assert second["potential"][bound] == pytest.approx(first["potential"][bound], rel=1e-3)
