"""Frames of a trained flow: weighted, drawn evenly, refined; refusals in one sentence."""

import json
import math
import resource
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
import torch

from energies.analytic import DoubleWell
from energies.base import R, Target
from flows.flow import Flow
from flows.metrics.weights import ess
from flows.paths.base import Path as Aim
from flows.proposals import Model
from flows.types import Samples
from runs import reweight, sample, train
from runs.building import build_flow
from runs.cli import CommandError
from runs.systems.analytic import AnalyticSystem
from tests.runs.in_process import command
from tests.runs.stored import composed

SMALL = [
    "flow.n_couplings=2", "flow.hidden=[16]", "flow.n_bins=4", "trainer.compile=false",
    "trainer.batch_size=64", "trainer.min_samples=1", "evaluation.n=300",
    "evaluation.chunk=100", "evaluation.n_saved=300", "evaluation.n_frames=40",
]  # fmt: skip


def trained(folder: Path, *overrides: str) -> Path:
    command(train, *SMALL, *overrides, f"hydra.run.dir={folder}")
    return folder


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "well"
    return trained(folder, "system=double_well", "trainer.max_steps=60")


@pytest.fixture(scope="module")
def peptide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "aldp"
    return trained(folder, "system=aldp_vacuum", "trainer.max_steps=10")


def sampled(run: Path, out: Path, *overrides: str) -> tuple[dict, dict]:
    command(sample, f"run={run}", f"out={out}", "chunk=200", "compile=false", *overrides)
    report = json.loads((out / "sample.json").read_text())
    return report, dict(np.load(out / "samples.npz"))


def test_weighted_frames_are_the_rows_of_the_samples(peptide: Path, tmp_path: Path) -> None:
    report, data = sampled(peptide, tmp_path, "n=450", "format=dcd")
    assert report["n"] == len(data["x"]) == 450
    assert report["n_evals"] == 600  # chunks are drawn whole
    log_w = -data["potential"] / (R * 300) + data["log_jac"] - data["log_q"]
    assert log_w == pytest.approx(data["log_w"], rel=1e-9)
    frames = mdtraj.load(str(tmp_path / "samples.dcd"), top=str(tmp_path / "topology.pdb"))
    assert frames.n_frames == 450
    for name, compute in (("phi_2", mdtraj.compute_phi), ("psi_2", mdtraj.compute_psi)):
        turn = compute(frames)[1][:, 0] - data[f"torsion_{name}"]
        assert np.abs((turn + np.pi) % (2 * np.pi) - np.pi).max() < 1e-3
    # A methyl's labels are exchanged at random: each hydrogen is found all around.
    quadruple = [[frames.topology.select(f"resid 1 and name {a}")[0] for a in
                  ("C", "CA", "CB", "HB1")]]  # fmt: skip
    angle = mdtraj.compute_dihedrals(frames, quadruple)[:, 0]
    third = np.histogram(angle, np.linspace(-np.pi, np.pi, 4))[0]
    assert third.min() > 100


def test_one_seed_gives_one_set_of_files(peptide: Path, tmp_path: Path) -> None:
    first, again, other = (
        sampled(peptide, tmp_path / name, "n=200", f"seed={seed}")[1]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert np.array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], other["x"])
    assert (tmp_path / "a/samples.xtc").read_bytes() == (tmp_path / "b/samples.xtc").read_bytes()
    stored = np.load(peptide / "samples.npz")["x"]
    assert not np.isin(first["x"][:, 0], stored[:, 0]).any()  # another stream than evaluation


def exact_square(temperature: float = 300.0) -> tuple[np.ndarray, float]:
    energy = DoubleWell(temperature=300.0)
    mean, covariance = energy.moments(temperature)
    return (covariance.diagonal() + mean.square()).numpy(), energy.log_z(temperature)


@pytest.mark.parametrize(
    "refine",
    [["refine=none"], ["refine=smc", "refine.n_bridges=2"],
     ["refine=metropolis", "refine.burn_in=40"], ["refine=hmc", "refine.n_final=3"]],
    ids=["none", "smc", "metropolis", "hmc"],
)  # fmt: skip
@pytest.mark.parametrize("resample", [[], ["resample=3000"]], ids=["weighted", "even"])
def test_refined_samples_are_those_of_the_target(
    refine: list[str], resample: list[str], well: Path, tmp_path: Path
) -> None:
    """Moments within 6 standard errors, which come from parts that share no ancestor or chain."""
    report, data = sampled(well, tmp_path, "n=6000", *refine, *resample)
    y = np.stack([data["y_0"], data["y_1"]], axis=1)
    exact, log_z = exact_square()
    w = np.exp(data["log_w"] - data["log_w"].max())
    if resample:
        assert np.array_equal(data["log_w"], np.zeros(3000))
        assert report["frames"] == 3000
        assert report["distinct_frames"] > 500
    rows = np.arange(len(y))
    chains = refine[0] == "refine=metropolis"  # 200 of them, a row each in turn
    batches = [rows[k::20] for k in range(20)] if chains else np.array_split(rows, 30)
    top = np.array([(w[b, None] * y[b] ** 2).sum(0) for b in batches])
    below = np.array([w[b].sum() for b in batches])
    mean = top.sum(0) / below.sum()
    error = np.sqrt(((top - mean * below[:, None]) ** 2).sum(0)) / below.sum()
    assert (np.abs(mean - exact) < 6 * error).all()
    assert (error < 0.2 * exact).all()
    if refine != ["refine=none"]:
        assert 0.1 < report["acceptance"] < 0.99
    if chains:
        assert "log_z" not in report
        assert report["distinct"] < report["n"] == 6000
    else:
        assert abs(report["log_z"] - log_z) < 6 * 0.02
        assert ("verdict" in report) == (refine == ["refine=none"])


