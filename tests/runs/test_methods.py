"""Every named method trains from the command line; combinations that cannot work are refused."""

import json
import math
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from energies.target import EnergyTarget
from flows.training import Trainer
from runs import train
from runs.building import build_flow, build_stages, build_system
from runs.cli import CONFIGS
from runs.resolvers import share
from tests.rows import Rows
from tests.runs.in_process import command

SMALL = [
    "flow.n_couplings=2", "flow.hidden=[16]", "flow.n_bins=4",
    "flow.n_circle_couplings=2", "flow.circle_hidden=[16]", "flow.circle_bins=4",
    "trainer.compile=false", "trainer.log_every=5", "trainer.batch_size=64",
    "trainer.max_steps=40", "trainer.min_samples=1", "evaluation.n=400", "evaluation.chunk=200",
    "evaluation.n_saved=100", "evaluation.n_frames=40",
]  # fmt: skip
WELL = ["system=double_well", *SMALL]
STAGES = sorted(path.stem for path in (CONFIGS / "stages").glob("*.yaml"))
GROUPS = {g: sorted(p.stem for p in (CONFIGS / g).glob("*.yaml")) for g in ("loss", "proposal")}
PATHS = sorted(path.stem for path in (CONFIGS / "path").glob("*.yaml"))


def smaller(stages: str) -> list[str]:
    """Overrides that make the buffers of a method small."""
    node = composed(f"stages={stages}").stages
    sizes = {"Buffer": {"size": 2000}, "PrioritisedBuffer": {"size": 500, "min_size": 200}}
    changes = []
    for name, stage in node.items():
        if "rungs" in stage.path:
            changes += [f"stages.{name}.path.rungs=4"]
        if "n_samples" in stage.path:
            changes += [f"stages.{name}.path.n_samples=256"]
        kind = stage.proposal._target_.rpartition(".")[2]
        changes += [f"stages.{name}.proposal.{k}={v}" for k, v in sizes.get(kind, {}).items()]
        if not OmegaConf.is_interpolation(node[name], "steps"):
            changes += [f"stages.{name}.steps=10", f"stages.{name}.batch_size=64"]
    return changes


def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.mark.parametrize("stages", STAGES)
def test_every_method_trains(stages: str, tmp_path: Path) -> None:
    config = composed(*WELL, f"stages={stages}", *smaller(stages))
    plan = build_stages(config)
    system = build_system(config, device=torch.device("cpu"))
    logger = Rows()
    Trainer(progress_bar=False, log_every=5, min_samples=1).fit(
        build_flow(config, system.target), system.target, plan, logger=logger,
        checkpoint=tmp_path / "last.pt", generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert all(math.isfinite(row["loss"] + row["log_z"]) for row in logger.rows)
    assert {row["stage"] for row in logger.rows} == set(config.stages)
    assert logger.rows[-1]["temperature"] == pytest.approx(300.0, rel=0.25)
    assert logger.rows[-1]["step"] == sum(stage.steps for stage in plan)


def stages_of(*overrides: str) -> list[str]:
    plan = build_stages(composed(*overrides))
    return [type(part).__name__ for stage in plan for part in (stage.loss, stage.proposal)]


@pytest.mark.parametrize("loss", GROUPS["loss"])
def test_every_loss_is_built_by_its_name(loss: str) -> None:
    assert stages_of(f"loss={loss}")[1] == "Model"


@pytest.mark.parametrize("proposal", GROUPS["proposal"])
def test_every_proposal_is_built_by_its_name(proposal: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 2)))
    frames = mdtraj.load(str(CONFIGS.parent / "energies" / "data" / "butane.pdb"))
    frames.save(str(tmp_path / "x.xtc"))
    files = {
        "dataset": [f"proposal.path={tmp_path / 'x.npz'}"],
        "reference": ["proposal.path=aldp.npz"],
        "trajectory": [
            f"proposal.path={tmp_path / 'x.xtc'}",
            f"proposal.topology={CONFIGS.parent / 'energies' / 'data' / 'butane.pdb'}",
        ],
    }
    assert stages_of(f"proposal={proposal}", "loss=l2_plus", *files.get(proposal, []))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_built_by_its_name(path: str) -> None:
    assert stages_of(f"path={path}")


