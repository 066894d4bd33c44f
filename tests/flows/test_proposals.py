"""Proposals against densities with a known log Z; statistical bounds are 6 standard errors."""

import math
from collections.abc import Callable
from pathlib import Path as File

import numpy as np
import pytest
import torch
from torch import Tensor

from energies.analytic import GaussianMixture, ManyWell
from energies.base import R
from energies.target import AnalyticTarget
from flows.build import spline_flow
from flows.errors import FlowInputError, TrainingError
from flows.flow import Flow
from flows.metrics.weights import log_z, weighted_mean
from flows.paths import Temperature
from flows.proposals import (
    AIS,
    HMC,
    SMC,
    Buffer,
    Dataset,
    HotModel,
    Metropolis,
    Mixture,
    Model,
    Points,
    PrioritisedBuffer,
    Proposal,
)
from flows.proposals.hmc import Walkers
from flows.types import Samples, Weights
from tests.flows.bent import bent as bent_by

PATH = Temperature(300.0)
N = 2048


def wells() -> AnalyticTarget:
    """Four modes in four dimensions, which a flow at its start overlaps as a whole."""
    return AnalyticTarget(ManyWell(n_wells=2, b=-3.0).double(), scale=1.0)


def modes() -> AnalyticTarget:
    return AnalyticTarget(GaussianMixture(n_modes=6, half_width=6.0, seed=2).double(), scale=4.0)


def wide_flow(dim: int, *, bent: float = 0.0, circles: int = 0) -> Flow:
    torch.set_default_dtype(torch.float64)
    periodic = [True] * circles + [False] * (dim - circles)
    lines = {"n_couplings": 1, "hidden": (8,), "n_bins": 5, "base_scale": 1.3}
    angles = {"n_circle_couplings": 1, "circle_hidden": (8,), "circle_bins": 5, "n_frequencies": 2}
    return bent_by(spline_flow(periodic, **lines, **angles, seed=4), bent)


def drawn(
    proposal: Proposal,
    flow: Flow,
    target: AnalyticTarget,
    seed: int,
    *,
    n: int = N,
    batches: int = 1,
) -> list[Samples]:
    generator = torch.Generator().manual_seed(seed)
    return [
        proposal.draw(flow, target, PATH, n, reparametrised=False, generator=generator)
        for _ in range(batches)
    ]


INDEPENDENT: dict[str, Callable[[], Proposal]] = {
    "model": Model,
    "hot_model": lambda: HotModel(1.3),
    "buffer": lambda: Buffer(N, resample=None),
    "mixture": lambda: Mixture({"a": Model(), "b": HotModel(1.5)}, {"a": 1.0, "b": 3.0}),
    "ais": lambda: AIS(6, moves=HMC(3, step_size=0.2)),
    "mala": lambda: AIS(10, moves=HMC(1, step_size=0.2, acceptance=0.57)),
    "ais_to_p2_over_q": lambda: AIS(6, alpha=2.0, moves=HMC(3, step_size=0.2)),
    "importance_sampling": lambda: AIS(0),
    "ais_and_moves": lambda: AIS(3, moves=HMC(3, step_size=0.2), n_final=3),
    "moves_alone": lambda: AIS(0, moves=HMC(3, step_size=0.2), n_final=3),
}


@pytest.mark.parametrize("make", INDEPENDENT.values(), ids=INDEPENDENT.keys())
@pytest.mark.parametrize("make_target", [wells, modes])
@pytest.mark.parametrize("seed", [0, 1])
def test_log_z_of_independent_points(
    make: Callable[[], Proposal], make_target: Callable[[], AnalyticTarget], seed: int
) -> None:
    target = make_target()
    flow = wide_flow(target.dim, bent=0.1)
    (samples,) = drawn(make(), flow, target, seed)
    estimate = log_z(samples.log_w)
    assert abs(estimate.value - target.energy.log_z(300.0)) < 6 * estimate.se
    assert estimate.se < 0.3
    assert torch.allclose(samples.log_p - samples.log_q, samples.log_w)
    # The points' own potentials give log_p: nothing was mixed up on the way.
    again = target.evaluate(samples.x)
    assert torch.allclose(target.log_prob(again, 300.0), samples.log_p)


