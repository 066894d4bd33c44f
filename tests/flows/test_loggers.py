"""Loggers: the record is whole after any interruption; mirrors are read back, and may fail."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.training.loggers import JsonLines, Tee
from flows.training.mirrors import Guarded, Mirror, Outcome, Row, TensorBoard, Wandb
from tests.rows import Rows
from tests.wandb_files import read_sessions


def write(path: Path, rows: Sequence[Row], *, after: int = 0) -> None:
    logger = JsonLines(path)
    logger.rewind(after)
    for row in rows:
        logger.log(row)
    logger.close()


def row(step: int, **figures: float) -> Row:
    return {"step": step, **figures}


def outcome(folder: Path, step: int) -> Outcome:
    """A run of ESS 0.5 with one white picture and one checkpoint."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    checkpoint = folder / "checkpoints" / "last.pt"
    checkpoint.write_bytes(b"weights")
    Image.fromarray(np.full((4, 6, 3), 255, np.uint8)).save(folder / "energy.png")
    pictures = {"energy": folder / "energy.png"}
    return Outcome(step, {"ess": 0.5, "populations.a": 0.25}, pictures, [checkpoint])


def test_a_run_that_goes_on_leaves_the_file_of_one_that_was_not_interrupted(
    tmp_path: Path,
) -> None:
    rows = [row(step, loss=0.5 / step) for step in range(1, 7)]
    write(tmp_path / "whole", rows)
    write(tmp_path / "parts", rows[:4])
    with (tmp_path / "parts").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    write(tmp_path / "parts", rows[2:], after=2)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


class Broken(Mirror):
    """Fails at one of its calls, and counts all of them."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, []
        self._called("start")

    def log(self, row: Row) -> None:
        self._called("log")

    def rewind(self, step: int) -> None:
        self._called("rewind")

    def conclude(self, outcome: Outcome) -> None:
        self._called("conclude")

    def close(self) -> None:
        self._called("close")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise OSError("no space\nleft")


@pytest.mark.parametrize(
    ("at", "sentence"),
    [
        ("start", "A logger failed to start"),
        ("log", "Broken failed to take a row"),
        ("rewind", "Broken failed to forget rows"),
        ("conclude", "Broken failed to take the evaluation"),
        ("close", "Broken failed to close"),
    ],
)
def test_a_failing_mirror_warns_once_and_the_record_goes_on(
    at: str, sentence: str, tmp_path: Path
) -> None:
    record = Rows()
    made: list[Broken] = []

    def start() -> Broken:
        made.append(Broken.__new__(Broken))
        made[0].__init__(at)
        return made[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = Tee([record], [start])
        for step in (1, 2, 3):
            logger.log(row(step))
        logger.rewind(2)
        logger.conclude(Outcome(3, {}, {}, []))
        logger.close()
    assert [str(w.message) for w in caught] == [
        f"{sentence} and is left out from here on; metrics.jsonl has all of it, the run goes on: "
        "no space left"
    ]
    assert [r["step"] for r in record.rows] == [1, 2, 3]
    assert made[0].calls.count(at) == 1
    assert made[0].calls[-1] == at  # nothing is asked of it afterwards


def test_a_failing_record_is_no_mirror(tmp_path: Path) -> None:
    logger = Tee([JsonLines(tmp_path / "metrics.jsonl")])
    logger.close()
    with pytest.raises(ValueError, match="closed file"):
        logger.log(row(1))


def test_wandb_offline_is_read_back_and_a_resumed_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    config = {"seed": 3, "loss": {"drop": 0.1}}
    first = Wandb(tmp_path, config, project="test")
    first.log({"step": 5, "stage": "hot", "loss": 0.5})
    first.log({"step": 10, "stage": "hot", "loss": math.inf})
    first.close()  # interrupted: never concluded
    second = Wandb(tmp_path, config, project="test")
    second.log({"step": 10, "stage": "hot", "loss": 0.25, "ess": 0.125})
    second.conclude(outcome(tmp_path, 10))
    second.close()

    before, after = read_sessions(tmp_path)
    assert before.run_id == after.run_id == (tmp_path / "wandb" / "run_id").read_text().strip()
    assert before.config["seed"] == after.config["seed"] == 3
    assert before.config["loss"] == {"drop": 0.1}
    assert [(r["_step"], r["loss"]) for r in before.history] == [(5, 0.5), (10, math.inf)]
    assert before.exit_code == 1
    assert after.history[-1]["_step"] == 10
    assert after.history[-1]["loss"] == 0.25
    assert after.history[-1]["figures/energy._type"] == "image-file"
    assert after.summary["ess"] == 0.125  # of the last row
    assert after.summary["evaluation/ess"] == 0.5
    assert after.summary["evaluation/populations.a"] == 0.25
    assert after.artifacts == [{"checkpoints/last.pt"}]
    assert after.exit_code == 0


def test_the_id_of_a_wandb_agent_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    Wandb(tmp_path, {}).close()
    monkeypatch.delenv("WANDB_RUN_ID")
    Wandb(tmp_path, {}).close()
    assert [session.run_id for session in read_sessions(tmp_path)] == ["agents1", "agents1"]


def test_wandb_that_cannot_start_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("a file where wandb wants its folder")
    with pytest.warns(UserWarning, match="A logger failed to start and is left out"):
        mirror = Guarded(lambda: Wandb(tmp_path, {}))
    mirror.log(row(1))
    mirror.close()


def test_tensorboard_is_read_back_and_a_resumed_run_replaces_what_it_repeats(
    tmp_path: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path, {"seed": 3})
    for step in (5, 10, 15):
        first.log({"step": step, "stage": "hot", "loss": 1.0 / step})
    first.close()
    second = TensorBoard(tmp_path, {"seed": 3})
    second.rewind(5)
    second.log({"step": 10, "stage": "hot", "loss": 0.75})
    second.conclude(outcome(tmp_path, 10))
    second.close()

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (5, pytest.approx(0.2)), (10, pytest.approx(0.75)),
    ]  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("evaluation/ess")] == [(10, 0.5)]
    (picture,) = events.Images("figures/energy")
    assert (picture.width, picture.height) == (6, 4)
    assert b'"seed": 3' in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert "stage" not in events.Tags()["scalars"]
