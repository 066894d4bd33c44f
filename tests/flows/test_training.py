"""The loop: it learns, it resumes bit for bit, it stops when told, it refuses what cannot work."""

import json
import math
import os
import signal
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from energies.base import Evaluation
from flows.build import spline_flow
from flows.errors import FlowInputError, NonfiniteError, TrainingError
from flows.evaluation import draw_weighted, weight_report
from flows.flow import Flow
from flows.losses import (
    AlphaDivergence,
    ForwardKL,
    Jeffreys,
    L2Plus,
    LearnedLogZ,
    ReverseKL,
)
from flows.paths import Ladder, Temperature
from flows.proposals import (
    Buffer,
    Model,
    Points,
    Proposal,
)
from flows.training import InterruptedRunError, Stage, Trainer, WarmupCosine
from flows.training.checkpoint import load_checkpoint, save_checkpoint
from flows.training.loggers import JsonLines, Row, read_rows
from flows.types import Samples
from tests.flows.ring import METHODS, SMALL, Ring, fit, of, stage
from tests.rows import Rows


@pytest.mark.parametrize("method", ["reverse_kl", "l2_plus", "log_variance"])
def test_losses_learn_the_ring_to_the_last_percent(method: str, tmp_path: Path) -> None:
    target = Ring()
    flow = fit(tmp_path, [of(method, 500)], target=target, ema_decay=0.98)
    assert target.n_evals == 500 * 256
    report = evaluated(flow, target)
    assert report["n"] == 20_000
    assert report["ess"] > 0.95
    assert abs(report["log_z"] - target.log_z) < 6 * report["log_z_se"] + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_ring(method: str, tmp_path: Path) -> None:
    target = Ring()
    start = evaluated(spline_flow(Ring.periodic, **SMALL), target)
    flow = fit(tmp_path, [of(method, 80)], target=target, ema_decay=0.9)
    report = evaluated(flow, target)
    assert report["ess"] > start["ess"] + 0.15
    assert abs(report["log_z"] - target.log_z) < 6 * report["log_z_se"] + 1e-6


def evaluated(flow: Flow, target: Ring) -> dict[str, float]:
    parts = draw_weighted(
        flow, target, 300.0, 20_000, chunk=3_000, generator=torch.Generator().manual_seed(0)
    )
    return weight_report(Samples.cat(list(parts)))


class StopAfter(Rows):
    """Breaks off at a row: what a power cut does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def log(self, row: Row) -> None:
        super().log(row)
        if row["step"] >= self.step:
            raise ConnectionAbortedError


@pytest.mark.parametrize("stop", [10, 30, 60, 90, 110])
def test_resumed_equals_uninterrupted(stop: int, tmp_path: Path) -> None:
    check_resumed(
        lambda: [stage(ReverseKL(), steps=45, name="hot"), stage(steps=75, name="cool")],
        stop,
        tmp_path,
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_bit_for_bit(method: str, tmp_path: Path) -> None:
    check_resumed(lambda: [of(method, 24)], 20, tmp_path)


def check_resumed(stages: Callable[[], list[Stage]], stop: int, tmp_path: Path) -> None:
    whole_log, first_log, second_log = Rows(), StopAfter(stop), Rows()
    whole = fit(tmp_path / "whole", stages(), logger=whole_log)
    with pytest.raises(ConnectionAbortedError):
        fit(tmp_path / "parts", stages(), logger=first_log)
    parts = fit(tmp_path / "parts", stages(), logger=second_log)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)

    def without_time(rows: list[Row]) -> dict[int, Row]:
        return {r["step"]: {k: v for k, v in r.items() if k != "time_s"} for r in rows}

    assert without_time(first_log.rows) | without_time(second_log.rows) == without_time(
        whole_log.rows
    )


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(tmp_path, [stage()])
    target = Ring()
    again = fit(tmp_path, [stage()], target=target)
    assert target.n_evals == 0
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_temperature_follows_the_path(tmp_path: Path) -> None:
    log = Rows()
    fit(tmp_path, [stage(steps=60)], logger=log)
    # 1/T linear between 600 and 300 K; a row at step k shows the step before it.
    expected = [1 / ((1 - s) / 600 + s / 300) for s in ((k - 1) / 60 for k in range(10, 61, 10))]
    assert [row["temperature"] for row in log.rows] == pytest.approx(expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_with_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(InterruptedRunError, match=r"Stopped after step \d+; the checkpoint is"):
        fit(tmp_path, [stage(steps=100_000)])
    assert load_checkpoint(tmp_path / "last.pt")["total_steps"] > 0
    assert signal.getsignal(number) == before


def test_nonfinite_points_stop_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    target = Ring()
    target.broken = True
    with pytest.raises(
        TrainingError, match=r"Expected at most 50% .* got 100%.* Stopped after step 10"
    ):
        fit(tmp_path, [stage()], target=target)
    assert load_checkpoint(tmp_path / "last.pt")["total_steps"] == 10


class BrokenFor(Ring):
    """No energy is finite from the 3000th evaluation on, for so many."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.until = 3000 + n

    def evaluate(self, x: Tensor) -> Evaluation:
        self.broken = 3000 <= self._n_evals < self.until
        return super().evaluate(x)


