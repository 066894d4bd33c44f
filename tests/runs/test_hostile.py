"""A run folder from someone else runs no code of theirs, whatever command opens it."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from runs import evaluate, export, free_energy, probe, report, reweight, sample, train
from runs.cli import CommandError
from runs.folder import RunFolder
from runs.targets import check_targets
from runs.trust import allowed
from tests.runs.in_process import command, refused
from tests.runs.stored import write_run
from tests.runs.test_resume import SMALL


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained and evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "honest"
    command(train, *SMALL, "trainer.max_steps=2", f"hydra.run.dir={folder}")
    return folder


COMMANDS = {
    "evaluate": (evaluate, ["n=10"]),
    "sample": (sample, ["n=10"]),
    "export": (export, ["out=handed_on"]),
    "probe": (probe, ["compile=false"]),
    "reweight": (reweight, ["temperatures=[310]", "observables={a: [name A, name B]}"]),
    "free_energy": (free_energy, ["to={temperature: 310}"]),
    "report": (report, []),
}


def hostile_copy(honest: Path, folder: Path, change: dict[str, Any]) -> Path:
    """A run folder whose config.yaml was changed; the other files are those of an honest one."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/last.pt", "samples.npz", "metrics.json", "metrics.jsonl"):
        os.link(honest / name, folder / name)
    config = OmegaConf.load(honest / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, change), folder / "config.yaml")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_hostile_config(name: str, honest: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    evil = {"_target_": "os.mkdir", "path": str(trap)}
    module, overrides = COMMANDS[name]
    for key in ("system", "flow", "energy"):
        folder = hostile_copy(honest, tmp_path / key, {key: evil})
        said = refused(module, f"run={folder}", *overrides)
        assert f"got {key}._target_: os.mkdir. If you trust it: allow=[os]" in said
    assert not trap.exists()


@pytest.mark.parametrize("name", ["evaluate", "sample", "export", "probe"])
def test_hostile_checkpoint(name: str, honest: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    folder = hostile_copy(honest, tmp_path / "run", {})
    (folder / "checkpoints" / "last.pt").unlink()
    torch.save({"dim": 2, "ema": Hostile(trap)}, folder / "checkpoints" / "last.pt")
    module, overrides = COMMANDS[name]
    assert "got a file that cannot be read" in refused(module, f"run={folder}", *overrides)
    assert not trap.exists()


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_training_in_a_hostile_folder(honest: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    evil = {"flow": {"_target_": "os.mkdir", "path": str(trap)}}
    folder = hostile_copy(honest, tmp_path / "run", evil)
    said = refused(train, *SMALL, f"start={folder}", f"hydra.run.dir={tmp_path / 'new'}")
    assert "got flow._target_: os.mkdir" in said
    (folder / "checkpoints" / "last.pt").unlink()
    torch.save(Hostile(trap), folder / "checkpoints" / "last.pt")
    said = refused(train, *SMALL, f"resume={folder}")
    assert "Expected a complete checkpoint in" in said
    assert not trap.exists()


def test_an_end_of_someone_else(honest: Path, tmp_path: Path) -> None:
    evil = {"system": {"_target_": "os.mkdir", "path": str(tmp_path / "trap")}}
    folder = hostile_copy(honest, tmp_path / "other", evil)
    said = refused(free_energy, f"run={honest}", f"other={folder}")
    assert "got system._target_: os.mkdir" in said
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "builtins.eval", "subprocess.Popen", "runpy.run_path", "flowsy.Flow",
        # These begin well: what they lead to is another's, or writes files.
        "flows.files.os.system", "flows.compile.multiprocessing.Process",
        "energies.molecule.Path", "flows.training.trainer.torch.load", "flows.build.partial",
        "torch.optim.adam.torch.load", "torch.optim.Adam.__init__.__globals__",
        "runs.folder.write_json", "flows.files.replacing", "runs.folder.subprocess.run",
        "flows.training.checkpoint.save_checkpoint",
        "flows", "flows.training", "flows.nothing.at_all", "", "flows..x",
    ],
)  # fmt: skip
def test_names_that_are_refused(name: str, tmp_path: Path) -> None:
    config = OmegaConf.create({"system": {"parts": [{"_target_": name}]}})
    with pytest.raises(CommandError, match=r"Expected every _target_ in .*system.parts.0._target"):
        check_targets(config, tmp_path / "config.yaml")


def test_names_that_are_accepted(tmp_path: Path) -> None:
    """Every `_target_` of our own configs, and what the user allows."""
    ours = Path(__file__).resolve().parents[2] / "configs"
    n = 0
    for file in ours.rglob("*.yaml"):
        text = "".join(
            line for line in file.read_text().splitlines(keepends=True) if "${" not in line
        )
        config = OmegaConf.create(text)
        config.pop("hydra", None)
        check_targets(config, file)
        n += text.count("_target_:")
    assert n > 60
    config = OmegaConf.create({"loss": {"_target_": "tests.runs.of_a_user.height"}})
    with pytest.raises(CommandError, match=r"allow=\[tests\]"):
        check_targets(config, tmp_path)
    for names in (["tests"], ["tests.runs.of_a_user"], ["os", "tests.runs.of_a_user.height"]):
        token = allowed.set(tuple(names))
        check_targets(config, tmp_path)
        allowed.reset(token)
    token = allowed.set(("test",))
    with pytest.raises(CommandError, match="of_a_user"):
        check_targets(config, tmp_path)
    allowed.reset(token)


def test_allowed_by_name(honest: Path, tmp_path: Path) -> None:
    """The same folder opens once its package is named, and not by that of another."""
    mine = {"flow": {"_target_": "tests.runs.test_hostile.my_flow", "_partial_": True}}
    folder = hostile_copy(honest, tmp_path / "run", mine)
    OmegaConf.save(
        OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), mine), folder / "config.yaml"
    )
    common = [
        f"run={folder}",
        "n=20",
        "evaluation.chunk=20",
        "evaluation.n_saved=10",
        "compile=false",
    ]
    refused(evaluate, *common, "allow=[other]")
    before = (folder / "metrics.json").read_text()
    command(evaluate, *common, "allow=[tests]")
    assert (folder / "metrics.json").read_text() != before


