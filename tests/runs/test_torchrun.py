"""torchrun on this machine: one run folder, other numbers of processes, deaths and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flows.training.checkpoint import load_checkpoint
from runs import train
from runs.cli import CONFIGS
from tests.runs.in_process import command
from tests.runs.test_methods import WELL

SETTINGS = [*WELL, "trainer.checkpoint_every=5", "device=cpu"]
CMT = ["stages=cmt", "stages.train.proposal.size=1000", "stages.train.path.rungs=2"]


def launched(folder: Path, *overrides: str, n: int = 2) -> "subprocess.Popen[str]":
    """Start a run of n processes from an empty folder of its own."""
    folder.mkdir(exist_ok=True)
    root = str(CONFIGS.parent)
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={n}", "-m", "runs.train", *SETTINGS, *overrides,
            f"hydra.run.dir={folder / 'run'}",
        ],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, str(folder)])},
    )  # fmt: skip


def steps(folder: Path) -> list[int]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_two_processes_leave_one_run_that_one_goes_on_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    process = launched(tmp_path, *CMT, "trainer.max_steps=20")
    said, complained = process.communicate(timeout=500)
    assert process.returncode == 0, said + complained
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert steps(tmp_path) == [5, 10, 15, 20]
    run = tmp_path / "run"
    assert json.loads((run / "metrics.json").read_text())["n"] == 400
    with np.load(run / "samples.npz") as samples:
        assert len(np.unique(samples["x"], axis=0)) == 100
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert (said + complained).count("trained in") == 1
    last = run / "checkpoints" / "last.pt"
    assert len(load_checkpoint(last)["ranks"]) == 2
    for path in (last, last.with_name("step_000000020.pt")):
        path.unlink()
    command(train, *SETTINGS, *CMT, "trainer.max_steps=20", f"hydra.run.dir={run}")
    assert "going on after step 15" in capsys.readouterr().out
    assert steps(tmp_path) == [5, 10, 15, 20]
    assert len(load_checkpoint(last)["ranks"]) == 1


MORTAL = '''
import os

from flows import parallel
from flows.losses import L2Plus


class Mortal(L2Plus):
    """Ends its process, as a machine that fails would."""

    n = 0

    def __call__(self, flow, samples):
        self.n += 1
        if self.n == 8 and parallel.rank() == 1:
            os._exit(9)
        return super().__call__(flow, samples)
'''


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "mortal.py").write_text(MORTAL)
    process = launched(
        tmp_path, "~loss", "+loss._target_=mortal.Mortal", "trainer.max_steps=1000",
    )  # fmt: skip
    _, complained = process.communicate(timeout=500)
    assert process.returncode != 0
    sentence = "Expected all 2 processes to go on, got no answer from another one"
    assert complained.count(sentence) == 1
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["total_steps"] == 5
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert sentence in status["error"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_all_with_a_checkpoint(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = launched(tmp_path, *CMT, "trainer.max_steps=100000")
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.5)
    process.send_signal(number)
    _, complained = process.communicate(timeout=500)
    assert process.returncode != 0
    assert f"asked by {number.name}" in complained
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state["total_steps"] >= steps(tmp_path)[-1] > 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "queued"