def test_storm_rolls_back_and_passes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = Rows()
    fit(tmp_path, [stage()], target=BrokenFor(1500), logger=log)
    first = next(i for i, row in enumerate(log.rows) if row["rollbacks"] == 1)
    assert [row["step"] for row in log.rows] == [*range(10, 21, 10), *range(20, 61, 10)]
    steady = stage().schedule.factor((log.rows[first]["step"] - 1) / 60)
    assert log.rows[first]["lr"] == pytest.approx(3e-3 * steady / 2)
    assert "Going on after step 14, at half the learning rate: roll-back 1 of 3" in caplog.text


def test_storm_that_stays_ends_the_run_after_roll_backs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NonfiniteError, match=r"A lower learning rate .* Stopped after step 20"):
        fit(tmp_path, [stage()], target=BrokenFor(10**9), max_rollbacks=2)
    assert caplog.text.count("at half the learning rate") == 2
    state = load_checkpoint(tmp_path / "last.pt")
    assert (state["total_steps"], state["rollbacks"]) == (20, 2)
    weights = spline_flow(Ring.periodic, **SMALL)
    weights.load_state_dict(state["flow"])
    assert all(bool(torch.isfinite(p).all()) for p in weights.parameters())


@pytest.mark.parametrize(("best", "sign"), [("ess", 1), ("-loss", -1)])
def test_last_and_best_checkpoints_are_kept(best: str, sign: int, tmp_path: Path) -> None:
    """The best has the highest figure of all, among those at the last aim."""
    log = Rows()
    steady = stage(ReverseKL(), path=Temperature(300.0))
    fit(
        tmp_path,
        [steady],
        logger=log,
        log_every=5,
        checkpoint_every=5,
        best=best,
        keep_checkpoints=3,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.pt", "last.pt", *(f"step_{n:09d}.pt" for n in (50, 55, 60)),
    ]  # fmt: skip
    top = max(log.rows, key=lambda row: sign * row[best.removeprefix("-")])
    assert load_checkpoint(tmp_path / "best.pt")["total_steps"] == top["step"]
    with pytest.raises(FlowInputError, match=r"trainer.best to be a figure of the log \(step, "):
        fit(tmp_path / "other", [stage()], best="stage")


def test_best_starts_anew_with_another_aim(tmp_path: Path) -> None:
    """An ESS at 3000 K is no measure for one at 300 K."""
    hot = stage(path=Temperature(3000.0), steps=20, name="hot")
    cold = stage(path=Temperature(30.0), steps=20, name="cold")
    log = Rows()
    fit(tmp_path, [hot, cold], logger=log, log_every=10, checkpoint_every=10)
    assert log.rows[1]["ess"] > log.rows[2]["ess"]
    assert load_checkpoint(tmp_path / "best.pt")["total_steps"] > 20


