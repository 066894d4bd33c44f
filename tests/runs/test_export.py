"""A flow that is handed on gives the same samples, weights and figures as the run it came from."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flows.training.checkpoint import load_checkpoint
from runs import evaluate, export, folder, reference, sample, train
from runs.folder import RunFolder
from tests.runs.in_process import command, refused

SMALL = [
    "flow.n_couplings=2", "flow.hidden=[16]", "flow.n_bins=4", "trainer.compile=false",
    "trainer.batch_size=64", "trainer.max_steps=20", "evaluation.n=300", "evaluation.chunk=100",
    "evaluation.n_saved=300", "evaluation.n_frames=40",
]  # fmt: skip


Tensors = dict[str, Tensor]


@pytest.fixture(scope="module", params=["aldp_vacuum", "double_well"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    command(train, f"system={request.param}", *SMALL, f"hydra.run.dir={path}")
    return path


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    command(export, f"run={run}", f"out={tmp_path / 'handed_on'}")
    return tmp_path / "handed_on"


def samples(run: Path, out: Path) -> dict[str, np.ndarray]:
    command(sample, f"run={run}", f"out={out}", "n=200", "chunk=100", "compile=false")
    return dict(np.load(out / "samples.npz"))


def test_exported_flow_draws_the_same(run: Path, exported: Path, tmp_path: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "flow.safetensors", "config.yaml", "versions.json",
    }  # fmt: skip
    one, other = samples(run, tmp_path / "a"), samples(exported, tmp_path / "b")
    assert one.keys() == other.keys()
    for name in ("x", "log_q", "potential", "log_w"):
        np.testing.assert_array_equal(other[name], one[name])


def test_exported_flow_is_evaluated_and_trained_on(exported: Path, tmp_path: Path) -> None:
    command(evaluate, f"run={exported}", "n=300", "evaluation.chunk=100", "compile=false")
    assert json.loads((exported / "metrics.json").read_text())["n"] == 300
    system = RunFolder(exported).read_config().system.name
    command(
        train, f"system={system}", *SMALL, "trainer.max_steps=1", "optimizer.lr=1e-12",
        "trainer.ema_decay=0", f"start={exported}", f"hydra.run.dir={tmp_path / 'on'}",
    )  # fmt: skip
    before = load_file(exported / "flow.safetensors")
    after = load_checkpoint(tmp_path / "on" / "checkpoints" / "last.pt")["flow"]
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[f"flow.{name}"], rtol=0, atol=1e-6)


def test_coordinates_are_those_of_the_training(exported: Path, tmp_path: Path) -> None:
    """Another machine may find another minimum; what the flow has learnt is of the first one."""
    file = exported / "flow.safetensors"
    tensors = load_file(file)
    if "coordinates.centre" not in tensors:
        pytest.skip("coordinates of a density in closed form are not found but given")
    before = samples(exported, tmp_path / "a")
    tensors["coordinates.centre"] += 1e-3
    save_file(tensors, file)
    after = samples(exported, tmp_path / "b")
    np.testing.assert_array_equal(after["x"], before["x"])
    assert np.abs(after["potential"] - before["potential"]).max() > 1e-3


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors | {"coordinates.periodic": ~tensors["coordinates.periodic"]},
         "Expected coordinates of .* another molecule or another version"),
        (lambda tensors: {k: t for k, t in tensors.items() if "conditioner" not in k},
         "Expected the weights of the flow in .* other layers"),
    ],
)  # fmt: skip
def test_file_of_something_else(
    exported: Path, damage: Callable[[Tensors], Tensors], said: str
) -> None:
    file = exported / "flow.safetensors"
    save_file(damage(load_file(file)), file)
    assert re.search(said, refused(sample, f"run={exported}", "n=10", "compile=false"))


def test_file_that_is_cut_short(exported: Path) -> None:
    file = exported / "flow.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    said = refused(sample, f"run={exported}", "n=10", "compile=false")
    assert f"Expected a whole file of weights at {file}, got: SafetensorError" in said


def test_folder_without_a_flow(tmp_path: Path, run: Path) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    said = refused(export, f"run={tmp_path}", f"out={tmp_path / 'out'}")
    assert "which lacks checkpoints/last.pt or flow.safetensors." in said
    assert "Expected out=<folder for the files>, got none." in refused(export, f"run={run}")


def test_simulation_does_not_go_on_from_an_exported_flow(exported: Path) -> None:
    said = refused(reference, f"resume={exported}")
    assert "which lacks checkpoints/last.pt." in said


def test_flow_of_the_package_is_found_and_left_alone(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    (package / "pretrained").mkdir(parents=True)
    exported.rename(package / "pretrained" / "mine")
    monkeypatch.setattr(folder, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    command(sample, "run=pretrained/mine", "n=50", "chunk=50", "compile=false")
    assert (tmp_path / "sampled" / "samples.npz").is_file()
    said = refused(evaluate, "run=pretrained/mine", "n=100", "compile=false")
    assert "comes with the package: evaluate a copy of it." in said
    assert len(list((package / "pretrained" / "mine").iterdir())) == 3
