"""Losses against closed forms for Gaussians: q = N(m, s²), p̃ = Z N(0, 1), points from N(u, v²).

r = log p̃ - log q is a x² + b x + c with a = (1/s² - 1)/2 and b = -m/s², so that every moment is
known. The points are the quantiles of their density at equal steps: a rule without noise.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flows.build import spline_flow
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.frozen import frozen
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
from flows.losses.base import kept, masked_mean
from flows.types import Samples, Weights
from tests.flows.bent import bent, perturbation

LOG_Z = 1.7
N = 200_001


class Gaussian(nn.Module):
    """q = N(m, s²) with parameters m and log s."""

    def __init__(self, m: float, s: float) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(m, dtype=torch.float64))
        self.log_s = nn.Parameter(torch.tensor(math.log(s), dtype=torch.float64))

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x[:, 0] - self.m) / self.log_s.exp()
        return -0.5 * z**2 - self.log_s - 0.5 * math.log(2 * math.pi)


def log_target(x: Tensor) -> Tensor:
    return LOG_Z - 0.5 * x[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)


def quantiles(n: int = N) -> Tensor:
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return math.sqrt(2) * torch.erfinv(2 * levels - 1)[:, None]


def points(flow: Gaussian, u: float, v: float, *, reparametrised: bool) -> Samples:
    if reparametrised:
        x = flow.m + flow.log_s.exp() * quantiles()
        log_q = flow.log_prob(x)
    else:
        x = u + v * quantiles()
        log_q = Gaussian(u, v).log_prob(x)
    log_p = log_target(x)
    zero = torch.zeros(len(x), dtype=torch.float64)
    samples = Samples(x, log_q, log_p, (log_p - log_q).detach(), zero, zero)
    return samples if reparametrised else samples.detach()


def reverse_kl(m: float, s: float, u: float, v: float) -> tuple[float, float, float]:
    return 0.5 * (s**2 + m**2 - 1) - math.log(s) - LOG_Z, m, s**2 - 1


def half_variance(m: float, s: float, u: float, v: float) -> tuple[float, float, float]:
    a, b = (1 / s**2 - 1) / 2, -m / s**2
    slope = 2 * a * u + b
    value = 0.5 * (2 * a**2 * v**4 + slope**2 * v**2)
    d_a, d_b = 2 * a * v**4 + slope * v**2 * 2 * u, slope * v**2
    # da/dm = 0, db/dm = -1/s², da/dlog s = -1/s², db/dlog s = 2m/s²
    return value, -d_b / s**2, (-d_a + 2 * m * d_b) / s**2


def half_square_plus(m: float, s: float, u: float, v: float) -> tuple[float, float, float]:
    """For s = 1, where r - K = -m (x - u) and relu cuts a Gaussian in half; m > 0."""
    d_m = m * (v**2 / 2 + (m - u) * v / math.sqrt(2 * math.pi))
    # dr/dlog s = 1 - (x - m)², E over the half line y = x - u < 0 of -m y
    y1, y2, y3 = v / math.sqrt(2 * math.pi), v**2 / 2, 2 * v**3 / math.sqrt(2 * math.pi)
    k = u - m  # x - m = y + k with E[-y] = y1, E[y²] = y2, E[-y³] = y3 on the half line
    d_log_s = m * (y1 - (y3 - 2 * k * y2 + k**2 * y1))
    return 0.25 * m**2 * v**2, d_m, d_log_s


def half_square(m: float, s: float, u: float, v: float) -> tuple[float, float, float]:
    """For K = log Z: the squared mean of r - log Z comes on top of the variance."""
    a, b, c = (1 / s**2 - 1) / 2, -m / s**2, m**2 / (2 * s**2) + math.log(s)
    value, d_m, d_log_s = half_variance(m, s, u, v)
    mean = a * (u**2 + v**2) + b * u + c
    mean_m = -u / s**2 + m / s**2
    mean_log_s = -(u**2 + v**2) / s**2 + 2 * m * u / s**2 + 1 - m**2 / s**2
    return value + 0.5 * mean**2, d_m + mean * mean_m, d_log_s + mean * mean_log_s


def forward_kl(m: float, s: float, u: float, v: float) -> tuple[float, float, float]:
    """-E_p[log q] + E_q[log q] whatever μ is, if it is wide enough for bounded weights."""
    return (1 + m**2) / (2 * s**2) - 0.5, m / s**2, 1 - (1 + m**2) / s**2


def likelihood(m: float, s: float, u: float, v: float) -> tuple[float, float, float]:
    value, d_m, d_log_s = forward_kl(m, s, u, v)
    return value + 0.5 + math.log(s) + 0.5 * math.log(2 * math.pi), d_m, d_log_s


def alpha_divergence(alpha: float) -> Callable[..., Any]:
    def closed_form(m: float, s: float, u: float, v: float) -> tuple[float, float, float]:
        """Rényi's divergence of N(0, 1) from N(m, s²) over α, and log Z / (α - 1)."""
        t = alpha * s**2 + 1 - alpha
        value = math.log(s) + math.log(s**2 / t) / (2 * (alpha - 1)) + alpha * m**2 / (2 * t)
        d_log_s = 1 + (1 - alpha * s**2 / t) / (alpha - 1) - (alpha * m * s / t) ** 2
        return value / alpha + LOG_Z / (alpha - 1), m / t, d_log_s / alpha

    return closed_form