def my_flow(periodic: torch.Tensor, **settings: Any) -> Any:
    """A flow of the user's own."""
    from flows.build import spline_flow

    return spline_flow(periodic, **settings)


SCRIPT = "<ForceField><InitializationScript>open({!r}, 'w')</InitializationScript></ForceField>"


@pytest.mark.parametrize("form", ["script", "utf-16", "included"])
def test_force_field_with_a_script(form: str, tmp_path: Path) -> None:
    """OpenMM runs Python code that stands in a force field file."""
    trap, file, folder = tmp_path / "trap", tmp_path / "field.dat", tmp_path / "run"
    text = SCRIPT.format(str(trap))
    if form == "utf-16":
        file.write_bytes(f'<?xml version="1.0" encoding="utf-16"?>{text}'.encode("utf-16"))
    elif form == "included":
        (tmp_path / "inner.xml").write_text(text)
        file.write_text('<ForceField><Include file="inner.xml"/></ForceField>')
    else:
        file.write_text(text)
    write_run(folder, "system=aldp_vacuum", n=2)
    config = OmegaConf.load(folder / "config.yaml")
    config.system.molecule.forcefield = ["amber96.xml", str(file)]
    OmegaConf.save(config, folder / "config.yaml")
    with pytest.raises(CommandError, match="from which OpenMM would run code"):
        _ = RunFolder(folder).config
    token = allowed.set((str(file),))
    assert RunFolder(folder).config.system.name == "aldp_vacuum"
    allowed.reset(token)
    assert not trap.exists()


def test_values_that_change_when_they_are_used(honest: Path, tmp_path: Path) -> None:
    folder = hostile_copy(honest, tmp_path / "run", {})
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text + "more: ${oc.env:HOME}\n")
    with pytest.raises(CommandError, match="Expected resolved values"):
        _ = RunFolder(folder).config
    (folder / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(CommandError, match="Expected the config of a training run"):
        _ = RunFolder(folder).config
