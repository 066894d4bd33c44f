"""Paths: where they lead, what they cost, and multipliers against brute force."""

import math
from collections.abc import Callable
from pathlib import Path as Folder

import pytest
import torch
from torch import Tensor

from energies.analytic import GaussianMixture, ManyWell
from energies.base import Evaluation
from energies.target import AnalyticTarget
from flows.build import spline_flow
from flows.errors import FlowInputError, TrainingError
from flows.evaluation import draw_weighted, weight_report
from flows.flow import Flow
from flows.losses import ForwardKL, L2Plus, LogVariance, Loss, ReverseKL
from flows.metrics.weights import ess
from flows.paths import AdaptiveLadder, Constrained, Ladder, Path, Temperature
from flows.paths.constrained import Multipliers, bounds, mixed, solve_dual
from flows.paths.root import falling_root
from flows.proposals import Buffer, Model, Proposal
from flows.proposals.base import flow_samples
from flows.training import Stage, Trainer, WarmupCosine
from flows.training.loggers import Row
from flows.types import Samples
from tests.rows import Rows


def wells() -> tuple[AnalyticTarget, Flow]:
    torch.set_default_dtype(torch.float64)
    flow = spline_flow([False] * 4, n_couplings=2, hidden=(8,), base_scale=1.3)
    return AnalyticTarget(ManyWell(n_wells=2).double()), flow


def samples_of(path: Path, n: int = 4000) -> tuple[AnalyticTarget, Flow, Samples]:
    target, flow = wells()
    generator = torch.Generator().manual_seed(0)
    return target, flow, flow_samples(flow, target, path, n, chunk=n, generator=generator)