def jeffreys(m: float, s: float, u: float, v: float) -> tuple[float, ...]:
    both = zip(reverse_kl(m, s, u, v), forward_kl(m, s, u, v), strict=True)
    return tuple(a + b for a, b in both)


def sum_of_two(m: float, s: float, u: float, v: float) -> tuple[float, ...]:
    both = zip(half_variance(m, s, u, v), forward_kl(m, s, u, v), strict=True)
    return tuple(2 * a + b for a, b in both)


CASES: list[tuple[Loss, Callable[..., Any], tuple[float, float, float, float]]] = [
    (ReverseKL(drop=0.0), reverse_kl, (0.4, 0.7, 0.0, 1.0)),
    (ReverseKL(drop=0.0), reverse_kl, (-0.3, 1.2, 0.0, 1.0)),
    (ReverseKLPath(drop=0.0), reverse_kl, (0.4, 0.7, 0.0, 1.0)),
    (ReverseKLPath(drop=0.0), reverse_kl, (-0.3, 1.2, 0.0, 1.0)),
    (ForwardKL(), forward_kl, (0.3, 1.3, 0.3, 1.3)),
    (ForwardKL(), forward_kl, (0.3, 1.3, -0.2, 1.6)),
    (ForwardKL(baseline=0.0), likelihood, (0.3, 0.8, -0.2, 1.6)),
    (AlphaDivergence(2.0, max_weight=1e3), alpha_divergence(2.0), (0.3, 1.1, 0.2, 1.5)),
    (AlphaDivergence(1.5, max_weight=1e3), alpha_divergence(1.5), (-0.4, 1.2, -0.4, 1.2)),
    (AlphaDivergence(0.5, max_weight=1e3), alpha_divergence(0.5), (0.5, 0.8, 0.1, 1.4)),
    (Jeffreys(drop=0.0), jeffreys, (0.3, 1.3, 0.3, 1.3)),
    (Sum({"a": L2(drop=0.0), "b": ForwardKL()}, {"a": 2.0}), sum_of_two, (0.3, 1.3, 0.1, 1.5)),
    (L2(drop=0.0, centre=RunningMean()), half_variance, (0.4, 0.7, 0.2, 1.1)),
    (L2(drop=0.0, centre=LearnedLogZ()), half_square, (0.4, 0.7, 0.2, 1.1)),
    (ForwardKL(), forward_kl, (-0.4, 1.6, -0.4, 1.6)),
    (L2(drop=0.0), half_variance, (0.4, 0.7, 0.2, 1.1)),
    (L2(drop=0.0), half_variance, (-0.3, 1.4, -0.5, 0.8)),
    (LogVariance(drop=0.0), half_variance, (0.4, 0.7, 0.2, 1.1)),
    (LogVariance(drop=0.0), half_variance, (-0.3, 1.4, -0.5, 0.8)),
    (L2Plus(drop=0.0), half_square_plus, (0.6, 1.0, 0.3, 1.2)),
    (L2Plus(drop=0.0), half_square_plus, (0.2, 1.0, -0.4, 0.9)),
]


def name(value: object) -> str:
    return str(value) if isinstance(value, tuple) else getattr(value, "__name__", kind(value))