@pytest.mark.parametrize("make_target", [wells, modes])
def test_annealing_lowers_the_error(make_target: Callable[[], AnalyticTarget]) -> None:
    target = make_target()
    flow = wide_flow(target.dim)
    proposal = AIS(6, moves=HMC(3, step_size=0.3, adaptation=1.0))
    drawn(proposal, flow, target, 0, n=128, batches=6)  # the step sizes find their place
    annealed = log_z(drawn(proposal, flow, target, 1)[0].log_w)
    plain = log_z(drawn(Model(), flow, target, 1)[0].log_w)
    assert annealed.se < 0.85 * plain.se
    assert 0.5 < proposal.figures()["acceptance"] < 0.8


@pytest.mark.parametrize("make_target", [wells, modes])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_log_z_of_smc(make_target: Callable[[], AnalyticTarget], alpha: float) -> None:
    """Points with common ancestors: the error comes from batches."""
    target = make_target()
    flow = wide_flow(target.dim)
    proposal = SMC(4, alpha=alpha, moves=HMC(3, step_size=0.2), ess=0.9)
    batches = drawn(proposal, flow, target, 3, n=256, batches=12)
    ratio = torch.stack([s.log_w.exp().mean() for s in batches]) / math.exp(
        target.energy.log_z(300.0)
    )
    se = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(ratio.mean()) - 1) < 6 * se
    assert se < 0.25


def test_resampled_and_moved_points_have_the_moments_of_the_target() -> None:
    """Of the aim itself, and with equal weights within each batch."""
    target = wells()
    flow = wide_flow(4, bent=0.2)
    proposal = SMC(0, moves=HMC(4, step_size=0.2), n_final=5, ess=1.0)
    batches = drawn(proposal, flow, target, 7, n=256, batches=40)
    assert all(float(s.log_w.std()) < 1e-9 for s in batches)
    # Equal weights of a batch are its mean weight: batches differ, and are what is independent.
    w = torch.stack([s.log_w[0] for s in batches]).exp()
    means = torch.stack([s.x.square().mean(0) for s in batches])
    mean = (w[:, None] * means).sum(0) / w.sum()
    error = ((w[:, None] * (means - mean)).square().sum(0)).sqrt() / w.sum()
    mean_exact, covariance = target.energy.moments(300.0)
    exact = covariance.diagonal() + mean_exact.square()
    assert bool(((mean - exact).abs() < 6 * error).all())
    assert float(error.max()) < 0.1
    assert len(torch.cat([s.x for s in batches]).unique(dim=0)) > 0.97 * 40 * 256


def test_moves_at_the_end_cost_what_they_say() -> None:
    target = wells()
    drawn(AIS(1, moves=HMC(4), n_final=3), wide_flow(4), target, 0, n=10)
    assert target.n_evals == 10 * (1 + (1 + 3) * 4)


def test_metropolis_keeps_exact_points_exact() -> None:
    target, flow = wells(), wide_flow(4)
    generator = torch.Generator().manual_seed(11)
    x = target.energy.sample(N, 300.0, generator=generator).flatten(1)
    proposal = Metropolis(burn_in=0)
    proposal.load_state_dict(
        {"chains": PATH.evaluate(target, x, flow.log_prob(x)).tensors()}, flow
    )
    *_, last = drawn(proposal, flow, target, 12, batches=25)
    assert 0.05 < proposal.figures()["acceptance"] < 0.95
    assert float((last.x != x).any(1).double().mean()) > 0.8
    fresh = target.energy.sample(20 * N, 300.0, generator=generator).flatten(1)
    for moment in (torch.cos, torch.sin, lambda y: y, torch.square):
        a, b = moment(last.x), moment(fresh)
        se = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 6 * se).all())


def test_metropolis_finds_the_target_from_its_own_start() -> None:
    """Its points weigh the same, and say so; log_q lacks the constant log Z."""
    target, flow = wells(), wide_flow(4)
    (samples,) = drawn(Metropolis(burn_in=60), flow, target, 3)
    assert target.n_evals == 62 * N
    assert torch.equal(samples.log_w, torch.zeros(N, dtype=torch.float64))
    assert torch.equal(samples.log_q, samples.log_p)
    assert torch.allclose(target.log_prob(target.evaluate(samples.x), 300.0), samples.log_p)
    mean, covariance = target.energy.moments(300.0)
    a = samples.x.square()
    # Chains share nothing but their start: rows are as good as independent after 60 steps.
    error = a.std(0) / math.sqrt(N)
    assert bool(((a.mean(0) - covariance.diagonal() - mean.square()).abs() < 6 * error).all())


