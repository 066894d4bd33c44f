"""What can befall a run, and what is left of it."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.files import locked, replacing
from flows.progress import Progress
from flows.training import loggers, session
from flows.training.checkpoint import load_checkpoint
from runs import evaluate, sample, train
from runs.cli import ending
from runs.status import Status, read_status, write_status
from tests.killing import fork, kill_after, wait
from tests.runs.in_process import command
from tests.runs.test_resume import SMALL

LOG = "cli.log"
"""What Hydra calls the log of a task that is started in `runs.cli`."""
ROOT = Path(__file__).resolve().parents[2]
Ended = Callable[..., str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "done"
    command(train, *SMALL, "trainer.max_steps=20", f"hydra.run.dir={folder}")
    return folder


@pytest.fixture
def ends(capsys: pytest.CaptureFixture[str]) -> Ended:
    def run(status: int, *overrides: str) -> str:
        """What training says when it ends with an exit status."""
        with pytest.raises(SystemExit) as exit_:
            command(train, *SMALL, *overrides)
        said = capsys.readouterr().err
        assert exit_.value.code == status, said
        assert "Traceback" not in said
        return said.strip().splitlines()[-1]

    return run


def status_of(folder: Path) -> Status:
    status = read_status(folder)
    assert status is not None
    return status


def test_time_limit(ends: Ended, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = ends(75, "trainer.max_steps=30", "trainer.max_time=1e-6", f"hydra.run.dir={folder}")
    assert said.startswith("Stopped after step 1; the checkpoint is")
    assert said.endswith("after trainer.max_time = 1e-06 s.")
    status = status_of(folder)
    assert (status.state, status.step, status.n_steps) == ("queued", 1, 30)
    assert (status.exit_status, status.error) == (75, said)
    assert status.revision == json.loads((folder / "versions.json").read_text())["git_revision"]
    command(train, *SMALL, "trainer.max_steps=30", f"hydra.run.dir={folder}")
    assert (status_of(folder).state, status_of(folder).step) == ("done", 30)


def await_text(path: Path, text: str) -> None:
    """Wait until a file has a text in it."""
    deadline = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(number: signal.Signals, tmp_path: Path) -> None:
    pid = fork(lambda: command(
        train, *SMALL, "trainer.max_steps=100000", f"hydra.run.dir={tmp_path}"
    ))  # fmt: skip
    await_text(tmp_path / "metrics.jsonl", "\n")
    os.kill(pid, number)
    assert wait(pid) == 128 + number
    status = status_of(tmp_path)
    assert (status.state, status.exit_status) == ("queued", 128 + number)
    assert f"asked by {number.name}" in str(status.error)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["total_steps"] == status.step


def test_terminated_while_it_evaluates(tmp_path: Path) -> None:
    """Between training and the end SIGTERM still unwinds: a last word, and the lock is free."""
    pid = fork(lambda: command(
        train, *SMALL, "trainer.max_steps=2", "evaluation.n=1e9", f"hydra.run.dir={tmp_path}"
    ))  # fmt: skip
    await_text(tmp_path / LOG, "trained in")
    os.kill(pid, signal.SIGTERM)
    assert wait(pid) == 143
    assert status_of(tmp_path).state == "queued"
    with locked(tmp_path / ".lock"):
        pass


def test_second_run_in_a_folder_is_refused(done: Path, ends: Ended, tmp_path: Path) -> None:
    pid = fork(lambda: command(
        train, *SMALL, "trainer.max_steps=100000", f"hydra.run.dir={tmp_path}"
    ))  # fmt: skip
    await_text(tmp_path / "metrics.jsonl", "\n")
    said = ends(1, "trainer.max_steps=5", f"hydra.run.dir={tmp_path}")
    assert f"got {tmp_path}, in which another process is at work" in said
    assert status_of(tmp_path).state == "running"
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) == 137
    status = status_of(tmp_path)
    assert status.state == "failed"
    assert "ended without a word" in str(status.error)
    said = ends(1, "trainer.max_steps=5", "resume=null", f"hydra.run.dir={tmp_path}")
    assert "Expected hydra.run.dir without a run for resume=null" in said


def test_missing_gpu(ends: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = ends(1, "device=cuda", f"hydra.run.dir={tmp_path}")
    assert said == "Expected a GPU for device=cuda, got none; device=auto takes the CPU."
    status = status_of(tmp_path)
    assert (status.state, status.error, status.exit_status) == ("failed", said, 1)


def test_out_of_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def starved() -> None:
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + 2**28, own + 2**28))
        command(train, *SMALL[:-5], "trainer.batch_size=100000000", f"hydra.run.dir={tmp_path}")

    assert wait(fork(starved)) == 71
    said = capfd.readouterr().err
    assert "Expected memory for what was asked, got: " in said
    assert "Smaller batches need less: trainer.batch_size" in said
    assert "Traceback" not in said
    assert status_of(tmp_path).state == "failed"
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["total_steps"] == 0


def test_little_memory_is_enough_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runs.train.free_memory", lambda device: 2**20)
    command(
        train, *SMALL, "trainer.batch_size=4096", "trainer.max_steps=3",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert "at a time: 4096 together would take" in (tmp_path / LOG).read_text()
    assert status_of(tmp_path).state == "done"


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Lets the system refuse files beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk(
    ends: Ended, tmp_path: Path, small_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(100))
    state_dict = session.Session.state_dict

    def fills_up(self: session.Session) -> object:
        if next(steps) == 2:  # the checkpoints of steps 0 and 10 found room
            small_disk(4000)
        return state_dict(self)

    monkeypatch.setattr(session.Session, "state_dict", fills_up)
    said = ends(74, "trainer.max_steps=50", f"hydra.run.dir={tmp_path}")
    small_disk(resource.RLIM_INFINITY)
    assert said.startswith("Expected files to be read and written, got: [Errno 27] File too large")
    assert "while the checkpoint after step 20 was written; the one before it is whole" in said
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["total_steps"] == 10
    assert not list(tmp_path.rglob(".*partial*"))
    status = status_of(tmp_path)
    assert (status.state, status.exit_status, status.error) == ("failed", 74, said)
    command(train, *SMALL, "trainer.max_steps=50", f"hydra.run.dir={tmp_path}")
    assert status_of(tmp_path).state == "done"


def test_full_disk_under_the_log(
    ends: Ended, tmp_path: Path, small_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """metrics.jsonl is the record: without room for it a run does not go on in silence."""
    log = loggers.JsonLines.log

    def fills_up(self: loggers.JsonLines, row: loggers.Row) -> None:
        small_disk(10)
        log(self, row)

    monkeypatch.setattr(loggers.JsonLines, "log", fills_up)
    assert "got: [Errno 27] File too large" in ends(74, f"hydra.run.dir={tmp_path}")
    small_disk(resource.RLIM_INFINITY)
    assert status_of(tmp_path).state == "failed"
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["total_steps"] == 0


def as_nobody(task: Callable[[], object]) -> int:
    """Return the exit status of `task` in a process without root's rights."""

    def run() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        task()

    return wait(fork(run))