def test_ladder_goes_down_by_equal_ratios_and_ends_at_its_end() -> None:
    path = Ladder(300.0, 1200.0, rungs=4)
    target, flow, samples = samples_of(path)
    temperatures = []
    for step in range(20):
        path.update(step / 20)
        if path.due:
            path.advance(flow, target, samples)
        assert not path.due
        temperatures.append(path.temperature)
    expected = [1200.0 * 0.25 ** ((k // 5 + 1) / 4) for k in range(20)]
    assert temperatures == pytest.approx(expected)
    assert temperatures[-1] == 300.0


def test_ladder_catches_up_after_a_slow_step() -> None:
    path = Ladder(300.0, 1200.0, rungs=4)
    target, flow, samples = samples_of(path)
    path.update(0.8)
    path.advance(flow, target, samples)
    assert (path.temperature, path.due) == (300.0, False)


def test_adaptive_ladder_keeps_the_ess_and_spends_no_energy() -> None:
    path = AdaptiveLadder(300.0, 600.0, rungs=10, ess=0.03)
    target, flow, samples = samples_of(path)
    spent = target.n_evals
    path.update(0.0)
    weighed = path.advance(flow, target, samples)
    assert target.n_evals == spent
    assert 300.0 < path.temperature < 600.0
    assert ess(weighed.log_w) == pytest.approx(0.03, abs=1e-6)
    assert path.figures()["path_ess"] == pytest.approx(0.03, abs=1e-6)
    assert path.figures()["path_log_z"] == pytest.approx(
        target.energy.log_z(path.temperature), abs=6 / math.sqrt(0.03 * len(samples))
    )
    # Any colder the bound would not hold.
    e = Evaluation(samples.potential, samples.log_jac)
    assert ess(target.log_prob(e, 0.99 * path.temperature) - samples.log_q) < 0.03
    # The flow has not moved: neither does the path.
    first = path.temperature
    path.update(0.15)
    path.advance(flow, target, samples)
    assert path.temperature == pytest.approx(first, rel=1e-6)
    # The last rung is at the end.
    path.update(0.95)
    path.advance(flow, target, samples)
    assert path.temperature == 300.0


def test_adaptive_ladder_jumps_to_the_end_when_it_can() -> None:
    path = AdaptiveLadder(300.0, 400.0, rungs=10, ess=0.001)
    target, flow, samples = samples_of(path)
    path.update(0.0)
    path.advance(flow, target, samples)
    assert path.temperature == 300.0


def test_a_jump_too_far_is_an_error() -> None:
    path = Ladder(1.0, 300.0, rungs=1)
    target, flow, samples = samples_of(path)
    path.update(0.0)
    with pytest.raises(TrainingError, match=r"effective number .* at rung 1 of the path"):
        path.advance(flow, target, samples)


@pytest.mark.parametrize("end", [0.0, 0.3, 0.999, 1.0, 7.0])
def test_falling_root(end: float) -> None:
    calls = []

    def f(x: float) -> float:
        calls.append(x)
        return math.exp(-5 * x) - math.exp(-5 * end)

    assert falling_root(f, 0.0, 1.0) == pytest.approx(min(end, 1.0), abs=1e-8)
    assert len(calls) < 25


def test_falling_root_of_a_step() -> None:
    assert falling_root(lambda x: 1.0 if x < 0.37 else -1.0, 0.0, 1.0) == pytest.approx(0.37, 1e-2)
    assert falling_root(lambda x: 1.0 if x < 0.37 else -1.0, 0.0, 1.0) <= 0.37


# Constrained mass transport on a line: q = N(0, 1), p ∝ two narrow modes off its centre. The
# samples are quantiles of q: sums over them are integrals.
GRID = 20_000


def on_a_line() -> tuple[Tensor, Tensor]:
    levels = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    x = math.sqrt(2) * torch.erfinv(2 * levels - 1)
    log_q = -0.5 * x**2 - 0.5 * math.log(2 * math.pi)
    log_p = 3.0 + torch.logaddexp(-0.5 * ((x - 0.9) / 0.3) ** 2, -0.5 * ((x + 0.5) / 0.4) ** 2 - 1)
    return log_p, log_q


def divergence_from_p(log_p: Tensor, log_q: Tensor, multipliers: Multipliers) -> float:
    """KL(q' || p) up to log Z: what the constrained density minimises."""
    w = torch.softmax(mixed(log_p, log_q, multipliers) - log_q, 0)
    return float((w * (log_q + w.log() + math.log(GRID) - log_p)).sum())


@pytest.mark.parametrize(
    ("trust_region", "entropy_bound", "active"),
    [
        (0.05, 0.1, (True, True)),
        (0.2, 10.0, (True, False)),
        (10.0, 0.2, (False, True)),
        (10.0, 10.0, (False, False)),
        (0.05, 0.3, (True, False)),
    ],
)
def test_multipliers_against_brute_force(
    trust_region: float, entropy_bound: float, active: tuple[bool, bool]
) -> None:
    log_p, log_q = on_a_line()
    found = solve_dual(log_p, log_q, trust_region, entropy_bound)
    assert (found.trust > 0, found.entropy > 0) == active
    divergence, entropy_loss = bounds(log_p, log_q, found)
    assert divergence <= trust_region * (1 + 1e-6)
    assert entropy_loss <= entropy_bound * (1 + 1e-6)
    for is_active, value, bound in zip(
        active, (divergence, entropy_loss), (trust_region, entropy_bound), strict=True
    ):
        if is_active:
            assert value == pytest.approx(bound, rel=1e-5)
    # Among all pairs of a grid that meet both bounds none comes nearer to p.
    log_p, log_q = log_p[::10], log_q[::10]
    best = divergence_from_p(*on_a_line(), found)
    values = [0.0, *torch.logspace(-2, 2, 25, dtype=torch.float64).tolist()]
    for trust in values:
        for entropy in values:
            pair = Multipliers(trust, entropy)
            cost = bounds(log_p, log_q, pair)
            if cost.divergence <= trust_region and cost.entropy_loss <= entropy_bound:
                w = torch.softmax(mixed(log_p, log_q, pair) - log_q, 0)
                there = float((w * (log_q + w.log() + math.log(len(w)) - log_p)).sum())
                assert there >= best - 2e-3


def test_multipliers_maximise_the_dual() -> None:
    log_p, log_q = on_a_line()
    trust_region, entropy_bound = 0.05, 0.1

    def dual(pair: Multipliers) -> float:
        trust, entropy = pair
        total = 1 + trust + entropy
        log_z = torch.logsumexp((log_p - (1 + entropy) * log_q) / total, 0) - math.log(GRID)
        floor = entropy * (float(-log_q.mean()) - entropy_bound)
        return -total * float(log_z) - trust * trust_region + floor

    found = solve_dual(log_p, log_q, trust_region, entropy_bound)
    top = dual(found)
    for step in (0.97, 1.03):
        assert dual(Multipliers(found.trust * step, found.entropy)) < top
        assert dual(Multipliers(found.trust, found.entropy * step)) < top


def test_rows_without_a_density_change_no_multiplier() -> None:
    log_p, log_q = on_a_line()
    bad = torch.tensor([-math.inf, math.nan], dtype=torch.float64)
    some = torch.zeros(2, dtype=torch.float64)
    found = solve_dual(torch.cat([log_p, bad]), torch.cat([log_q, some]), 0.05, 0.1)
    assert found == solve_dual(log_p, log_q, 0.05, 0.1)


def test_constrained_aim_is_the_same_by_samples_and_by_the_frozen_flow() -> None:
    path = Constrained(300.0, rungs=4, trust_region=0.2, entropy_bound=0.2)
    target, flow, samples = samples_of(path)
    spent = target.n_evals
    path.update(0.0)
    weighed = path.advance(flow, target, samples)
    figures = path.figures()
    assert figures["trust_multiplier"] > 0
    assert target.n_evals == spent
    with torch.no_grad():  # what training does to the flow does not move the aim
        for p in flow.parameters():
            p.add_(0.3)
    again = path.weigh(target, samples)
    assert torch.allclose(weighed.log_p, again.log_p, atol=1e-9)
    other = Constrained(300.0, rungs=4, trust_region=0.2, entropy_bound=0.2)
    other.load_state_dict(path.state_dict(), flow)
    assert torch.equal(other.weigh(target, samples).log_p, again.log_p)
    assert other.figures() == figures
    path.update(0.8)
    last = path.advance(flow, target, samples)
    e = Evaluation(samples.potential, samples.log_jac)
    assert torch.equal(last.log_p, target.log_prob(e, 300.0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Temperature(0.0), "end > 0 kelvin, got 0.0"),
        (lambda: Temperature(300.0, start=-1.0), "start > 0 kelvin, got -1.0"),
        (lambda: Ladder(300.0, 200.0), "Expected start >= end = 300.0 kelvin, got 200.0"),
        (lambda: Ladder(300.0, 600.0, rungs=0), "Expected rungs >= 1, got 0"),
        (lambda: Ladder(300.0, 600.0, n_samples=1), "Expected n_samples >= 2, got 1"),
        (lambda: AdaptiveLadder(300.0, 600.0, ess=1.0), r"Expected ess in \(0, 1\), got 1.0"),
        (lambda: Constrained(300.0, trust_region=0.0), "Expected trust_region > 0 nats, got 0.0"),
        (lambda: Constrained(300.0, trust_region=-1.0), "trust_region > 0 nats, got -1.0"),
        (lambda: Constrained(300.0, entropy_bound=0.0), "Expected entropy_bound > 0 nats"),
        (lambda: Constrained(300.0, rungs=0), "Expected rungs >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], object], message: str) -> None:
    with pytest.raises(FlowInputError, match=message):
        build()


def stage(path: Path, proposal: Proposal, loss: Loss, steps: int, lr: float = 3e-3) -> Stage:
    def adam(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))

    return Stage(
        name="train", path=path, proposal=proposal, loss=loss, optimizer=adam,
        schedule=WarmupCosine(warmup=0.05, final=0.05), steps=steps, batch_size=256,
    )  # fmt: skip


def trained(
    folder: Folder, target: AnalyticTarget, flow: Flow, stages: list[Stage]
) -> tuple[dict[str, float], list[Row]]:
    logger = Rows()
    flow = Trainer(progress_bar=False, ema_decay=0.98, log_every=20).fit(
        flow, target, stages, checkpoint=folder / "last.pt", logger=logger,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    parts = draw_weighted(
        flow, target, 300.0, 10_000, chunk=2000, generator=torch.Generator().manual_seed(1)
    )
    return weight_report(Samples.cat(list(parts))), logger.rows


PATHS: dict[str, Callable[[], tuple[Path, Proposal, Loss]]] = {
    "adaptive": lambda: (AdaptiveLadder(300.0, 3000.0, rungs=12, ess=0.4), Model(), L2Plus()),
    "cmt": lambda: (
        Constrained(300.0, rungs=12, trust_region=0.5, entropy_bound=0.5),
        Buffer(8192, resample=None),
        ForwardKL(),
    ),
}


@pytest.mark.parametrize("method", PATHS)
def test_log_z_of_four_wells(method: str, tmp_path: Folder) -> None:
    target = AnalyticTarget(ManyWell(n_wells=2).float())
    flow = spline_flow(
        [False] * 4, n_couplings=4, hidden=(24,), n_bins=6, base_scale=1.3, tail_bound=5.0
    )
    report, rows = trained(tmp_path, target, flow, [stage(*PATHS[method](), 240, lr=6e-3)])
    exact = target.energy.log_z(300.0)
    assert abs(report["log_z"] - exact) < 6 * report["log_z_se"]
    assert report["ess"] > 0.5
    assert rows[-1]["temperature"] == 300.0
    assert rows[-1]["path_ess"] > 0.3
    key = "target_log_z" if method == "cmt" else "path_log_z"
    assert rows[-1][key] == pytest.approx(exact, abs=0.1)


MODES = AnalyticTarget(GaussianMixture(n_modes=40, seed=0).float(), scale=23.0)
WELLS = AnalyticTarget(ManyWell(n_wells=16).float())


def far_modes(method: str) -> list[Stage]:
    if method == "adaptive":
        hot = stage(Temperature(9000.0), Model(), ReverseKL(), 400)
        ladder = AdaptiveLadder(300.0, 9000.0, rungs=40, ess=0.5)
        return [hot, stage(ladder, Model(), LogVariance(), 3000)]
    path = Constrained(300.0, rungs=30, trust_region=0.3, entropy_bound=0.3)
    return [stage(path, Buffer(50_000, resample=None), ForwardKL(), 3000)]


@pytest.mark.slow
@pytest.mark.parametrize("method", PATHS)
@pytest.mark.parametrize("target", [MODES, WELLS], ids=["forty_modes", "many_well"])
def test_log_z_of_the_hard_ones(method: str, target: AnalyticTarget, tmp_path: Folder) -> None:
    flow = spline_flow(
        [False] * target.dim, n_couplings=8, hidden=(64, 64), n_bins=12, tail_bound=4.0
    )
    report, _ = trained(tmp_path, target, flow, far_modes(method))
    assert abs(report["log_z"] - target.energy.log_z(300.0)) < 6 * report["log_z_se"]
    assert report["ess"] > 0.3