def test_smc_draws_points_anew_and_keeps_the_mean_weight() -> None:
    target = wells()
    walkers = Walkers.at(wide_flow(4), target, PATH, torch.randn(8, 4))
    log_w = torch.tensor([0.0, 0.0, -50.0, -50.0, -50.0, -50.0, -math.inf, math.nan])
    new, even = SMC().select(walkers, log_w, torch.Generator().manual_seed(0))
    counts = [(new.samples.x == walkers.samples.x[k]).all(1).sum().item() for k in range(8)]
    assert counts == [4, 4, 0, 0, 0, 0, 0, 0]
    assert even.tolist() == pytest.approx([math.log(2 / 8)] * 8)
    same, kept = SMC(ess=0.1).select(walkers, log_w, torch.Generator())
    assert torch.equal(same.samples.x, walkers.samples.x)
    assert kept[:6].tolist() == log_w[:6].tolist()


@pytest.mark.parametrize(("n_leapfrog", "step_size"), [(1, 0.35), (5, 0.15)])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_moves_leave_their_density_invariant(
    n_leapfrog: int, step_size: float, share: float
) -> None:
    """Exact samples stay exact: of the many wells (share 1), of a flow with angles (share 0)."""
    target, generator = wells(), torch.Generator().manual_seed(5)
    flow = wide_flow(4, bent=0.3, circles=0 if share else 2)
    if share:
        x = target.energy.sample(N, 300.0, generator=generator).flatten(1)
    else:
        x = flow.sample_and_log_prob(N, generator=generator)[0]
    moves = HMC(n_leapfrog, step_size=step_size, adaptation=0.0)

    def evaluate(points: Tensor) -> Walkers:
        return Walkers.at(flow, target, PATH, points)

    walkers = evaluate(x)
    for _ in range(12):
        walkers = moves.move(
            walkers, evaluate, flow.periodic, share=share, place=0, generator=generator
        )
    moved = walkers.samples.x
    assert 0.3 < moves.figures()["acceptance"] < 0.99  # rejection is put to the test
    assert float((moved - x).square().mean()) > 0.3
    assert bool((moved[:, flow.periodic].abs() <= math.pi).all())
    if share:
        fresh = target.energy.sample(20 * N, 300.0, generator=generator).flatten(1)
    else:
        fresh = flow.sample_and_log_prob(20 * N, generator=generator)[0]
    for moment in (torch.cos, torch.sin, lambda y: y, torch.square):
        a, b = moment(moved), moment(fresh)
        se = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 6 * se).all())


def test_step_size_follows_the_acceptance_and_is_remembered() -> None:
    target, flow = wells(), wide_flow(4)
    for first in (0.01, 2.0):
        proposal = AIS(2, moves=HMC(3, step_size=first, adaptation=1.0))
        drawn(proposal, flow, target, 0, n=128, batches=15)
        figures = proposal.figures()
        assert figures["acceptance"] == pytest.approx(0.65, abs=0.12)
        again = AIS(2, moves=HMC(3, step_size=first, adaptation=1.0))
        again.load_state_dict(proposal.state_dict(), flow)
        assert again.figures() == figures


def test_a_trajectory_without_numbers_is_rejected() -> None:
    target, flow = wells(), wide_flow(4)

    def evaluate(points: Tensor) -> Walkers:
        return Walkers.at(flow, target, PATH, points)

    walkers = evaluate(torch.randn(64, 4))
    moves = HMC(4, step_size=1e200, adaptation=0.0)
    moved = moves.move(
        walkers, evaluate, flow.periodic, share=1.0, place=0, generator=torch.Generator()
    )
    assert torch.equal(moved.samples.x, walkers.samples.x)
    assert moves.figures()["acceptance"] == 0.0


def test_moves_cost_one_energy_a_leapfrog_step() -> None:
    target = wells()
    drawn(AIS(3, moves=HMC(4)), wide_flow(4), target, 0, n=10)
    assert target.n_evals == 10 * (1 + 3 * 4)


def test_hot_model_is_wider_and_knows_its_density() -> None:
    target, flow = wells(), wide_flow(4)  # at its start: q is its base, N(0, 1.3²)
    (samples,) = drawn(HotModel(1.44), flow, target, 0, n=20_000)
    assert samples.x.std(0).tolist() == pytest.approx([1.3 * 1.2] * 4, rel=0.03)
    wide = torch.distributions.Normal(0.0, 1.3 * 1.2)
    assert torch.allclose(samples.log_q, wide.log_prob(samples.x).sum(1))


