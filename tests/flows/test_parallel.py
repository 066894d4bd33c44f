"""Several processes do what one does: losses and gradients to 1e-10, training step by step."""

import math
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from energies.base import Evaluation
from flows import parallel
from flows.build import spline_flow
from flows.errors import FlowInputError, ProcessLostError, TrainingError
from flows.flow import Flow
from flows.losses import (
    L2,
    AlphaDivergence,
    ForwardKL,
    Jeffreys,
    L2Plus,
    LearnedLogZ,
    LogVariance,
    Loss,
    ReverseKL,
    ReverseKLPath,
    RunningMean,
    Sum,
)
from flows.losses.base import Stats
from flows.metrics.weights import log_z
from flows.paths import Temperature
from flows.proposals import (
    AIS,
    HMC,
    SMC,
    Buffer,
    HotAngles,
    HotModel,
    Mixture,
    Model,
    PrioritisedBuffer,
    Proposal,
)
from flows.training import InterruptedRunError, Stage, Trainer
from flows.training.checkpoint import load_checkpoint
from flows.training.loggers import Logger, Row
from flows.training.session import Session
from flows.training.window import Window
from flows.types import Samples
from tests.flows.bent import bent
from tests.flows.ranks import on_ranks
from tests.flows.ring import SMALL, Ring, of, stage
from tests.flows.test_proposals import wells, wide_flow
from tests.flows.test_training import StopAfter
from tests.rows import Rows

B = 60


class Unaware(Loss):
    """What a user may write: a median, an average of points, seven of the points, parameters."""

    def __call__(self, flow: Flow, samples: Samples) -> tuple[Tensor, Stats]:
        finite = samples.finite
        r = torch.where(finite, samples.log_p - flow.log_prob(samples.x), 0.0)
        spread = (samples.x - samples.x.mean(0)).square().sum(1)
        size = torch.stack([p.square().sum() for p in flow.parameters()]).sum()
        first = flow.log_prob(samples.x[:7]).mean()
        return (spread * (r - r.median()) ** 2).mean() + 0.1 * size + first, {}


PROPOSALS: dict[str, Callable[[], Proposal]] = {
    "model": Model,
    "hot_angles": lambda: HotAngles(pool=2),
    "ais": lambda: AIS(3, moves=HMC(2, step_size=0.2)),
    "smc": lambda: SMC(3, moves=HMC(2, step_size=0.2), ess=0.9),
    "buffer": lambda: Buffer(3000, resample=None),
    "multinomial": lambda: Buffer(3000, resample="multinomial"),
    "systematic": lambda: Buffer(3000, resample="systematic"),
    "prioritised": lambda: PrioritisedBuffer(
        AIS(2, alpha=2.0, moves=HMC(2, step_size=0.2)), size=12_000, min_size=6000
    ),
    "mixture": lambda: Mixture({"a": Model(), "b": HotModel(1.5)}),
}
REPEATING = ("smc", "multinomial", "systematic")
RESUMED = ("fab", "cmt", "mixed")
"""Methods whose proposals store something, or whose paths wait for samples."""
RESIZED = ("fab", "cmt", "data")

LOSSES: dict[str, Callable[[], Loss]] = {
    "reverse_kl": lambda: ReverseKL(drop=0.1),
    "reverse_kl_path": lambda: ReverseKLPath(drop=0.1),
    "forward_kl": lambda: ForwardKL(max_weight=3.0),
    "forward_kl_of_data": lambda: ForwardKL(baseline=0.0),
    "alpha_divergence": lambda: AlphaDivergence(2.0, max_weight=4.0),
    "alpha_divergence_below_1": lambda: AlphaDivergence(0.5),
    "l2": lambda: L2(drop=0.1),
    "l2_of_all": lambda: L2(drop=0.0),
    "l2_running_mean": lambda: L2(centre=RunningMean(0.5)),
    "l2_plus": lambda: L2Plus(drop=0.1),
    "l2_plus_learned_log_z": lambda: L2Plus(centre=LearnedLogZ(0.3)),
    "log_variance": lambda: LogVariance(drop=0.1),
    "jeffreys": lambda: Jeffreys(drop=0.1),
    "sum": lambda: Sum({"a": L2(drop=0.1), "b": ForwardKL()}, {"a": 2.0}),
    "sum_with_forces": lambda: Sum({"a": LogVariance(), "b": ReverseKLPath()}),
    "unaware": Unaware,
}