def flip_a_bit(path: Path) -> None:
    """Change one bit of the largest table in a checkpoint; between tables there is padding."""
    with zipfile.ZipFile(path) as archive:
        table = max(archive.infolist(), key=lambda entry: entry.file_size)
    data = bytearray(path.read_bytes())
    header = data[table.header_offset : table.header_offset + 30]
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    data[table.header_offset + 30 + names + table.file_size // 2] ^= 1
    path.write_bytes(data)


def test_damaged_checkpoints_are_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path / "whole", [stage(steps=20)])
    whole = load_checkpoint(tmp_path / "whole" / "last.pt")
    fit(tmp_path / "cut", [stage(steps=20)])
    for name in ("last.pt", "step_000000014.pt"):
        flip_a_bit(tmp_path / "cut" / name)
    fit(tmp_path / "cut", [stage(steps=20)])
    assert caplog.text.count("got a file that cannot be read (ValueError). The one before") == 2
    again = load_checkpoint(tmp_path / "cut" / "last.pt")
    assert all(torch.equal(whole["flow"][name], again["flow"][name]) for name in whole["flow"])
    for path in (tmp_path / "cut").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FlowInputError, match=r"got none: last.pt, step_0.*14.pt, step_0.*07.pt"):
        fit(tmp_path / "cut", [stage(steps=20)])


def test_checkpoint_of_other_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        fit(tmp_path, [of("fab", 9)], max_time=1e-9)
    with pytest.raises(FlowInputError, match="of the stages configured here, got one of others"):
        fit(tmp_path, [of("ta_bg", 9)])


def test_other_versions_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InterruptedRunError):
        fit(tmp_path, [stage(steps=3)], max_time=1e-9)
    state = load_checkpoint(tmp_path / "last.pt")
    state["versions"] = {**state["versions"], "torch": "1.0"}
    save_checkpoint(tmp_path / "last.pt", state)
    fit(tmp_path, [stage(steps=3)])
    assert "results agree, but not bit for bit" in caplog.text


def test_time_limit_brings_path_and_rate_to_their_end(tmp_path: Path) -> None:
    log = Rows()
    limited = stage(steps=10**9)
    limited.max_time = 1.0
    fit(tmp_path, [limited], logger=log, log_every=1)
    assert log.rows[-1]["temperature"] < 310
    assert log.rows[-1]["lr"] < 3e-3 * 0.1
    assert log.rows[-1]["time_s"] < 3.0


class Cold(Ring):
    """The ring with its energy times a thousand: one point of a batch has all the weight."""

    def evaluate(self, x: Tensor) -> Evaluation:
        e = super().evaluate(x)
        return Evaluation(1000 * e.potential, e.log_jac)


@pytest.mark.parametrize("proposal", [Model(), Buffer(1024)], ids=["batch", "buffer"])
def test_weights_that_rest_on_one_point_end_the_run(proposal: Proposal, tmp_path: Path) -> None:
    cold = stage(ForwardKL(), path=Temperature(3.0), proposal=proposal)
    with pytest.raises(TrainingError, match=r"effective number .* the checkpoint is .*last.pt"):
        fit(tmp_path, [cold], target=Cold())
    assert load_checkpoint(tmp_path / "last.pt")["total_steps"] <= 10
    # A loss that does not weigh its points goes on.
    fit(tmp_path / "l2", [stage(L2Plus(), path=Temperature(3.0), steps=20)], target=Cold())


class Fixed(Proposal):
    can_reparametrise: ClassVar[bool] = False

    def draw(self, *args: object, **kwargs: object) -> Samples:
        raise NotImplementedError