@pytest.mark.parametrize("method", ["multinomial", "systematic"])
def test_resampled_buffer_holds_points_of_the_aim(method: str) -> None:
    target, flow = wells(), wide_flow(4)
    buffer = Buffer(40_000, resample=method)
    parts = drawn(buffer, flow, target, 0, n=4000, batches=10)
    assert target.n_evals == 40_000
    samples = Samples.cat(parts)
    size = 40_000 * buffer.figures()["buffer_ess"]
    exact = target.energy.moments(300.0)
    mean, square = samples.x.mean(0), samples.x.square().mean(0)
    # Twice the variance: that of the buffer's weights and that of the draw.
    se = (samples.x.var(0) / size + samples.x.var(0) / 40_000).sqrt()
    assert bool(((mean - exact.mean).abs() < 6 * se).all())
    second = exact.covariance.diagonal() + exact.mean**2
    se = (samples.x.square().var(0) * (1 / size + 1 / 40_000)).sqrt()
    assert bool(((square - second).abs() < 6 * se).all())
    assert float(samples.log_w.std()) < 1e-9
    exact_log_z = target.energy.log_z(300.0)
    assert float(samples.log_w[0]) == pytest.approx(exact_log_z, abs=6 / math.sqrt(size))


def test_buffer_hands_out_each_point_once_and_is_filled_again_when_asked() -> None:
    target, flow = wells(), wide_flow(4)
    buffer = Buffer(1000, resample=None, refresh=4)
    parts = drawn(buffer, flow, target, 0, n=300, batches=9)
    first = torch.cat([s.x for s in parts[:3]])
    assert len(first.unique(dim=0)) == 900
    # Steps 1 to 4, 5 to 8 and 9: three fillings, each drawn as four whole batches of 300.
    assert target.n_evals == 3 * 1200
    assert not bool((parts[4].x[:, None] == first).all(-1).any())


def test_buffer_is_weighed_anew_when_the_aim_moves() -> None:
    target, flow, generator = wells(), wide_flow(4), torch.Generator().manual_seed(0)
    path = Temperature(300.0, start=900.0)
    for resample in (None, "systematic"):
        buffer = Buffer(20_000, resample=resample)
        path.update(0.0)
        buffer.draw(flow, target, path, 100, reparametrised=False, generator=generator)
        path.update(0.3)
        samples = buffer.draw(flow, target, path, 5000, reparametrised=False, generator=generator)
        estimate = log_z(samples.log_w)
        assert abs(estimate.value - target.energy.log_z(path.temperature)) < 6 * (
            estimate.se + 1 / math.sqrt(20_000 * buffer.figures()["buffer_ess"])
        )


def test_clipping_is_reported() -> None:
    target, flow = wells(), wide_flow(4)
    buffer = Buffer(1000, clip=0.05)
    drawn(buffer, flow, target, 0, n=1000)
    figures = buffer.figures()
    (whole,) = drawn(Model(), flow, target, 0, n=1000)
    w = whole.log_w.exp()
    cut = w.clamp_max(w.topk(50).values[-1])
    assert figures["buffer_clipped_mass"] == pytest.approx(1 - float(cut.sum() / w.sum()))
    assert figures["buffer_clipped_ess"] > figures["buffer_ess"] > 0.0


def test_one_sample_with_all_the_weight_is_an_error() -> None:
    target = AnalyticTarget(ManyWell(n_wells=16).double(), scale=30.0)
    with pytest.raises(TrainingError, match=r"effective number .* got 1\.\d+: .* one of them"):
        drawn(Buffer(200), wide_flow(32), target, 0, n=100)


