"""Free energies from run folders, against exact ones and against parallel tempering."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from energies.analytic import DoubleWell
from energies.base import R
from flows.errors import FlowInputError, OverlapError
from runs import free_energy as command_module
from runs import train
from runs.cli import CommandError
from runs.free_energy import free_energy
from tests.runs.in_process import command

QUICK = [
    "flow.n_couplings=4", "flow.hidden=[32,32]", "trainer.compile=false", "trainer.log_every=100",
    "trainer.batch_size=256", "trainer.max_steps=300", "evaluation.n=20000",
    "evaluation.n_saved=20000", "evaluation.n_frames=2", "evaluation.chunk=2000",
    "loss=forward_kl", "optimizer.lr=3e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def wells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs on two double wells that differ in barrier and tilt; shallow enough to be learnt."""
    folders = []
    for name, changes in (("start", ("b=-2.0",)), ("end", ("b=-3.0", "a=0.5"))):
        folder = tmp_path_factory.mktemp("runs") / name
        overrides = [f"+system.density.{change}" for change in changes]
        command(train, "system=double_well", *overrides, *QUICK, f"hydra.run.dir={folder}")
        folders.append(folder)
    return folders[0], folders[1]


def exact(end: DoubleWell, temperature: float) -> float:
    return DoubleWell(b=-2.0).log_z(300.0) - end.log_z(temperature)


@pytest.mark.parametrize(
    ("to", "end", "temperature"),
    [
        ({"temperature": 330.0}, DoubleWell(b=-2.0), 330.0),
        ({"density": {"b": -3.0}, "temperature": 290.0}, DoubleWell(b=-3.0), 290.0),
    ],
)
def test_other_temperature_and_energy(
    wells: tuple[Path, Path], to: dict[str, object], end: DoubleWell, temperature: float
) -> None:
    report = free_energy(wells[0], to=to)
    assert json.loads((wells[0] / "free_energy.json").read_text()) == report
    assert report["ends"]["temperatures"] == [300.0, temperature]
    found = report["ends"]["reduced"]
    assert set(found) == {"reweighting", "mapped_coordinates"}
    for estimate in found.values():
        assert abs(estimate["value"] - exact(end, temperature)) < 4 * estimate["se"] < 0.1


