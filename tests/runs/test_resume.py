"""A run that was killed goes on as if nothing had been: every bit of it, whenever it happens."""

import json
import math
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from energies.base import Evaluation
from flows.paths import Temperature
from flows.training import InterruptedRunError, Stage
from flows.training.checkpoint import load_checkpoint
from flows.training.loggers import JsonLines
from runs import train
from tests.flows.ring import METHODS, Ring, fit, of, stage
from tests.killing import killed_often
from tests.runs.in_process import command

TIMES = ("time_s", "stage_seconds", "total_seconds")

SMALL = [
    "system=double_well", "flow.n_couplings=2", "flow.hidden=[16]", "flow.n_bins=4",
    "flow.n_circle_couplings=1", "trainer.compile=false", "trainer.log_every=5",
    "trainer.checkpoint_every=10", "trainer.batch_size=64", "trainer.min_samples=1",
    "evaluation.n=200", "evaluation.chunk=200", "evaluation.n_saved=50", "evaluation.n_frames=10",
]  # fmt: skip


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Return where two states differ in any bit, but for what the clock says."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        pairs = [(f"{where}.{key}", a[key], b[key]) for key in a if key not in TIMES]
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = [(f"{where}.{i}", *pair) for i, pair in enumerate(zip(a, b, strict=True))]
    else:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            same = a.dtype == b.dtype and torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9))
        else:
            same = a == b or (a != a and b != b)
        return [] if same else [where]
    return [place for name, x, y in pairs for place in differing(x, y, name)]


def check_same(tmp_path: Path, *names: str) -> None:
    """Compare checkpoints and rows of the runs "whole" and "parts"."""
    for name in names:
        assert differing(*(load_checkpoint(tmp_path / f / name) for f in ("whole", "parts"))) == []
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def run_of(folder: Path, stages: Callable[[], list[Stage]], **settings: Any) -> None:
    """Train on the ring with everything on disk, going on if something is there."""
    random.seed(0)  # by default, every process starts from another
    torch.manual_seed(0)
    settings = {"checkpoint_every": 5, "log_every": 3, **settings}
    with closing(JsonLines(folder / "metrics.jsonl")) as logger:
        fit(folder, stages(), logger=logger, **settings)


def check_kills(
    tmp_path: Path, stages: Callable[[], list[Stage]], n: int, seconds: float, **settings: Any
) -> int:
    """Train once in peace and once with kills; both must be the same. Return the kills."""
    run_of(tmp_path / "whole", stages, **settings)
    folder = tmp_path / "parts"
    kills = killed_often(
        lambda: run_of(folder, stages, **settings), n, seconds=seconds, seed=n, started=0.02
    )
    check_same(tmp_path, "last.pt", "best.pt")
    return kills


@pytest.mark.parametrize("method", ["ta_bg", "fab"])
def test_killed_run_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    """Ladder and buffer; annealed importance sampling and prioritised buffer."""
    assert check_kills(tmp_path, lambda: [of(method, 12)], 2, seconds=0.3) > 0


def test_killed_while_checkpoints_are_written(tmp_path: Path) -> None:
    two = lambda: [of("reverse_kl", 8, "hot"), of("ta_bg", 8, "cool")]  # noqa: E731
    assert check_kills(tmp_path, two, 3, seconds=0.2, checkpoint_every=1) > 0


class Stormy(Ring):
    """The ring, where about one batch in fifteen has no finite energy: its own numbers say so."""

    def evaluate(self, x: Tensor) -> Evaluation:
        e = super().evaluate(x)
        struck = int(x[0, 0].abs() * 1e5) % 15 == 0
        return Evaluation(e.potential + (math.nan if struck else 0.0), e.log_jac)


def stormy() -> dict[str, Any]:
    return {"target": Stormy(), "log_every": 1, "max_rollbacks": 1000}


def test_killed_run_with_rollbacks(tmp_path: Path) -> None:
    """What a roll-back does depends on the checkpoint alone, not on who reads it."""
    run_of(tmp_path / "whole", lambda: [stage(steps=30)], **stormy())
    assert rows(tmp_path / "whole")[-1]["rollbacks"] > 0
    folder = tmp_path / "parts"
    assert killed_often(
        lambda: run_of(folder, lambda: [stage(steps=30)], **stormy()), 2, seconds=0.3, seed=1,
    )  # fmt: skip
    check_same(tmp_path, "last.pt")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_twenty_kills(method: str, tmp_path: Path) -> None:
    def stages() -> list[Stage]:
        return [of(method, 90, "a"), of("ta_bg", 60, "b")]

    assert check_kills(tmp_path, stages, 20, seconds=0.3) == 20


@pytest.mark.slow
def test_two_hundred_resumes(tmp_path: Path) -> None:
    """One step a session, on a ladder with a buffer."""
    run_of(tmp_path / "whole", lambda: [of("ta_bg", 200)])
    folder = tmp_path / "parts"
    for step in range(1, 201):
        with pytest.raises(InterruptedRunError, match=f"after step {step};"):
            run_of(folder, lambda: [of("ta_bg", 200)], max_time=1e-9)
    run_of(folder, lambda: [of("ta_bg", 200)])
    check_same(tmp_path, "last.pt")
    assert rows(folder) == rows(tmp_path / "whole")


def test_global_generators_go_on(tmp_path: Path) -> None:
    """A loss of a user's that draws from torch's own generator resumes like any other."""

    class Noisy(type(of("l2_plus", 1).loss)):  # type: ignore[misc]
        def __call__(self, flow: Any, samples: Any) -> Any:
            value, figures = super().__call__(flow, samples)
            return value * (1 + torch.rand(())), figures

    def stages() -> list[Stage]:
        return [stage(Noisy(), path=Temperature(300.0), steps=10)]

    run_of(tmp_path / "whole", stages)
    with pytest.raises(InterruptedRunError):
        run_of(tmp_path / "parts", stages, max_time=1e-9)
    run_of(tmp_path / "parts", stages)
    check_same(tmp_path, "last.pt")


def test_command_goes_on_by_itself(tmp_path: Path) -> None:
    """The same command again, killed three times: metrics, samples and rows of one in peace."""
    for folder, n in ((tmp_path / "whole", 0), (tmp_path / "parts", 3)):

        def task(folder: Path = folder) -> None:
            command(
                train, *SMALL, "trainer.max_steps=60", "resume=auto", f"hydra.run.dir={folder}"
            )

        killed_often(task, n, seconds=0.6, seed=3, started=0.5)
    whole, parts = (json.loads((tmp_path / f / "metrics.json").read_text())
                    for f in ("whole", "parts"))  # fmt: skip
    assert parts == whole
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "parts")] == list(range(5, 61, 5))
    status = json.loads((tmp_path / "parts" / "status.json").read_text())
    assert (status["state"], status["step"], status["n_steps"]) == ("done", 60, 60)
    assert (status["exit_status"], status["error"]) == (0, None)