def test_prioritised_buffer_draws_points_of_p2_over_q() -> None:
    target, flow = modes(), wide_flow(2)
    source = AIS(6, alpha=2.0, moves=HMC(3, step_size=0.2))
    buffer = PrioritisedBuffer(source, size=16_000, min_size=8_000, steps=4)
    generator = torch.Generator().manual_seed(0)
    samples = buffer.draw(flow, target, PATH, 1000, reparametrised=False, generator=generator)
    assert target.n_evals == 8_000 * (1 + 6 * 3)
    assert len(samples.x.unique(dim=0)) == 1000  # without replacement
    # log_q is log p²/q normalised: the weights p/μ give log Z = 0, and a mean of p.
    estimate = log_z(samples.log_w)
    assert abs(estimate.value) < 6 * (estimate.se + 0.03)
    exact = target.energy.moments(300.0).mean / 4.0
    for k in range(2):
        mean = weighted_mean(samples.x[:, k], samples.log_w)
        assert abs(mean.value - float(exact[k])) < 6 * mean.se
    log_pi = 2 * samples.log_p - flow.log_prob(samples.x).detach()
    assert float((log_pi - samples.log_q).std()) < 1e-9


def test_prioritised_buffer_follows_the_flow_and_forgets() -> None:
    target, flow, generator = modes(), wide_flow(2), torch.Generator().manual_seed(0)
    buffer = PrioritisedBuffer(AIS(1, alpha=2.0), size=600, min_size=200, steps=2)

    def draw() -> Samples:
        return buffer.draw(flow, target, PATH, 100, reparametrised=False, generator=generator)

    samples = draw()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    before = buffer.state_dict()["log_pi"].clone()
    buffer.update(flow, samples)
    state = buffer.state_dict()
    changed = state["log_pi"] != before
    assert int(changed.sum()) == 100
    assert torch.equal(changed.nonzero()[:, 0], state["rows"].sort().values)
    x, log_p = state["stored"]["x"][changed], state["stored"]["log_p"][changed]
    assert torch.allclose(state["log_pi"][changed], 2 * log_p - flow.log_prob(x).detach())
    for _ in range(20):
        draw()
    assert len(buffer.state_dict()["log_pi"]) == 600
    assert not bool((buffer.state_dict()["stored"]["x"][:, None] == samples.x).all(-1).any())


def write(folder: File, **arrays: object) -> str:
    path = folder / "points.npz"
    np.savez(path, **arrays)
    return str(path)


def test_data_of_another_temperature_are_weighed_towards_the_aim(tmp_path: File) -> None:
    target, generator = wells(), torch.Generator().manual_seed(0)
    x = target.energy.sample(20_000, 450.0, generator=generator).flatten(1)
    data = Dataset(write(tmp_path, x=x.numpy()), temperature=450.0)
    assert data.gives == Weights.RELATIVE
    (samples,) = drawn(data, wide_flow(4), target, 0, n=20_000)
    exact = target.energy.moments(300.0).mean
    for k in range(4):
        mean = weighted_mean(samples.x[:, k], samples.log_w)
        assert abs(mean.value - float(exact[k])) < 6 * mean.se
    raw = samples.x[:, 0]
    assert abs(float(raw.mean() - exact[0])) > 6 * float(raw.std()) / math.sqrt(len(raw))


def test_data_with_densities_or_weights_or_neither(tmp_path: File) -> None:
    target, flow = wells(), wide_flow(4)
    x, log_q = flow.sample_and_log_prob(500, generator=torch.Generator().manual_seed(0))
    log_p = target.log_prob(target.evaluate(x), 300.0)
    wrong = np.full(500, 1e9)  # a potential of another energy must not be taken over
    exact = Dataset(write(tmp_path, x=x.numpy(), log_q=log_q.numpy(), potential=wrong))
    (samples,) = drawn(exact, flow, target, 0, n=500)
    order = [int((row == x).all(1).nonzero()[0, 0]) for row in samples.x]
    assert exact.gives == Weights.ABSOLUTE
    assert torch.allclose(samples.log_w, (log_p - log_q)[order])
    weighted = Dataset(write(tmp_path, x=x.numpy(), log_w=np.arange(500.0)))
    (samples,) = drawn(weighted, flow, target, 0, n=500)
    assert weighted.gives == Weights.RELATIVE
    assert samples.log_w.tolist() == pytest.approx([float(k) for k in order], abs=1e-9)
    bare = Dataset(write(tmp_path, xyz=x.reshape(500, 2, 2).numpy()))
    (samples,) = drawn(bare, flow, target, 0, n=500)
    assert bare.gives == Weights.NONE
    assert samples.log_w.tolist() == [0.0] * 500
    assert torch.allclose(samples.log_p, log_p[order])