@pytest.mark.parametrize("inside", [True, False], ids=["folder", "parent"])
def test_read_only_folder(inside: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        if os.getuid() == 0:
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o555)
    folder = tmp_path / "run" if inside else tmp_path / "run" / "new"
    status = as_nobody(lambda: command(train, *SMALL, f"hydra.run.dir={folder}"))
    said = capfd.readouterr().err
    assert (status, "Traceback" in said) == (74, False), said
    assert "Expected files to be read and written, got: [Errno 13] Permission denied" in said


def test_nonfinite_storm(ends: Ended, tmp_path: Path) -> None:
    said = ends(
        70, "optimizer.lr=1e30", "trainer.clip_norm=1e30", "trainer.max_steps=200",
        "trainer.max_rollbacks=1", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert "A lower learning rate or a hotter start may help. Stopped after step" in said
    assert (status_of(tmp_path).state, status_of(tmp_path).exit_status) == ("nan", 70)
    log = (tmp_path / LOG).read_text()
    assert log.count("at half the learning rate: roll-back 1 of 1") == 1


def test_clock_that_goes_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(2_000_000_000, 0, -10_000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    command(
        train, *SMALL, "trainer.max_steps=20", "trainer.max_time=600", f"hydra.run.dir={tmp_path}"
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    times = [row["time_s"] for row in rows]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 600
    assert status_of(tmp_path).state == "done"


def test_no_terminal_and_stdin_closed(tmp_path: Path) -> None:
    """As a scheduler starts it; progress is lines, and nothing asks for input."""
    words = [sys.executable, "-W", "ignore", "-m", "runs.train", *SMALL, "trainer.max_steps=20",
             f"hydra.run.dir={tmp_path}"]  # fmt: skip
    code = "from flows import progress; progress.EVERY = 0.0; from runs.train import main; main()"
    words[3:5] = ["-c", code]
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *words],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    assert "train: 15 of 20 steps; train 300 K, loss" in ran.stdout
    assert "evaluate: 200 of 200 samples" in ran.stdout
    assert "\r" not in ran.stdout + ran.stderr


def test_progress_is_lines_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(np.arange(0.0, 1000.0, 10.0))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    with caplog.at_level(logging.INFO), Progress(6, unit="step", name="train") as progress:
        for i in range(1, 7):
            progress.reach(i)
    assert [r.getMessage() for r in caplog.records] == [
        "train: 3 of 6 steps", "train: 6 of 6 steps",
    ]  # fmt: skip


@pytest.mark.parametrize(("module", "file"), [(evaluate, "metrics.json"), (sample, "sample.json")])
def test_killed_in_evaluation_and_sampling(module: object, file: str, done: Path) -> None:
    """Whatever is under its name is whole; the same command again ends well."""
    out = done if module is evaluate else done / "sampled"
    before = (done / "metrics.json").read_text()
    overrides = [f"run={done}", "n=400", *(SMALL[-3:] if module is evaluate else [])]
    for seconds in (0.2, 0.7):
        pid = fork(lambda: command(module, *overrides))  # type: ignore[arg-type]
        kill_after(pid, seconds)
        wait(pid)
        for found in out.rglob("*.npz"):
            with np.load(found) as arrays:
                assert all(np.isfinite(arrays[name]).any() for name in arrays)
        if (out / file).exists():
            json.loads((out / file).read_text())
    command(module, *overrides)  # type: ignore[arg-type]
    assert json.loads((out / file).read_text())["n"] == 400
    (done / "metrics.json").write_text(before)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest checkpoint and the log are cut: the one before is taken, and named."""
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        command(
            train,
            *SMALL,
            "trainer.max_steps=40",
            "trainer.best=nothing",
            f"hydra.run.dir={folder}",
        )
    command(train, *SMALL, "trainer.max_steps=20", f"hydra.run.dir={folder}")
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "best.pt", "last.pt", "step_000000010.pt", "step_000000020.pt",
    ]  # fmt: skip
    cut(folder / "checkpoints" / "last.pt")
    cut(folder / "checkpoints" / "step_000000020.pt")
    cut(folder / "metrics.jsonl")
    cut(folder / "samples.npz")
    command(train, *SMALL, "trainer.max_steps=40", f"hydra.run.dir={folder}")
    text = (folder / LOG).read_text()
    for name in ("last.pt", "step_000000020.pt"):
        assert f"checkpoints/{name}, got a file that cannot be read (BadZipFile). The one" in text
    assert "going on after step 10" in text
    assert status_of(folder).step == 40
    with np.load(folder / "samples.npz") as arrays:
        assert len(arrays["x"]) == 50


def test_leftovers_of_the_killed_go(tmp_path: Path) -> None:
    old, young, held = (tmp_path / f".{name}.partial.json" for name in ("old", "young", "held"))
    for path in (old, young, held):
        path.touch()
    for path in (old, held):
        os.utime(path, (0, 0))
    with locked(held), replacing(tmp_path / "a.json") as mine:
        mine.write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {young.name, held.name, "a.json"}


def test_status_of_folders(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    write_status(tmp_path, Status("queued", n_steps=7))
    assert status_of(tmp_path).n_steps == 7
    write_status(tmp_path, Status("running", step=3))
    with locked(tmp_path / ".lock"):
        assert status_of(tmp_path).state == "running"
    assert (status_of(tmp_path).state, status_of(tmp_path).step) == ("failed", 3)
    (tmp_path / "status.json").write_text('{"state": "do')
    assert "Expected whole JSON" in str(status_of(tmp_path).error)


def test_what_only_a_programmer_understands() -> None:
    assert ending(ZeroDivisionError("x"), "train") is None
    assert ending(RuntimeError("x"), "train") is None