def test_bad_input(tmp_path: Path) -> None:
    good = {
        "name": "a", "path": Temperature(end=300.0), "proposal": Model(), "loss": L2Plus(),
        "optimizer": torch.optim.Adam, "schedule": WarmupCosine(), "steps": 1, "batch_size": 2,
    }  # fmt: skip
    unknown = Points({"x": torch.zeros(9, 2).numpy()})
    known_up_to_scale = Points({"x": torch.zeros(9, 2).numpy()}, temperature=400.0)
    for change, message in [
        ({"steps": 0}, "Expected steps >= 1 in stage 'a', got 0"),
        ({"batch_size": 1}, "Expected batch_size >= 2 in stage 'a', got 1"),
        ({"max_time": 0.0}, "Expected max_time > 0 s in stage 'a'"),
        ({"path": Ladder(300.0, 600.0, rungs=3), "steps": 2}, "Expected steps >= 3, the rungs"),
        ({"loss": ReverseKL(), "proposal": Fixed()}, "Expected a proposal that gives reparam"),
        ({"loss": Jeffreys(), "proposal": Buffer()}, "Buffer. Valid are proposal=model with any"),
        ({"loss": ForwardKL(), "proposal": unknown}, "that gives weights for loss ForwardKL"),
        ({"loss": AlphaDivergence(), "proposal": unknown}, "Valid are proposal=model, hot_model"),
        ({"loss": L2Plus(centre=LearnedLogZ()), "proposal": known_up_to_scale}, "with their sc"),
    ]:
        with pytest.raises(FlowInputError, match=message):
            Stage(**{**good, **change})
    for settings, message in [
        ({"log_every": 0}, "trainer.log_every >= 1"),
        ({"clip_norm": 0.0}, "trainer.clip_norm > 0"),
        ({"ema_decay": 1.0}, "trainer.ema_decay in"),
        ({"max_nonfinite": 0.0}, "trainer.max_nonfinite in"),
        ({"min_samples": 0.5}, "trainer.min_samples >= 1, got 0.5"),
        ({"keep_checkpoints": 0}, "trainer.keep_checkpoints >= 1, got 0"),
        ({"max_rollbacks": -1}, "trainer.max_rollbacks >= 0, got -1"),
        ({"max_time": 0.0}, "trainer.max_time > 0 s, got 0"),
    ]:
        with pytest.raises(FlowInputError, match=message):
            Trainer(**settings)
    with pytest.raises(FlowInputError, match="at least one stage"):
        fit(tmp_path, [])
    with pytest.raises(FlowInputError, match=r"warmup in \[0, 1\)"):
        WarmupCosine(warmup=1.0)


def test_checkpoint_of_another_flow_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, [stage(steps=5)])
    flow = spline_flow([True, False, False], **SMALL)
    with pytest.raises(FlowInputError, match="flow in 3 dimensions, got one in 2"):
        Trainer(progress_bar=False).fit(
            flow, Ring(), [stage()], checkpoint=tmp_path / "last.pt", logger=Rows(),
            generator=torch.Generator(),
        )  # fmt: skip
    other = spline_flow(Ring.periodic, **{**SMALL, "n_couplings": 3})
    with pytest.raises(FlowInputError, match="with other layers"):
        Trainer(progress_bar=False).fit(
            other, Ring(), [stage()], checkpoint=tmp_path / "last.pt", logger=Rows(),
            generator=torch.Generator(),
        )  # fmt: skip


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(FlowInputError, match=r"last.pt, got no such file"):
        load_checkpoint(path)
    save_checkpoint(path, {"a": torch.ones(100)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FlowInputError, match="cannot be read"):
        load_checkpoint(path)
    assert list(tmp_path.iterdir()) == [path]


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("hostile-was-here",)


def test_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Hostile()}, tmp_path / "last.pt")
    with pytest.raises(FlowInputError, match="cannot be read"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "hostile-was-here").exists()


def test_json_lines_survive_being_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = JsonLines(path)
    logger.log({"step": 1, "loss": 0.5})
    logger.log({"step": 2, "loss": math.nan})
    logger.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
    ]
    path.write_text(path.read_text()[:-5])
    assert read_rows(path) == [{"step": 1, "loss": 0.5}]