def kind(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(("loss", "closed_form", "case"), CASES, ids=name)
def test_value_and_gradient(
    loss: Loss, closed_form: Callable[..., Any], case: tuple[float, float, float, float]
) -> None:
    m, s, u, v = case
    flow = Gaussian(m, s)
    value, _ = loss(flow, points(flow, u, v, reparametrised=loss.reparametrised))
    value.backward()
    expected = closed_form(m, s, u, v)
    actual = [float(value.detach()), float(flow.m.grad), float(flow.log_s.grad)]
    # The quantile rule misses the tails beyond 1/(2N): 4e-4 of a fourth moment.
    assert actual == pytest.approx(expected, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize(
    "loss",
    [L2(), L2Plus(), LogVariance(), ForwardKL(), L2Plus(centre=RunningMean())],
    ids=kind,
)
@pytest.mark.parametrize("measure", [(0.0, 1.0), (2.0, 0.5), (-1.0, 3.0)], ids=str)
def test_zero_gradient_at_the_target_for_every_measure(
    loss: Loss, measure: tuple[float, float]
) -> None:
    flow = Gaussian(0.0, 1.0)
    value, _ = loss(flow, points(flow, *measure, reparametrised=False))
    value.backward()
    assert abs(float(value.detach())) < 1e-12
    assert abs(float(flow.m.grad)) < 1e-10
    assert abs(float(flow.log_s.grad)) < 1e-10


NOISY = [
    ReverseKL(drop=0.0), Jeffreys(drop=0.0), ForwardKL(baseline=0.0), AlphaDivergence(2.0),
    AlphaDivergence(0.5), L2(drop=0.0, centre=LearnedLogZ(1.0)),
]  # fmt: skip


@pytest.mark.parametrize("loss", NOISY, ids=kind)
def test_gradient_at_the_target_is_noise(loss: Loss) -> None:
    """Within 6 standard errors of zero over 200 batches, and not zero in each of them."""
    generator = torch.Generator().manual_seed(1)
    flow, gradients = Gaussian(0.0, 1.0), []
    u, v = (0.0, 1.0) if loss.reparametrised else (0.3, 1.4)
    for _ in range(200):
        noise = torch.randn(500, 1, generator=generator, dtype=torch.float64)
        x = flow.m + flow.log_s.exp() * noise if loss.reparametrised else u + v * noise
        log_q = (flow if loss.reparametrised else Gaussian(u, v)).log_prob(x)
        log_p, zero = log_target(x), torch.zeros(500, dtype=torch.float64)
        samples = Samples(x, log_q, log_p, (log_p - log_q).detach(), zero, zero)
        if not loss.reparametrised:
            samples = samples.detach()
        value, _ = loss(flow, samples)
        gradients.append(torch.stack(torch.autograd.grad(value, list(flow.parameters()))))
    g = torch.stack(gradients)
    se = g.std(0) / math.sqrt(len(g))
    assert bool((se > 1e-6).any())
    assert bool((g.mean(0).abs() <= 6 * se).all())


def test_path_gradient_at_the_target_is_zero_point_by_point() -> None:
    flow = Gaussian(0.0, 1.0)
    x = flow.m + flow.log_s.exp() * quantiles()[::5000]
    zero = torch.zeros(len(x), dtype=torch.float64)
    for row in range(len(x)):
        one = x[row : row + 1]
        samples = Samples(one, flow.log_prob(one), log_target(one), zero[:1], zero[:1], zero[:1])
        value, _ = ReverseKLPath(drop=0.0)(flow, samples)
        gradient = torch.autograd.grad(value, list(flow.parameters()), retain_graph=True)
        assert max(abs(float(g)) for g in gradient) < 1e-14
        noisy, _ = ReverseKL(drop=0.0)(flow, samples)
        gradient = torch.autograd.grad(noisy, list(flow.parameters()), retain_graph=True)
        assert max(abs(float(g)) for g in gradient) > 1e-3


# For each loss, what its gradient at θ is the gradient of: a function of the flow at θ', with all
# that carries no gradient taken at θ.
Objective = Callable[[Flow, Flow, Samples], Tensor]


def half_squares(shape: Callable[[Tensor], Tensor]) -> Objective:
    def objective(flow: Flow, held: Flow, samples: Samples) -> Tensor:
        weight = kept(samples.log_p - held.log_prob(samples.x), 0.01)
        k = masked_mean(samples.log_p - held.log_prob(samples.x), weight)
        return 0.5 * masked_mean(shape(samples.log_p - flow.log_prob(samples.x) - k) ** 2, weight)

    return objective


def half_variances(flow: Flow, held: Flow, samples: Samples) -> Tensor:
    weight = kept(samples.log_p - held.log_prob(samples.x), 0.01)
    r = samples.log_p - flow.log_prob(samples.x)
    return 0.5 * masked_mean((r - masked_mean(r, weight)) ** 2, weight)


def contrast(flow: Flow, held: Flow, samples: Samples) -> Tensor:
    w = torch.softmax(samples.log_p - samples.log_q, 0)
    v = torch.softmax(held.log_prob(samples.x) - samples.log_q, 0)
    return -((w - v) * flow.log_prob(samples.x)).sum()


def renyi(flow: Flow, held: Flow, samples: Samples) -> Tensor:
    log_w = 2 * samples.log_p - flow.log_prob(samples.x) - samples.log_q
    return 0.5 * (log_w.logsumexp(0) - math.log(len(log_w)))


def free_energy(flow: Flow, held: Flow, samples: Samples) -> Tensor:
    x, log_q = flow.rsample_and_log_prob(200, generator=torch.Generator().manual_seed(7))
    return (log_q + (x**2).sum(1)).mean()


def free_energy_along_the_path(flow: Flow, held: Flow, samples: Samples) -> Tensor:
    x, _ = flow.rsample_and_log_prob(200, generator=torch.Generator().manual_seed(7))
    return (held.log_prob(x) + (x**2).sum(1)).mean()


def symmetric(flow: Flow, held: Flow, samples: Samples) -> Tensor:
    return free_energy(flow, held, samples) + contrast(flow, held, samples)


@pytest.mark.parametrize(
    ("loss", "objective"),
    [
        (L2(), half_squares(lambda d: d)),
        (L2Plus(), half_squares(torch.relu)),
        (LogVariance(), half_variances),
        (ForwardKL(max_weight=1e3), contrast),
        (AlphaDivergence(max_weight=1e3), renyi),
        (ReverseKL(drop=0.0), free_energy),
        (ReverseKLPath(drop=0.0), free_energy_along_the_path),
        (Jeffreys(drop=0.0, max_weight=1e3), symmetric),
    ],
    ids=name,
)
def test_gradient_on_a_spline_flow_against_finite_differences(
    loss: Loss, objective: Objective
) -> None:
    torch.set_default_dtype(torch.float64)
    sizes = {"n_couplings": 2, "hidden": (8,), "n_circle_couplings": 2, "circle_hidden": (8,)}
    flow = bent(spline_flow([True, False, False], **sizes, n_frequencies=2, seed=3), 0.1)
    zero = torch.zeros(200)
    if loss.reparametrised:
        x, log_q = flow.rsample_and_log_prob(200, generator=torch.Generator().manual_seed(7))
    else:
        x = torch.randn(200, 3)
        log_q = -0.5 * (x**2).sum(1) - 1.5 * math.log(2 * math.pi)
    log_p = -(x**2).sum(1)
    samples = Samples(x, log_q, log_p, (log_p - log_q).detach(), zero, zero)
    parameters, held = list(flow.parameters()), copy.deepcopy(flow)
    value, _ = loss(flow, samples)
    gradient = torch.autograd.grad(value, parameters)
    direction = perturbation(flow, 1.0, seed=2)
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))

    @torch.no_grad()
    def at(step: float) -> float:
        for p, d in zip(parameters, direction, strict=True):
            p.add_(step * d)
        value = float(objective(flow, held, samples.detach()))
        for p, d in zip(parameters, direction, strict=True):
            p.sub_(step * d)
        return value

    h = 1e-5
    assert slope == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-5)