def test_two_runs_by_every_method(
    wells: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    start, end = wells
    command(command_module, f"run={start}", f"other={end}", "file=pair.json", "seed=1")
    found = json.loads((start / "pair.json").read_text())["ends"]["reduced"]
    assert set(found) == {
        "reweighting", "mapped_coordinates", "mapped_flows", "reweighting_back", "bar", "mbar",
    }  # fmt: skip
    truth = exact(DoubleWell(b=-3.0, a=0.5), 300.0)
    for name, estimate in found.items():
        assert abs(estimate["value"] - truth) < 4 * estimate["se"] < 0.2, name
    # Each flow maps noise onto its own end: little is left for the weights to do.
    assert found["mapped_flows"]["se"] < 0.5 * found["reweighting"]["se"]
    assert "mbar" in capsys.readouterr().out


def test_temperature_too_far_is_refused_with_the_reason(wells: tuple[Path, Path]) -> None:
    (wells[0] / "free_energy.json").unlink(missing_ok=True)
    with pytest.raises(CommandError, match=r"(?s)got a refusal by each method. reweighting: .*"):
        free_energy(wells[0], to={"temperature": 0.05})
    assert not (wells[0] / "free_energy.json").exists()


def made(folder: Path, *, phi: np.ndarray, log_w: np.ndarray, **arrays: np.ndarray) -> Path:
    """A run folder whose samples have one torsion, and nothing more than basins need."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.pt").touch()
    OmegaConf.save({"system": {"name": "made", "temperature": 300.0}}, folder / "config.yaml")
    zeros = np.zeros_like(log_w)
    columns = {
        "x": np.zeros((len(phi), 3), dtype=np.float32), "log_q": zeros, "potential": zeros,
        "log_jac": log_w, "log_w": log_w, "temperature": np.array(300.0), "torsion_phi": phi,
    }  # fmt: skip
    np.savez(folder / "samples.npz", **(columns | arrays))
    return folder


@pytest.fixture
def basins(tmp_path: Path) -> Path:
    """φ uniform, weighted to 1 + cos φ."""
    phi = np.random.default_rng(0).uniform(-math.pi, math.pi, 50_000)
    return made(tmp_path / "run", phi=phi.astype(np.float32), log_w=np.log1p(np.cos(phi)))


def test_basins_of_a_known_density(basins: Path) -> None:
    boxes = {"near": {"phi": [-1.0, 1.0]}, "far": {"phi": [2.0, -2.0]}}

    def mass(lo: float, hi: float) -> float:
        return (hi - lo + math.sin(hi) - math.sin(lo)) / (2 * math.pi)

    near, far = mass(-1, 1), mass(2, 2 * math.pi - 2)
    report = free_energy(basins, basins=boxes)["basins"]
    assert report["start"] == "rest"
    assert set(report["differences"]) == {"near", "far"}
    for name, p in (("near", near), ("far", far)):
        found = report["differences"][name]
        truth = -R * 300 * math.log(p / (1 - near - far))
        assert abs(found["value"] - truth) < 4 * found["se"] < 0.2
    report = free_energy(basins, basins=boxes, start="near")["basins"]
    assert set(report["differences"]) == {"rest", "far"}
    found = report["differences"]["far"]
    assert abs(found["value"] + R * 300 * math.log(far / near)) < 4 * found["se"]


def test_bad_input_is_one_sentence(basins: Path, tmp_path: Path) -> None:
    box = {"b": {"phi": [0.0, 1.0]}}
    with pytest.raises(FlowInputError, match=r"torsions out of \['phi'\], got 'chi'"):
        free_energy(basins, basins={"b": {"chi": [0.0, 1.0]}})
    with pytest.raises(CommandError, match=r"Expected samples in basin 'b', got none of 50000"):
        free_energy(basins, basins={"b": {"phi": [0.5, 0.5000001]}})
    with pytest.raises(CommandError, match="Expected start to be one of rest, b, got 'c'"):
        free_energy(basins, basins=box, start="c")
    with pytest.raises(CommandError, match=r"basins.b to be torsions with two angles each"):
        free_energy(basins, basins={"b": {"phi": 0.3}})
    with pytest.raises(CommandError, match="Expected basins, to or other, got none, and made"):
        free_energy(basins)
    with pytest.raises(CommandError, match="got both to and other"):
        free_energy(basins, to={"temperature": 310.0}, other=basins)
    with pytest.raises(CommandError, match=r"keys of the run's system \(name, temperature\)"):
        free_energy(basins, to={"temperatur": 310.0})
    with pytest.raises(CommandError, match="Expected n >= 2, got 1"):
        free_energy(basins, basins=box, n=1)
    with pytest.raises(CommandError, match="Expected other to be the folder of a run"):
        free_energy(basins, other=tmp_path / "none")
    assert not (basins / "free_energy.json").exists()


def test_all_weight_on_one_sample_is_refused(tmp_path: Path) -> None:
    log_w = np.full(1000, -1e3)
    log_w[7] = 0.0
    folder = made(tmp_path / "one", phi=np.linspace(-3, 3, 1000), log_w=log_w)
    with pytest.raises(OverlapError, match="effective samples for the target of the run, got 1 "):
        free_energy(folder, basins={"b": {"phi": [0.0, 1.0]}})


def test_folders_that_are_not_whole_are_refused(basins: Path, tmp_path: Path) -> None:
    box = {"b": {"phi": [0.0, 1.0]}}
    with pytest.raises(CommandError, match="Expected run=<folder"):
        free_energy(None, basins=box)
    half = tmp_path / "half"
    shutil.copytree(basins, half)
    (half / "samples.npz").write_bytes((basins / "samples.npz").read_bytes()[:5000])
    with pytest.raises(CommandError, match=r"Expected whole weighted samples at .*half"):
        free_energy(half, basins=box)
    (half / "samples.npz").unlink()
    with pytest.raises(CommandError, match=r"Expected weighted samples at .*half.*, got no such"):
        free_energy(half, basins=box)
    np.savez(half / "samples.npz", x=np.zeros((5, 3)), log_w=np.zeros(5))
    with pytest.raises(CommandError, match=r"got: no log_jac and no log_q and no potential"):
        free_energy(half, basins=box)
    (half / "config.yaml").unlink()
    with pytest.raises(CommandError, match=r"which lacks config.yaml"):
        free_energy(half, basins=box)
    odd = made(tmp_path / "odd", phi=np.zeros(9), log_w=np.zeros(9), torsion_psi=np.zeros(8))
    with pytest.raises(CommandError, match=r"torsion_psi of shape \[8\] for 9 samples"):
        free_energy(odd, basins=box)


def test_ends_of_other_coordinates_are_refused(wells: tuple[Path, Path], tmp_path: Path) -> None:
    many = tmp_path / "many"
    shutil.copytree(wells[0], many)
    config = OmegaConf.load(many / "config.yaml")
    config.system.density = {
        "_target_": "energies.analytic.ManyWell", "n_wells": 2, "temperature": 300.0,
    }  # fmt: skip
    OmegaConf.save(config, many / "config.yaml")
    with pytest.raises(CommandError, match="Expected two ends with the same coordinates, got"):
        free_energy(wells[0], other=many)