def test_refining_makes_weights_more_even(well: Path, tmp_path: Path) -> None:
    _, plain = sampled(well, tmp_path / "a", "n=2000")
    _, refined = sampled(well, tmp_path / "b", "n=2000", "refine=smc")
    before, after = (ess(torch.tensor(data["log_w"])) for data in (plain, refined))
    assert after > before + 0.1


def test_samples_until_an_effective_size_is_reached(well: Path, tmp_path: Path) -> None:
    report, data = sampled(well, tmp_path, "ess=1500")
    w = np.exp(data["log_w"] - data["log_w"].max())
    assert w.sum() ** 2 / (w**2).sum() == pytest.approx(report["effective_size"])
    assert report["effective_size"] >= 1500
    without_last = w[:-200]
    assert without_last.sum() ** 2 / (without_last**2).sum() < 1500


def test_samples_can_be_reweighted(well: Path, tmp_path: Path) -> None:
    """From the file of this command, and from refined samples as well."""
    for refine in ("none", "smc"):
        sampled(well, tmp_path / refine, "n=6000", f"refine={refine}")
        out = tmp_path / f"{refine}.json"
        command(reweight, f"run={well}", f"samples={tmp_path / refine / 'samples.npz'}",
                "temperatures=[320]", f"out={out}", "level=0.9999")  # fmt: skip
        (found,) = json.loads(out.read_text())["conditions"]
        mean, covariance = DoubleWell(temperature=300.0).moments(320.0)
        y = found["averages"]["1"]
        assert y["low"] < float(mean[1]) < y["high"]
        assert y["se"] < 0.2 * math.sqrt(float(covariance[1, 1]))


def said(run: Path, *overrides: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it refuses; nothing may be left behind."""
    with pytest.raises(SystemExit) as exit_:
        command(sample, f"run={run}", "chunk=200", "compile=false", *overrides)
    assert exit_.value.code == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "Expected either n=<samples> or ess=<effective size>, got n=None and ess=None"),
        (["n=10", "ess=10"], "got n=10 and ess=10"),
        (["n=0"], "Expected n >= 1 and a whole number, got 0"),
        (["n=2.5"], "Expected n >= 1 and a whole number, got 2.5"),
        (["ess=few"], "Expected ess >= 1 and a whole number, got 'few'"),
        (["n=10", "resample=0"], "Expected resample >= 1 and a whole number, got 0"),
        (["n=10", "format=pdb"], "Expected a trajectory format out of xtc, dcd, h5, got 'pdb'"),
        (["ess=50", "refine=metropolis"], "Expected n=<samples> with Metropolis, got ess=50"),
        (["ess=50", "refine=hmc"], "Expected n=<samples> with SMC, got ess=50"),
        (["ess=1e9", "max_n=300"], "Expected an effective size of 1e+09 within max_n=300"),
        (["n=10", "refine=magic"], "Available options in 'refine': hmc metropolis none smc"),
        (["n=10", "refine.burn=3"], "Expected a key of refine (_target_), got 'burn'"),
    ],
)
def test_bad_input_is_one_sentence(
    overrides: list[str], sentence: str, well: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in said(well, *overrides, capsys=capsys)
    assert not (well / "sampled").exists()


def test_disk_full_leaves_no_half_file(
    peptide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Samples do not fit, or they do and the trajectory does not: what has its name is whole."""
    sampled(peptide, tmp_path, "n=200", "format=dcd")
    n_bytes = (tmp_path / "samples.npz").stat().st_size
    assert n_bytes < (tmp_path / "samples.dcd").stat().st_size
    for limit, left in ((n_bytes // 2, []), (n_bytes + 50, ["samples.npz"])):
        out = tmp_path / str(limit)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            text = said(peptide, "n=200", f"out={out}", "format=dcd", capsys=capsys)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert f"Expected to write into {out}, got" in text
        assert [file.name for file in out.iterdir()] == left
    assert np.load(out / "samples.npz")["log_w"].shape == (200,)


def test_no_weight_at_all_is_no_effective_size() -> None:
    """A flow outside the domain never reaches one, and does not pretend to."""

    class Nowhere(Model):
        def draw(self, flow: Flow, target: Target, path: Aim, n: int, **how: Any) -> Samples:
            nothing = torch.full((n,), -math.inf, dtype=torch.float64)
            zero = torch.zeros(n, dtype=torch.float64)
            return Samples(torch.zeros(n, 2), zero, nothing, nothing, -nothing, zero)

    system = AnalyticSystem("well", 300.0, DoubleWell(temperature=300.0))
    with pytest.raises(CommandError, match="within max_n=40 samples, got 0"):
        sample.draw(
            build_flow(composed(), system.target), system, Nowhere(),
            sample.Wanted(None, size=5.0, most=40), chunk=20, generator=torch.Generator(),
        )  # fmt: skip