def test_learned_log_z_finds_log_z_where_the_mean_of_r_does_not() -> None:
    flow, generator = Gaussian(0.5, 1.3), torch.Generator().manual_seed(0)
    learned, running = LearnedLogZ(0.02), RunningMean(0.98)
    values = []
    for _ in range(600):
        noise = torch.randn(100, 1, generator=generator, dtype=torch.float64)
        x = (0.5 + 1.3 * noise).detach()
        log_q, log_p = flow.log_prob(x).detach(), log_target(x)
        zero = torch.zeros(100, dtype=torch.float64)
        samples = Samples(x, log_q, log_p, log_p - log_q, zero, zero)
        pair = [c(log_p - log_q, torch.ones_like(zero), samples) for c in (learned, running)]
        values.append(torch.stack(pair))
    late = torch.stack(values[200:]).mean(0)
    divergence = -math.log(1.3) + 0.5 * (1.3**2 + 0.5**2 - 1)
    assert float(late[0]) == pytest.approx(LOG_Z, abs=0.02)
    assert float(late[1]) == pytest.approx(LOG_Z - divergence, abs=0.03)
    state, again = learned.state_dict(), LearnedLogZ(0.02)
    again.load_state_dict(state, spline_flow([False], n_couplings=1, hidden=(4,)))
    assert torch.equal(again.state_dict()["k"], state["k"])


def test_frozen_parameters_are_free_again_afterwards() -> None:
    flow = Gaussian(0.3, 0.8)
    with frozen(flow):
        assert not flow.log_prob(quantiles(3)).requires_grad
    assert flow.log_prob(quantiles(3)).requires_grad