def this_flow() -> Flow:
    torch.set_default_dtype(torch.float64)
    sizes = {"n_couplings": 2, "hidden": (8,), "n_circle_couplings": 2, "circle_hidden": (8,)}
    return bent(spline_flow([True, False, False], **sizes, n_frequencies=2, seed=3), 0.1)


def these_points(flow: Flow, z: Tensor, *, reparametrised: bool) -> Samples:
    """Points of noise z [n, 3], every seventh of which has no energy."""
    if reparametrised:
        x, log_q = flow.from_noise(z, flow.base.log_prob(z))
    else:
        x = 1.3 * z
        log_q = -0.5 * z.square().sum(1) - 3 * math.log(1.3 * math.sqrt(2 * math.pi))
    log_p = -(x.square().sum(1)) - 0.3 * x[:, 0] ** 3
    log_p = torch.where((1000 * z[:, 0]).int() % 7 == 0, -torch.inf, log_p)
    return Samples(x, log_q, log_p, (log_p - log_q).detach(), -log_p, torch.zeros_like(log_p))


def two_steps(make: Callable[[], Loss]) -> list[Tensor]:
    """Values, figures of the log and gradients on two batches, the second seen after the first."""
    flow, loss, found = this_flow(), make(), []
    for seed in (0, 1):
        z = torch.randn(B, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        z = z[parallel.own_rows(B, z.device)]
        batch = parallel.joint_batch(these_points(flow, z, reparametrised=loss.reparametrised))
        flow.zero_grad()
        value, _ = loss(parallel.joint_flow(flow), batch)
        value.backward()
        parallel.average_gradients(flow.parameters())
        window = Window()
        window.add(value, torch.ones(()), batch)
        found += [*window.rows, *(p.grad.clone() for p in flow.parameters())]
    return found


def all_losses() -> dict[str, list[Tensor]]:
    return {name: two_steps(make) for name, make in LOSSES.items()}


def fit(folder: Path, stages: list[Stage], *, logger: Logger, target: Ring | None = None) -> Flow:
    torch.set_default_dtype(torch.float32)
    trainer = Trainer(progress_bar=False, log_every=5, checkpoint_every=4)
    return trainer.fit(
        spline_flow(Ring.periodic, **SMALL, seed=1), target or Ring(), stages, logger=logger,
        checkpoint=folder / "last.pt", generator=torch.Generator().manual_seed(5),
    )  # fmt: skip


def without_time(rows: list[Row]) -> dict[int, Row]:
    return {r["step"]: {k: v for k, v in r.items() if k != "time_s"} for r in rows}


def interrupted(folder: Path) -> dict[str, Any]:
    """Train by several methods, once in one piece and once in two."""
    found = {}
    for method in RESUMED:
        whole_log, first_log, second_log = Rows(), StopAfter(10), Rows()
        whole = fit(folder / method / "whole", [of(method, 12)], logger=whole_log)
        with pytest.raises(ConnectionAbortedError):
            fit(folder / method / "parts", [of(method, 12)], logger=first_log)
        parts = fit(folder / method / "parts", [of(method, 12)], logger=second_log)
        found[method] = {
            "whole": [p.detach() for p in whole.parameters()],
            "parts": [p.detach() for p in parts.parameters()],
            "whole_rows": without_time(whole_log.rows),
            "parts_rows": without_time(first_log.rows) | without_time(second_log.rows),
        }
    return found


def until(folder: Path, method: str, step: int) -> dict[str, Any]:
    """Go on with a run of 24 steps until it breaks off after `step`."""
    session = Session(
        spline_flow(Ring.periodic, **SMALL, seed=9), Ring(), [of(method, 24)], clip_norm=1.0,
        generator=torch.Generator(), ema_decay=0.9,
    )  # fmt: skip
    stored = parallel.at_first(lambda: step > 5 and load_checkpoint(folder / "last.pt"))
    if stored:
        session.load(folder / "last.pt")
        assert all(map(torch.equal, session.flow.state_dict().values(), stored["flow"].values()))
        assert session.total_steps == stored["total_steps"] == {10: 4, 15: 8}[step]
        assert session.n_evals == stored["n_evals"]
        assert session.stage.path.state_dict().keys() == stored["parts"]["path"].keys()
        assert session.stage.path.rung == stored["parts"]["path"].get("rung", 0)
    first = torch.rand(1, generator=session.generator)
    rows = StopAfter(step)
    with pytest.raises(ConnectionAbortedError):
        fit(folder, [of(method, 24)], logger=rows)
    return {"rows": without_time(rows.rows), "random": first}


def uneven(folder: Path) -> int:
    """Return the steps that fit into a second, one rank being slower than the other."""

    class Slow(Ring):
        def evaluate(self, x: Tensor) -> Evaluation:
            time.sleep(0.02 * parallel.rank())
            return super().evaluate(x)

    limited = stage(ReverseKL(), steps=10**9)
    limited.max_time = 1.0
    target = Slow()
    fit(folder, [limited], logger=Rows(), target=target)
    return target.n_evals // parallel.share(limited.batch_size)


class SignalAfter(Rows):
    def log(self, row: Row) -> None:
        super().log(row)
        if parallel.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def signalled(folder: Path) -> dict[str, Any]:
    """Train for ever; one rank is asked to stop."""
    try:
        fit(folder, [stage(ReverseKL(), steps=10**9)], logger=SignalAfter())
    except InterruptedRunError as error:
        return {"error": str(error), "number": error.number}
    return {}


def full_disk(folder: Path) -> str:
    """Write checkpoints where there is a file in the way; only the first rank notices."""
    if parallel.rank() == 0:
        folder.touch()
    try:
        fit(folder, [stage(ReverseKL())], logger=Rows())
    except OSError as error:
        return str(error)
    return ""


def weighed() -> dict[str, Samples]:
    """Draw two batches of every proposal, the second after a step; return the joint second."""
    found = {}
    for name, make in PROPOSALS.items():
        target, proposal = wells(), make()
        flow = wide_flow(target.dim, bent=0.1)
        generator = parallel.own_stream(torch.Generator().manual_seed(3))
        for _ in range(2):
            n = parallel.share(1500)
            samples = proposal.draw(
                flow, target, Temperature(300.0), n, reparametrised=False, generator=generator
            )
            proposal.update(flow, samples)
        found[name] = parallel.joint_batch(samples).tensors()
    return found


def left_alone() -> str:
    """Lose the other rank."""
    if parallel.rank() == 1:
        dist.destroy_process_group()
        return ""
    try:
        while True:
            parallel.total(1)
    except ProcessLostError as error:
        return str(error)


def refused() -> list[str]:
    """Fail on the first rank alone."""
    said = []
    for error in (FlowInputError("no file"), TrainingError("no luck")):

        def fail(error: Exception = error) -> None:
            raise error

        try:
            parallel.at_first(fail)
        except (FlowInputError, TrainingError) as caught:
            said.append(f"{type(caught).__name__}: {caught}")
    return said


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    phases: dict[str, Any] = {
        "losses on 2": (2, all_losses, ()),
        "losses on 3": (3, all_losses, ()),
        "weighed": (3, weighed, ()),
        "weighed by one": (1, weighed, ()),
        "interrupted": (2, interrupted, (folder / "interrupted",)),
        **{
            f"{method} on {n}": (n, until, (folder / method, method, step))
            for method in RESIZED for n, step in ((2, 5), (3, 10), (1, 15))
        },
        "full disk": (2, full_disk, (folder / "full",)),
        "uneven": (2, uneven, (folder / "uneven",)),
        "signalled": (2, signalled, (folder / "signalled",)),
        "refused": (2, refused, ()),
        "left alone": (2, left_alone, ()),
    }  # fmt: skip
    return dict(zip(phases, on_ranks(list(phases.values())), strict=True))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_the_joint_batch(
    name: str, n: int, found: dict[str, list[Any]]
) -> None:
    expected = two_steps(LOSSES[name])
    assert any(bool((g.abs() > 1e-3).any()) for g in expected[1:])
    first = found[f"losses on {n}"][0][name]
    for rank in found[f"losses on {n}"]:
        for mine, one in zip(rank[name], expected, strict=True):
            torch.testing.assert_close(mine, one, rtol=1e-10, atol=1e-10)
        # Bit for bit the same on all ranks: they never part.
        assert all(map(torch.equal, rank[name], first))


@pytest.mark.parametrize("method", RESUMED)
def test_ranks_agree_and_resume_bit_for_bit(method: str, found: dict[str, list[Any]]) -> None:
    first, second = (rank[method] for rank in found["interrupted"])
    assert all(map(torch.equal, first["whole"], second["whole"]))
    assert all(map(torch.equal, first["whole"], first["parts"]))
    assert first["whole_rows"] == second["whole_rows"] == first["parts_rows"]
    assert all(math.isfinite(row["loss"]) for row in first["whole_rows"].values())


@pytest.mark.parametrize("method", ["fab", "cmt"])
def test_ranks_spend_what_one_process_spends(
    method: str, found: dict[str, list[Any]], tmp_path: Path
) -> None:
    rows = Rows()
    fit(tmp_path, [of(method, 12)], logger=rows)
    together = found["interrupted"][0][method]["whole_rows"]
    assert [row["n_evals"] for row in together.values()] == [row["n_evals"] for row in rows.rows]


@pytest.mark.parametrize("method", RESIZED)
def test_a_run_goes_on_with_other_numbers_of_processes(
    method: str, found: dict[str, list[Any]]
) -> None:
    sessions = [found[f"{method} on {n}"] for n in (2, 3, 1)]
    for ranks in sessions:
        assert all(rank["rows"] == ranks[0]["rows"] for rank in ranks)
    rows = {k: v for ranks in sessions for k, v in ranks[0]["rows"].items()}
    assert list(rows) == [5, 10, 15]
    evals = [row["n_evals"] for row in rows.values()]
    assert evals == sorted(evals)
    # Every rank of every session has random numbers of its own.
    streams = [float(rank["random"]) for ranks in sessions for rank in ranks]
    assert len(set(streams)) == 6


@pytest.mark.parametrize("name", [name for name in PROPOSALS if name != "prioritised"])
def test_weights_of_all_ranks_give_log_z(name: str, found: dict[str, list[Any]]) -> None:
    samples = Samples(**found["weighed"][0][name])
    assert len(samples) == 1500
    assert len(samples.x.unique(dim=0)) > (300 if name in REPEATING else 1499)
    estimate = log_z(samples.log_w)
    # Points of a buffer all have the weight of their mean, whose error they do not show.
    error = math.hypot(estimate.se, 0.05 if name in REPEATING else 0.0)
    assert abs(estimate.value - wells().energy.log_z(300.0)) < 6 * error


def test_prioritised_points_of_all_ranks_weigh_as_those_of_one(
    found: dict[str, list[Any]],
) -> None:
    """They are drawn without replacement, which biases log Z, of one process or of several."""
    estimates = [
        log_z(Samples(**found[name][0]["prioritised"]).log_w)
        for name in ("weighed", "weighed by one")
    ]
    error = math.hypot(*(estimate.se for estimate in estimates))
    assert abs(estimates[0].value - estimates[1].value) < 6 * error
    assert error < 0.1


def test_time_ends_on_all_ranks_at_the_same_step(found: dict[str, list[Any]]) -> None:
    fast, slow = found["uneven"]
    assert fast == slow
    assert 1 < fast < 60


def test_a_signal_to_one_rank_stops_all_of_them(found: dict[str, list[Any]]) -> None:
    first, second = found["signalled"]
    assert first == second
    assert first["number"] == signal.SIGTERM
    assert re.match(r"Stopped after step 5; the checkpoint is .*by SIGTERM", first["error"])


def test_a_disk_that_refuses_ends_all_ranks_with_one_sentence(
    found: dict[str, list[Any]],
) -> None:
    first, second = found["full disk"]
    assert first == second
    assert "full" in first


def test_an_error_on_the_first_rank_is_raised_on_all(found: dict[str, list[Any]]) -> None:
    assert found["refused"] == [["FlowInputError: no file", "TrainingError: no luck"]] * 2


def test_a_lost_rank_is_named_rather_than_waited_for(found: dict[str, list[Any]]) -> None:
    assert "Expected all 2 processes to go on" in found["left alone"][0]


def test_one_process_is_all_there_is() -> None:
    flow, rows = this_flow(), torch.arange(3.0)
    assert (parallel.rank(), parallel.n_ranks(), parallel.share(7)) == (0, 1, 7)
    assert parallel.joint(rows) is rows
    assert parallel.joint_flow(flow) is flow
    assert parallel.collect(4) == [4]
    assert parallel.largest(2.0, 3.0) == [2.0, 3.0]
    assert parallel.total(5) == 5
    assert parallel.own_rows(3, rows.device).tolist() == [0, 1, 2]
    with parallel.processes():
        assert parallel.n_ranks() == 1