def test_data_are_evaluated_once(tmp_path: File) -> None:
    target, flow = wells(), wide_flow(4)
    data = Points({"x": np.arange(4.0 * 25).reshape(25, 4) / 100})
    parts = drawn(data, flow, target, 0, n=10, batches=5)
    assert target.n_evals == 30  # three whole batches
    rows = torch.cat([s.x for s in parts[:2]])
    assert len(rows.unique(dim=0)) == 20
    state = data.state_dict()["samples"]["x"]
    assert torch.equal(state, torch.arange(100.0).reshape(25, 4).double() / 100)


def test_a_mixture_of_data_and_model_gives_no_weights() -> None:
    data = Points({"x": np.zeros((50, 4))})
    mixture = Mixture({"data": data, "model": Model()}, {"data": 1.0, "model": 4.0})
    assert mixture.gives == Weights.NONE
    (samples,) = drawn(mixture, wide_flow(4), wells(), 0, n=100)
    assert int((samples.x == 0).all(1).sum()) == 20
    assert samples.log_w.abs().sum() == 0
    log_p = -samples.potential / (R * 300.0) + samples.log_jac
    assert torch.allclose(samples.log_p, log_p)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HotModel(0.9), "Expected temperature >= 1 of hot_model, got 0.9"),
        (lambda: Buffer(1), "Expected size >= 2 of the buffer, got 1"),
        (lambda: Buffer(resample="often"), "multinomial, systematic or null, got 'often'"),
        (lambda: Buffer(clip=1.0), r"Expected clip in \[0, 1\), got 1.0"),
        (lambda: Buffer(resample=None, clip=0.1), "Expected clip = 0 without resampling"),
        (lambda: Buffer(refresh=0), "Expected refresh >= 1 steps, got 0"),
        (lambda: HMC(0), "Expected n_leapfrog >= 1, got 0"),
        (lambda: HMC(step_size=0.0), "Expected step_size > 0, got 0.0"),
        (lambda: HMC(acceptance=1.0), r"Expected acceptance in \(0, 1\), got 1.0"),
        (lambda: HMC(adaptation=-1.0), "Expected adaptation >= 0, got -1.0"),
        (lambda: AIS(-1), "Expected n_bridges >= 0, got -1"),
        (lambda: AIS(alpha=0.0), "Expected alpha > 0, got 0.0"),
        (lambda: AIS(n_final=-1), "Expected n_final >= 0, got -1"),
        (lambda: Metropolis(-1), "Expected burn_in >= 0, got -1"),
        (lambda: SMC(ess=0.0), r"Expected ess in \(0, 1\], got 0.0"),
        (lambda: PrioritisedBuffer(AIS(), size=10, min_size=11), "min_size <= size = 10, got 11"),
        (lambda: PrioritisedBuffer(AIS(), steps=0), "Expected steps >= 1, got 0"),
        (lambda: Mixture({}), "Expected parts of a mixture, got none"),
        (lambda: Mixture({"a": Model()}, {"b": 1.0}), r"Expected shares > 0 of \['a'\], got"),
        (lambda: Points({"y": np.zeros(3)}), r"Expected x \[n, D\] or xyz"),
        (lambda: Points({"x": np.full((3, 2), np.nan)}), "Expected finite x in the data"),
        (lambda: Points({"x": np.zeros((3, 2)), "log_q": np.zeros(2)}), r"log_q of shape \[3\]"),
        (lambda: Points({"x": np.zeros((3, 2))}, temperature=0.0), "Expected temperature > 0"),
        (lambda: Dataset("/nowhere.npz"), "to be a file, got /nowhere.npz"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], object], message: str) -> None:
    with pytest.raises(FlowInputError, match=message):
        build()


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (Buffer(50), "Expected a batch of at most 50"),
        (PrioritisedBuffer(AIS(), size=50, min_size=50), "at most min_size = 50"),
        (Points({"x": np.zeros((50, 4))}), "Expected at least a batch, 100 points, in the data"),
        (Points({"x": np.zeros((200, 3))}), r"Expected x of shape \[n, 4\] in the data"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_energy(proposal: Proposal, message: str) -> None:
    target = wells()
    with pytest.raises(FlowInputError, match=message):
        drawn(proposal, wide_flow(4), target, 0, n=100)
    assert target.n_evals == 0


def test_a_damaged_file_is_named(tmp_path: File) -> None:
    path = tmp_path / "points.npz"
    path.write_bytes(b"PK no archive")
    with pytest.raises(FlowInputError, match=r"points.npz, got one that cannot be read"):
        Dataset(str(path))
