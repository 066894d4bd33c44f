"""Sweeps: what is done stays, what is missing or failed is run, by whichever launcher."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from flows.files import is_locked
from runs import jobs
from runs.cli import CONFIGS
from runs.resolvers import job_folder
from runs.status import LOCK, Status, read_status, write_status
from tests.runs import small_job
from tests.runs.in_process import command
from tests.runs.small_job import BAD_INPUT, DIES, DONE, FAILS, WAITS
from tests.runs.stored import composed

ROOT = Path(__file__).resolve().parents[2]


def sweep(folder: Path, *overrides: str) -> int:
    """Start a sweep of small jobs; returns the exit status."""
    try:
        command(small_job, "-m", f"hydra.sweep.dir={folder}", *overrides)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def states(folder: Path) -> dict[str, str]:
    """State of each job by the value of its last override."""
    return {
        str(file.parent.relative_to(folder)): json.loads(file.read_text())["state"]
        for file in sorted(folder.rglob("status.json"))
    }


def starts(job: Path) -> list[str]:
    return (job / "starts").read_text().splitlines()


def test_a_failing_job_ends_no_other_and_is_alone_in_starting_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = [f"trainer.max_steps={DONE},{FAILS},6"]
    assert sweep(tmp_path, *axes) == 1
    failed = tmp_path / f"trainer.max_steps-{FAILS}"
    said = capsys.readouterr().err
    assert f"{failed}: Expected a loss that is finite, got nan." in said
    assert f"python -m runs.summary {tmp_path}" in said
    assert "Traceback" not in said
    assert states(tmp_path) == {
        f"trainer.max_steps-{DONE}": "done",
        f"trainer.max_steps-{FAILS}": "failed",
        "trainer.max_steps-6": "done",
    }
    (failed / "checkpoints").mkdir()  # of the attempt that failed
    (failed / "checkpoints" / "last.pt").touch()
    assert sweep(tmp_path, *axes, "seed=0") == 1  # another job each: seed-0/trainer...
    assert sweep(tmp_path, *axes) == 1
    assert len(starts(tmp_path / f"trainer.max_steps-{DONE}")) == 1
    assert len(starts(failed)) == 1
    assert not (failed / "checkpoints").exists()
    assert "failed before, starting anew" in (failed / "cli.log").read_text()


def test_a_killed_job_goes_on_and_the_sweep_then_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = [f"trainer.max_steps={DIES}", "seed=0,1"]
    assert sweep(tmp_path, *axes) == 1
    assert "ended without a word" in capsys.readouterr().err
    assert sweep(tmp_path, *axes) == 0
    assert set(states(tmp_path).values()) == {"done"}
    job = tmp_path / "seed-0" / f"trainer.max_steps-{DIES}"
    assert len(starts(job)) == 2


def test_a_job_that_ends_before_it_can_say_why_is_failed(tmp_path: Path) -> None:
    assert sweep(tmp_path, f"trainer.max_steps={BAD_INPUT}") == 1
    status = read_status(tmp_path / f"trainer.max_steps-{BAD_INPUT}")
    assert status.state == "failed"
    assert status.exit_status == 1
    assert "exit status 1 before it trained" in status.error


def test_a_signal_reaches_the_job_once_and_ends_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = [f"trainer.max_steps={WAITS}", "seed=0,1"]
    first, second = (tmp_path / f"seed-{k}" / f"trainer.max_steps-{WAITS}" for k in (0, 1))

    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while not (first / "waiting").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # xdist ignores it
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        assert sweep(tmp_path, *axes) == 130
        thread.join()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert read_status(first).error == "Stopped by ['SIGINT']."
    assert read_status(second) == Status("queued", updated=read_status(second).updated)
    assert not (second / "starts").exists()
    (second / "again").touch()  # that one shall not wait
    assert sweep(tmp_path, *axes) == 0
    assert len(starts(first)) == 2
    assert len(starts(second)) == 1


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_by_name(
    launcher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = [f"hydra/launcher={launcher}", f"trainer.max_steps={DONE},{FAILS}"]
    assert sweep(tmp_path, *axes) == 1
    assert "Expected a loss that is finite, got nan." in capsys.readouterr().err
    assert list(states(tmp_path).values()) == ["failed", "done"]
    assert sweep(tmp_path, *axes[:1], f"trainer.max_steps={DONE}") == 0
    assert len(starts(tmp_path / f"trainer.max_steps-{DONE}")) == 1


def test_a_job_is_not_done_by_another_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"trainer.max_steps={DONE}", "system=double_well"]
    job = tmp_path / "system-double_well" / f"trainer.max_steps-{DONE}"
    config = composed(*overrides, "logger=wandb", "trainer.max_time=60")
    job.mkdir(parents=True)
    plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    OmegaConf.save(plain, job / "config.yaml")
    write_status(job, Status("done", step=DONE))
    assert sweep(tmp_path, *overrides) == 0  # neither makes another job
    plain.trainer.clip_norm = 3.0
    OmegaConf.save(plain, job / "config.yaml")
    assert sweep(tmp_path, *overrides) == 1
    said = capsys.readouterr().err
    assert "configured as when it was started, got another trainer.clip_norm." in said
    assert read_status(job).state == "done"


def printed(capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    command(jobs, *overrides)
    return capsys.readouterr().out.splitlines()


def test_lines_for_a_job_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f'hydra.sweep.dir="{tmp_path}/it\'s here"'
    lines = printed(capsys, f"trainer.max_steps={DONE},6", "flow.hidden=[8,8]", where)
    assert len(lines) == 2
    assert set(states(tmp_path).values()) == {"queued"}
    small = lines[0].replace("runs.train", "tests.runs.small_job")
    folder = job_folder(["flow.hidden=[8,8]", f"trainer.max_steps={DONE}"])
    asked = [f"trainer.max_steps={DONE}", "flow.hidden=[8,8]", "hydra.mode=RUN"]
    assert shlex.split(small)[3:6] == asked
    assert shlex.split(small)[-1] == f'hydra.run.dir="{tmp_path}/it\'s here/{folder}"'
    write_status(tmp_path / "it's here" / folder, Status("done"))
    again = printed(capsys, f"trainer.max_steps={DONE},6", "flow.hidden=[8,8]", where)
    assert again == lines[1:]


@pytest.mark.parametrize(
    ("name", "n_jobs"), [("losses", 6), ("learning_rate", 4), ("annealing", 6)]
)
def test_sweeps_of_the_package_compose(
    name: str, n_jobs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = ["seed=1", *(["system=many_well"] if name == "losses" else [])]
    lines = printed(capsys, f"sweep={name}", *fewer, f"hydra.sweep.dir={tmp_path}")
    assert len(lines) == len(set(lines)) == n_jobs
    assert all("seed=1" in line and f"sweep={name}" in line for line in lines)


def test_sweeps_need_no_flag_and_have_a_folder_of_their_name() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for file in (CONFIGS / "sweep").glob("*.yaml"):
            config = compose("train", [f"sweep={file.stem}"], return_hydra_config=True)
            assert config.hydra.mode.name == "MULTIRUN"
            assert config.hydra.sweep.dir == f"runs/out/sweep/{file.stem}"


def test_the_folder_of_a_job() -> None:
    assert job_folder(["seed=0", "loss=l2_plus"]) == "loss-l2_plus/seed-0"
    assert job_folder(["loss=l2_plus", "sweep=losses", "seed=0"]) == "loss-l2_plus/seed-0"
    assert job_folder(["seed=0", "logger.mode=online", "trainer.max_time=3600"]) == "seed-0"
    assert job_folder([]) == "job"
    odd = [job_folder([f"flow.hidden={value}"]) for value in ("[8,8]", "[8_8]", "8_8", "../..")]
    assert len(set(odd)) == 4
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-") for name in odd)
    assert ".." not in "/".join(odd)
    assert len(job_folder(["name=" + "x" * 500])) < 120


WANDB_SWEEP = ROOT / "docs" / "sweeps" / "wandb_losses.yaml"


def test_what_a_wandb_agent_runs_is_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    asked = yaml.safe_load(WANDB_SWEEP.read_text())
    assert set(asked) <= {
        "program",
        "project",
        "name",
        "method",
        "metric",
        "parameters",
        "command",
    }
    assert asked["method"] in ("grid", "random", "bayes")
    assert all(set(p) == {"values"} and p["values"] for p in asked["parameters"].values())
    chosen = {name: {"value": p["values"][0]} for name, p in asked["parameters"].items()}
    macros = create_sweep_command_args({"args": chosen})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"]}
    words: list[str] = []
    for word in create_sweep_command(list(asked["command"])):
        is_macro = word.startswith("${") and word.endswith("}")
        words += macros[word[2:-1]] if is_macro else [word]
    assert words[:4] == ["/usr/bin/env", "python", "-m", "runs.train"]
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", words[4:], return_hydra_config=True)
    assert config.seed == chosen["seed"]["value"]
    assert config.hydra.run.dir == "runs/out/wandb/abc"
    assert config.logger.mode == "online"
    # What is optimised is what the logger writes into the summary.
    assert asked["metric"]["name"] == "evaluation/reverse_kl"


def test_the_array_script_runs_the_line_of_its_index(tmp_path: Path) -> None:
    lines = tmp_path / "jobs.txt"
    lines.write_text("echo first\necho 'second one'\n")
    done = subprocess.run(
        ["bash", str(ROOT / "docs" / "sweeps" / "array.sh"), str(lines)],
        capture_output=True, text=True, env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"},
    )  # fmt: skip
    assert done.stdout == "second one\n"
    assert done.returncode == 0


REAL = [
    "system=double_well", "loss=reverse_kl,l2_plus", "seed=0,1", "flow.n_couplings=2",
    "flow.hidden=[16]", "trainer.compile=false", "trainer.max_steps=400", "trainer.log_every=20",
    "trainer.checkpoint_every=20", "trainer.batch_size=64", "trainer.min_samples=1",
    "evaluation.n=500", "evaluation.n_saved=500",
]  # fmt: skip


def train_sweep(folder: Path, *overrides: str) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-m", "runs.train", "-m", *REAL]
    return [*command, f"hydra.sweep.dir={folder}", *overrides]


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_ended_and_started_again_is_one_that_was_not(
    launcher: str, number: signal.Signals, tmp_path: Path
) -> None:
    """The same samples, bit for bit, of jobs that were done, cut off, or not yet begun."""
    parts = tmp_path / "parts"
    cut = [f"hydra/launcher={launcher}"]
    first = subprocess.Popen(train_sweep(parts, *cut), cwd=ROOT, start_new_session=True)
    wait(lambda: any(f.read_text().count("\n") > 3 for f in parts.rglob("metrics.jsonl")))
    os.killpg(first.pid, number)
    assert first.wait(timeout=600) != 0
    wait(lambda: not any(is_locked(file) for file in parts.rglob(LOCK)))
    assert {"queued"} <= set(states(parts).values()) <= {"queued", "done", "running"}
    subprocess.run(train_sweep(parts, *cut), cwd=ROOT, check=True)
    assert list(states(parts).values()) == ["done"] * 4

    whole = tmp_path / "whole"
    subprocess.run(train_sweep(whole, "hydra/launcher=joblib"), cwd=ROOT, check=True)
    for file in sorted(whole.rglob("samples.npz")):
        again = np.load(parts / file.relative_to(whole))
        once = np.load(file)
        assert all(np.array_equal(once[key], again[key]) for key in once.files)
    assert len(list(whole.rglob("samples.npz"))) == 4
