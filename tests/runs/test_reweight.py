"""Reweighting: exact answers where there are some, and refusals in one sentence."""

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from energies.analytic import ManyWell
from energies.base import R
from flows.types import Samples
from runs import reweight
from runs.samples import StoredSamples
from tests.runs.in_process import command
from tests.runs.stored import write_run

ROOT = Path(__file__).resolve().parents[2]
ALDP = "system=aldp_vacuum"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "aldp"
    write_run(folder, ALDP, turn=0.3)
    return folder


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "reweight.json").read_text())["conditions"]


def said(run_: Path, *overrides: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it refuses; nothing may be left behind."""
    before = {p: p.stat().st_mtime_ns for p in run_.iterdir()} if run_.is_dir() else {}
    with pytest.raises(SystemExit) as exit_:
        command(reweight, f"run={run_}", *overrides)
    assert exit_.value.code == 1
    after = {p: p.stat().st_mtime_ns for p in run_.iterdir()} if run_.is_dir() else {}
    assert after == before
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip()


def many_well(seed: int, n: int, width: float = 1.0) -> StoredSamples:
    """Samples of a hotter density, as a flow would give them: its exact points, its density."""
    energy = ManyWell(n_wells=2, b=-2.0).double()
    generator = torch.Generator().manual_seed(seed)
    y = energy.sample(n, 360.0, generator=generator)
    u = energy.potential(y)
    log_q = -u / (R * 360.0) - energy.log_z(360.0)
    log_w = -u / (R * 300.0) - log_q
    samples = Samples(y.flatten(1), log_q, log_w + log_q, log_w, u, torch.zeros(n).double())
    observed = {str(k): column for k, column in enumerate(y.flatten(1).unbind(-1))}
    return StoredSamples(samples, 300.0, observed, "y", Path("samples.npz"))


@pytest.mark.parametrize("temperature", [280.0, 300.0, 330.0])
def test_averages_at_another_temperature_cover_the_exact_ones(temperature: float) -> None:
    """20 repetitions of 4 averages: 76 of 80 expected, 2 the standard deviation."""
    energy = ManyWell(n_wells=2, b=-2.0).double()
    mean, covariance = energy.moments(temperature)
    exact = {
        "0": float(mean[0]),
        "1": float(mean[1]),
        "square 0": float(covariance[0, 0] + mean[0] ** 2),
    }
    step = 0.01
    slope = (energy.log_z(temperature + step) - energy.log_z(temperature - step)) / (2 * step)
    exact["potential"] = R * temperature**2 * slope
    covered, log_z_off = 0, []
    for seed in range(20):
        stored = many_well(seed, 2000)
        averages = {"0": stored.observed["0"], "1": stored.observed["1"],
                    "square 0": stored.observed["0"].square()}  # fmt: skip
        condition = reweight.Condition("wells", temperature, stored.samples.potential)
        found = reweight.reweight(
            stored, condition, averages, {}, reweight.Settings(n_rep=400, seed=seed)
        )
        assert found["reliable"]
        covered += sum(a["low"] <= exact[k] <= a["high"] for k, a in found["averages"].items())
        log_z_off.append((found["log_z"] - energy.log_z(temperature)) / found["log_z_se"])
    assert 68 <= covered < 80
    assert abs(np.mean(log_z_off)) < 4 / math.sqrt(20)


def test_far_temperatures_are_refused_without_averages() -> None:
    stored = many_well(0, 2000)
    condition = reweight.Condition("wells", 20.0, stored.samples.potential)
    found = reweight.reweight(stored, condition, {}, {})
    assert not found["reliable"]
    assert "where at least 100 are needed" in found["verdict"]
    assert "averages" not in found


def test_temperatures_need_neither_flow_nor_openmm(run: Path) -> None:
    """From samples.npz alone, in a process that may not import what builds molecules."""
    code = (
        "import sys\n"
        "for name in ('openmm', 'mdtraj', 'runs.building'): sys.modules[name] = None\n"
        "from runs import reweight\n"
        "reweight.main()\n"
    )
    (alone := run.parent / "alone").mkdir()
    (alone / "samples.npz").write_bytes((run / "samples.npz").read_bytes())
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, f"run={alone}", "temperatures=[299,301]"],
        check=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    first, second = results(alone)
    data = np.load(alone / "samples.npz")
    log_w = -data["potential"] / R * (1 / 301 - 1 / 300)
    w = np.exp(log_w - log_w.max())
    assert second["averages"]["potential"]["value"] == pytest.approx(
        (w * data["potential"]).sum() / w.sum()
    )
    assert first["temperature"] == 299
    assert first["populations"] == {}  # no config.yaml that would name basins


def test_basins_come_from_the_run_or_the_command_line(run: Path) -> None:
    command(reweight, f"run={run}", "temperatures=300")
    (found,) = results(run)
    data = np.load(run / "samples.npz")
    phi = data["torsion_phi_2"]
    middle = float(np.median(phi))
    # The molecule was set up around its minimum at φ < 0: nothing is in this box.
    assert found["populations"]["alpha_L"]["value"] == 0
    assert found["populations"]["alpha_L"]["high"] == pytest.approx(3 / 600, rel=0.01)
    assert found["effective_size"] == pytest.approx(600)
    command(reweight, f"run={run}", "temperatures=300",
            f"basins={{low: {{phi_2: [-3.14, {middle}]}}, high: {{phi_2: [{middle}, 0.0]}}}}",
            )  # fmt: skip
    (found,) = results(run)
    assert set(found["populations"]) == {"low", "high"}
    for p in found["populations"].values():
        assert p["value"] == pytest.approx(0.5, abs=0.01)
        assert p["se"] == pytest.approx(0.5 / math.sqrt(600), rel=0.1)


def test_observables_of_frames(run: Path) -> None:
    middle = float(np.median(np.load(run / "samples.npz")["torsion_phi_2"]))
    command(
        reweight, f"run={run}",
        "observables={CO: [name O and resid 0, name C and resid 0],"
        " NCC: [name N and resid 1, name CA and resid 1, name C and resid 1],"
        " phi: [name C and resid 0, name N and resid 1, name CA and resid 1, name C and resid 1],"
        " rg: {_target_: mdtraj.compute_rg},"
        " height: {_target_: tests.runs.of_a_user.height, axis: 2}}",
        f"basins={{L: {{phi: [{middle}, 0.0]}}, same: {{phi_2: [{middle}, 0.0]}}}}",
    )  # fmt: skip
    (found,) = results(run)
    averages = found["averages"]
    assert set(averages) == {"potential", "CO", "NCC", "rg", "height"}
    assert averages["CO"]["value"] == pytest.approx(0.123, abs=0.003)
    assert averages["NCC"]["value"] == pytest.approx(math.radians(110), abs=0.1)
    assert 0.2 < averages["rg"]["value"] < 0.3
    assert averages["height"]["value"] > 0.1
    assert found["populations"]["L"]["value"] == pytest.approx(0.5, abs=0.01)
    assert found["populations"]["L"] == pytest.approx(found["populations"]["same"], abs=0.01)


def test_another_solvent_by_its_energy(tmp_path: Path) -> None:
    """Weights are Boltzmann factors of the difference of energies; OpenMM's are held against."""
    write_run(tmp_path / "run", ALDP, turn=0.15)
    found = {}
    for energy in ("openmm", "torch"):
        out = tmp_path / f"{energy}.json"
        command(reweight, f"run={tmp_path / 'run'}", "system=aldp", f"energy={energy}",
                f"out={out}", "min_size=20")  # fmt: skip
        (found[energy],) = json.loads(out.read_text())["conditions"]
    ours, theirs = found["torch"], found["openmm"]
    assert ours["system"] == "aldp"
    assert ours["effective_size"] == pytest.approx(theirs["effective_size"], rel=1e-2)
    assert ours["effective_size"] < 550
    mean = ours["averages"]["potential"]
    assert mean["value"] == pytest.approx(theirs["averages"]["potential"]["value"], abs=0.05)
    # Solvation lowers the energy of a peptide by far more than its spread.
    vacuum = np.load(tmp_path / "run" / "samples.npz")["potential"].mean()
    assert mean["value"] < vacuum - 20
    assert not (tmp_path / "run" / "reweight.json").exists()


def test_same_force_field_again_changes_nothing(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command(reweight, f"run={run}", ALDP, f"out={out}")
    (found,) = json.loads(out.read_text())["conditions"]
    assert found["effective_size"] == pytest.approx(600, rel=1e-3)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("temperatures=[1200]", "Expected samples that overlap with what is asked for, got aldp"),
        ("temperatures=[]", "Expected temperatures > 0 kelvin, got []"),
        ("temperatures=[-5]", "Expected temperatures > 0 kelvin, got [-5]"),
        ("temperatures=warm", "Expected temperatures > 0 kelvin, got ['warm']"),
        ("basins={a: {chi_9: [0, 1]}}", "got 'chi_9'"),
        ("basins={a: {phi_2: [1, 1]}}", "Expected box['phi_2'] = (lo, hi) finite and different"),
        ("basins={a: {}}", "Expected box with at least one torsion, got none"),
        ("basins={a: 3}", "Expected basins to map names to torsions"),
        ("observables={a: 3}", "Expected observables.a to be two to four mdtraj selections"),
        ("observables={a: [name C, name N]}", "to select one atom, got 2"),
        ("observables={a: [name XX, name YY]}", "to select one atom, got 0: none"),
        ("observables={a: ['name ((', name N]}", "to be selections of mdtraj, got 'name (('"),
        ("observables={a: {_target_: no.such.thing}}", "to be a function, got 'no.such.thing'"),
        (
            "observables={a: {_target_: tests.runs.of_a_user.one_number}}",
            "to give a number for each of 600 frames, got shape []",
        ),
        (
            "observables={a: {_target_: tests.runs.of_a_user.broken}}",
            "to give a number for each frame, got KeyError: 'no such thing'",
        ),
        ("system=butane", "Expected system=butane to have the atoms and fixed bonds of aldp"),
        ("system=double_well", "Expected system=double_well to have the atoms and fixed bonds"),
        ("level=95", "Expected level in (0, 1), got 95"),
        ("n_rep=0", "Expected n >= 30 and n_rep >= 2, got n=600 and n_rep=0"),
        ("samples=/nowhere.npz", "Expected weighted samples at /nowhere.npz, got no such file"),
        ("temperature=310", "Did you mean 'temperatures'?"),
    ],
)
def test_bad_input_is_one_sentence(
    override: str, sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in said(run, override, capsys=capsys)


def test_fixed_bonds_are_part_of_the_atoms(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(run, ALDP, "system.molecule.constraints=HBonds", capsys=capsys)
    assert "which differ in ACE1-CH3=ACE1-HH32" in text


def copy_of(run: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.yaml", "samples.npz"):
        (folder / name).write_bytes((run / name).read_bytes())
    return folder


def test_foreign_and_damaged_samples(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "lacks samples.npz" in said(tmp_path, capsys=capsys)
    half = copy_of(run, tmp_path / "half")
    whole = (half / "samples.npz").read_bytes()
    (half / "samples.npz").write_bytes(whole[: len(whole) // 2])
    assert "Expected whole weighted samples at" in said(half, capsys=capsys)
    older = copy_of(run, tmp_path / "older")
    data = dict(np.load(run / "samples.npz"))
    np.savez(older / "samples.npz", **{k: v for k, v in data.items() if k != "log_jac"})
    assert "got: no log_jac" in said(older, capsys=capsys)
    np.savez(older / "samples.npz", **data | {"log_w": data["log_w"] + 1.0})
    assert "got: log_w that do not follow" in said(older, capsys=capsys)
    np.savez(older / "samples.npz", **data | {"potential": data["potential"][:5]})
    assert "got: potential of shape [5] for 600 samples" in said(older, capsys=capsys)

    other = copy_of(run, tmp_path / "other")
    config = OmegaConf.load(other / "config.yaml")
    for change, sentence in (
        ({"sequence": "ACE GLY NME"}, "those of another system"),
        ({"forcefield": ["amber99sbildn.xml"]}, "another molecule, order of atoms or force field"),
    ):
        changed = OmegaConf.merge(config, {"system": {"molecule": change}})
        OmegaConf.save(changed, other / "config.yaml")
        text = said(other, "observables={rg: {_target_: mdtraj.compute_rg}}", capsys=capsys)
        assert sentence in text


def test_all_weight_on_one_sample(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(run, tmp_path / "one")
    data = dict(np.load(run / "samples.npz"))
    data["log_q"][7] -= 800.0
    data["log_w"][7] += 800.0
    np.savez(folder / "samples.npz", **data)
    assert "1 effective of 600 samples, where at least 100" in said(folder, capsys=capsys)
    data["log_w"] = np.full(600, -np.inf)
    data["potential"] = np.full(600, np.inf)
    np.savez(folder / "samples.npz", **data)
    assert "0 effective of 600 samples" in said(folder, capsys=capsys)


def test_disk_full(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        text = said(run, "temperatures=300", capsys=capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"Expected to write into {run}, got" in text


def test_a_trajectory_gives_the_observables_of_its_samples(run: Path) -> None:
    """What mdtraj computes from the frames is what the samples' own torsions say."""
    from runs.building import build_system

    system = build_system(OmegaConf.load(run / "config.yaml"), device=torch.device("cpu"))
    data = np.load(run / "samples.npz")
    (frames,) = system.trajectories(torch.tensor(data["x"]), torch.Generator().manual_seed(0))
    phi = mdtraj.compute_phi(frames)[1][:, 0]
    turn = (phi - data["torsion_phi_2"] + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(turn).max() < 1e-3