def test_what_losses_need() -> None:
    assert ForwardKL().needs == AlphaDivergence().needs == Weights.RELATIVE
    assert ForwardKL(baseline=0.0).needs == L2().needs == Weights.NONE
    assert L2Plus(centre=LearnedLogZ()).needs == Weights.ABSOLUTE
    both = Sum({"a": L2(centre=LearnedLogZ()), "b": ReverseKL()})
    assert both.needs == Weights.ABSOLUTE
    assert both.reparametrised
    assert not Sum({"a": L2()}).reparametrised


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AlphaDivergence(0.0), "Expected alpha > 0 and not 1, got 0.0; loss=forward_kl"),
        (lambda: AlphaDivergence(1.0), "Expected alpha > 0 and not 1, got 1.0"),
        (lambda: AlphaDivergence(-2.0), "Expected alpha > 0 and not 1, got -2.0"),
        (lambda: AlphaDivergence(math.nan), "Expected alpha > 0"),
        (lambda: AlphaDivergence(max_weight=1.0), "Expected max_weight > 1, got 1.0"),
        (lambda: ForwardKL(baseline=1.5), r"Expected baseline in \[0, 1\], got 1.5"),
        (lambda: RunningMean(1.0), r"Expected decay in \[0, 1\), got 1.0"),
        (lambda: LearnedLogZ(0.0), r"Expected rate in \(0, 1\], got 0.0"),
        (lambda: Sum({}), "at least one loss, got none"),
        (lambda: Sum({"a": L2()}, {"b": 1.0}), r"Expected coefficients of \['a'\], got"),
        (lambda: Sum({"a": L2()}, {"a": 0.0}), "Expected coefficient of 'a' > 0, got 0.0"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], object], message: str) -> None:
    with pytest.raises(FlowInputError, match=message):
        build()


def test_rows_without_a_weight_pass_nothing() -> None:
    flow = Gaussian(0.3, 0.8)
    good = points(flow, 0.0, 1.0, reparametrised=False)[:1000]
    bad = good[:3]
    bad = Samples(
        bad.x, bad.log_q, torch.full((3,), -torch.inf).double(),
        torch.tensor([-torch.inf, torch.nan, torch.inf]).double(), bad.potential, bad.log_jac,
    )  # fmt: skip
    for loss in (L2(drop=0.0), L2Plus(drop=0.0), LogVariance(drop=0.0)):
        expected = torch.autograd.grad(loss(flow, good)[0], list(flow.parameters()))
        actual = torch.autograd.grad(loss(flow, Samples.cat([good, bad]))[0], flow.parameters())
        assert torch.allclose(torch.stack(actual), torch.stack(expected), rtol=1e-12)


def test_one_weight_cannot_rule_the_forward_kl() -> None:
    flow = Gaussian(0.3, 0.8)
    samples = points(flow, 0.3, 0.8, reparametrised=False)[::2000]
    log_w = torch.zeros(len(samples), dtype=torch.float64)
    log_w[0] = 20.0
    samples = replace(samples, log_w=log_w)

    def gradient(loss: Loss) -> float:
        return float(torch.autograd.grad(loss(flow, samples)[0], flow.m)[0])

    # One point of 101 would have weight 101; d log q / dm at it is (x - m)/s².
    score = float((samples.x[0, 0] - 0.3) / 0.8**2)
    others = float(((samples.x[1:, 0] - 0.3) / 0.8**2).sum())
    w, rest = 10.0, 101 / (math.exp(20) + 100)
    mean = (w + 100 * rest) / 101
    expected = -((w - mean) * score + (rest - mean) * others) / 101
    assert gradient(ForwardKL(max_weight=10.0)) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(FlowInputError, match="Expected max_weight > 1, got 1"):
        ForwardKL(max_weight=1.0)


def test_kept_drops_the_lowest_share() -> None:
    log_w = torch.tensor([0.0, -5.0, 1.0, -torch.inf, 2.0, -1.0, 3.0, 4.0, 5.0, 6.0]).double()
    assert kept(log_w, 0.0).tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert kept(log_w, 0.2).tolist() == [1, 0, 1, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("drop", [-0.1, 1.0])
@pytest.mark.parametrize("loss", [ReverseKL, L2, L2Plus, LogVariance])
def test_share_out_of_range(loss: Callable[..., Loss], drop: float) -> None:
    with pytest.raises(FlowInputError, match=r"Expected drop in \[0, 1\)"):
        loss(drop=drop)