def test_centre_of_l2_plus_from_the_command_line(tmp_path: Path) -> None:
    command(
        train, *WELL, "loss=l2_plus", "loss.centre._target_=flows.losses.LearnedLogZ",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert (tmp_path / "metrics.json").exists()


def test_budgets_are_shared() -> None:
    assert share(0.3, None) is None
    assert share(0.3, 1000) == 300
    assert share(0.001, 10) == 1
    assert share("0.25", 10.0) == 2.5


CUSTOM = '''
from flows.losses import Loss


class Halfway(Loss):
    """L2 towards the mean over a fixed temperature: nothing that the package knows."""

    def __init__(self, power: float) -> None:
        self.power = power

    def __call__(self, flow, samples):
        r = samples.log_p - flow.log_prob(samples.x).double()
        return ((r - r.detach().mean()).abs() ** self.power).mean(), {}
'''


def test_a_loss_from_outside_the_package_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside_losses.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(str(tmp_path))
    command(
        train, *WELL, "~loss", "+loss._target_=outside_losses.Halfway", "+loss.power=1.5",
        "trainer.max_steps=200", "trainer.log_every=20", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["ess"] > 2 * rows[0]["ess"]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_trajectory_trains(tmp_path: Path) -> None:
    pdb = CONFIGS.parent / "energies" / "data" / "butane.pdb"
    frame = mdtraj.load(str(pdb))
    noise = np.random.default_rng(0).normal(scale=0.003, size=(100, *frame.xyz.shape[1:]))
    frames = mdtraj.Trajectory(frame.xyz + noise, frame.topology)
    frames.save(str(tmp_path / "frames.xtc"))
    command(
        train, *SMALL, "system=butane", "loss=forward_kl", "loss.baseline=0",
        "proposal=trajectory", f"proposal.path={tmp_path / 'frames.xtc'}",
        f"proposal.topology={pdb}", "trainer.max_steps=10", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    # 100 frames in two whole batches of 64, evaluated once.
    assert json.loads(rows[-1])["n_evals"] == 128


def test_frames_of_a_reference_train(tmp_path: Path) -> None:
    command(
        train, *SMALL, "experiment=repair_pretrain", "proposal.path=aldp.npz",
        "trainer.max_steps=5", "trainer.log_every=5", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["n_evals"] == 4096  # 4080 frames in batches of 64, once
    assert row["nonfinite_fraction"] == 0


def test_a_run_starts_from_the_flow_of_another(tmp_path: Path) -> None:
    command(train, *WELL, f"hydra.run.dir={tmp_path / 'first'}")
    command(
        train, *WELL, f"start={tmp_path / 'first'}", "flow.n_couplings=4", "trainer.max_steps=1",
        "optimizer.lr=1e-12", f"hydra.run.dir={tmp_path / 'second'}",
    )  # fmt: skip
    runs = [tmp_path / name for name in ("first", "second")]
    first, second = (json.loads((run / "metrics.json").read_text()) for run in runs)
    assert second["ess"] == pytest.approx(first["ess"], rel=1e-6)  # the same noise, by seed
    assert OmegaConf.load(runs[1] / "config.yaml").flow.n_couplings == 2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["start=/nowhere"], "Expected start to be the folder of a run, got /nowhere"),
        (["loss=reverse_kl", "proposal=buffer"], "got Buffer. Valid are proposal=model"),
        (["loss=jeffreys", "proposal=ais"], "gives reparametrised points for loss Jeffreys"),
        (["loss=forward_kl", "proposal=dataset"], "gives weights for loss ForwardKL"),
        (["loss=alpha_divergence", "proposal=dataset"], "Valid are proposal=model, hot_model"),
        (["loss=alpha_divergence", "loss.alpha=0"], "Expected alpha > 0 and not 1, got 0"),
        (["loss=alpha_divergence", "loss.alpha=1"], "loss=forward_kl is alpha = 1"),
        (["path=ladder", "path.end=400"], "to end at system.temperature = 300.0 kelvin, got an"),
        (["path=ladder", "path.start=200"], "Expected start >= end = 300.0 kelvin, got 200"),
        (["stages=ta_bg", "stages.polish=null", "stages.anneal.path.end=310"], "end at 310"),
        (["path=constrained", "path.trust_region=0"], "Expected trust_region > 0 nats, got 0"),
        (["path=adaptive", "path.ess=1.5"], "Expected ess in (0, 1), got 1.5"),
        (["proposal=trajectory", "proposal.topology=/no"], "path of the trajectory to be a file"),
        (["trainer.min_samples=0"], "Expected trainer.min_samples >= 1, got 0"),
    ],
)
def test_what_cannot_work_is_refused_before_any_energy(
    overrides: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def forbidden(*args: object) -> None:
        raise AssertionError("an energy was evaluated")

    monkeypatch.setattr(EnergyTarget, "evaluate", forbidden)
    np.savez(tmp_path / "x.npz", x=np.zeros((400, 2)))
    if "proposal=dataset" in overrides:
        overrides = [*overrides, f"proposal.path={tmp_path / 'x.npz'}"]
    if "proposal=trajectory" in overrides:
        overrides = [*overrides, "proposal.path=/no", "loss=l2_plus"]
    with pytest.raises(SystemExit) as exit_:
        command(train, *WELL, *overrides, f"hydra.run.dir={tmp_path}")
    assert exit_.value.code == 1
    assert sentence in capsys.readouterr().err


def test_a_run_that_rests_on_one_point_stops_with_a_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command(
            train, *WELL, "loss=forward_kl", "trainer.min_samples=1.5", "system.scale=1e4",
            f"hydra.run.dir={tmp_path}",
        )  # fmt: skip
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert "Expected an effective number of samples in a batch of at least 1.5" in said
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert state["total_steps"] == 5
