"""runs.probe on run folders: words, regions and structures."""

import json
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from flows.files import replacing
from flows.training.checkpoint import load_checkpoint, save_checkpoint
from runs import probe as command_module
from runs import train
from runs.cli import CommandError
from runs.probe import probe_run
from tests.runs.in_process import command

SMALL = [
    "flow.n_couplings=2", "flow.hidden=[16]", "flow.n_bins=4", "trainer.compile=false",
    "trainer.log_every=5", "trainer.batch_size=64", "trainer.max_steps=5", "trainer.min_samples=1",
    "evaluation.n=500", "evaluation.chunk=200", "evaluation.n_saved=300", "evaluation.n_frames=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on butane that has hardly begun; the harmonic base gives it some weights."""
    folder = tmp_path_factory.mktemp("runs") / "butane"
    sizes = ["evaluation.n=4000", "evaluation.n_saved=4000", "evaluation.chunk=1000"]
    command(train, "system=butane", *SMALL, *sizes, f"hydra.run.dir={folder}")
    return folder


def test_regions_are_written_as_structures(
    untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (untrained / "probe").mkdir()
    (untrained / "probe" / "region_9.pdb").touch()  # of an earlier probe
    command(
        command_module, f"run={untrained}", "walkers.n=40", "walkers.n_steps=3",
        "walkers.hot=1.5", "walkers.factor=1.1", "n_structures=2", "n_regions=2", "compile=false",
    )  # fmt: skip
    report = json.loads((untrained / "probe.json").read_text())
    assert report["verdict"] in capsys.readouterr().out
    assert report["n_evals"] == 40 * (1 + 6 * 6)
    regions = report["regions"]
    assert 1 <= len(regions) <= 2
    assert {p.name for p in (untrained / "probe").iterdir()} == {
        Path(r["structures"]).name for r in regions
    }
    masses = [r["mass"]["value"] for r in regions]
    assert masses == sorted(masses, reverse=True)
    for region in regions:
        frames = mdtraj.load(str(untrained / region["structures"]))
        assert frames.n_frames == min(2, region["n_walkers"])
        names = [str(a) for a in frames.topology.atoms]
        atoms = [next(k for k, a in enumerate(names) if a.endswith(f"-C{c}")) for c in range(1, 5)]
        angle = mdtraj.compute_dihedrals(frames, [atoms])[0, 0]
        turn = (angle - region["heaviest"]["CCCC"] + np.pi) % (2 * np.pi) - np.pi
        assert abs(turn) < 0.05  # PDB keeps 0.0001 nm


def test_density_without_atoms_has_regions_but_no_structures(tmp_path: Path) -> None:
    command(train, "system=double_well", *SMALL, f"hydra.run.dir={tmp_path}")
    report = probe_run(tmp_path, n=40, n_steps=3, factor=1.05, compile=False)
    assert report["regions"]
    assert all(r["structures"] is None for r in report["regions"])
    assert set(report["regions"][0]["heaviest"]) == {"0", "1"}
    assert not (tmp_path / "probe").exists()


def test_bad_input(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="Expected run=<folder"):
        probe_run(None)
    with pytest.raises(CommandError, match="no such one"):
        probe_run(tmp_path / "none")
    with pytest.raises(CommandError, match="Expected n_regions >= 1, got 0"):
        probe_run(untrained, n_regions=0)


def half_of(folder: Path, copy: Path) -> None:
    """A run folder as it is while training goes on: no evaluation yet."""
    for name in ("config.yaml", "checkpoints/last.pt"):
        with replacing(copy / name) as temporary:
            temporary.write_bytes((folder / name).read_bytes())


def test_half_written_folder_is_refused(untrained: Path, tmp_path: Path) -> None:
    half_of(untrained, tmp_path)
    with pytest.raises(CommandError, match=r"Expected weighted samples at .*, got no such file"):
        probe_run(tmp_path)
    assert not (tmp_path / "probe.json").exists()


def test_checkpoint_of_another_flow_is_refused(untrained: Path, tmp_path: Path) -> None:
    half_of(untrained, tmp_path)
    (tmp_path / "samples.npz").write_bytes((untrained / "samples.npz").read_bytes())
    state = load_checkpoint(untrained / "checkpoints" / "last.pt")
    state["ema"] = {"weight": torch.zeros(2)}
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", state)
    with pytest.raises(CommandError, match="Expected the weights of the flow in"):
        probe_run(tmp_path)
