"""Losses against closed forms for Gaussians: q = N(m, s²), p̃ = Z N(0, 1), points from N(u, v²).

r = log p̃ - log q is a x² + b x + c with a = (1/s² - 1)/2 and b = -m/s², so that every moment is
known. The points are the quantiles of their density at equal steps: a rule without noise.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flows.build import spline_flow
from flows.errors import FlowInputError
from flows.losses import L2, ForwardKL, L2Plus, LogVariance, Loss, ReverseKL
from flows.losses.base import kept, masked_mean
from flows.types import Samples

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
    x = flow.m + flow.log_s.exp() * quantiles() if reparametrised else u + v * quantiles()
    log_q, log_p = flow.log_prob(x), log_target(x)
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


def forward_kl(m: float, s: float, u: float, v: float) -> tuple[float, float, float]:
    """For points of q itself, u = m and v = s > 1: the weights are bounded."""
    return (1 + m**2) / (2 * s**2) - 0.5, m / s**2, 1 - (1 + m**2) / s**2


CASES: list[tuple[Loss, Callable[..., Any], tuple[float, float, float, float]]] = [
    (ReverseKL(drop=0.0), reverse_kl, (0.4, 0.7, 0.0, 1.0)),
    (ReverseKL(drop=0.0), reverse_kl, (-0.3, 1.2, 0.0, 1.0)),
    (ForwardKL(), forward_kl, (0.3, 1.3, 0.3, 1.3)),
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


@pytest.mark.parametrize("loss", [L2(), L2Plus(), LogVariance(), ForwardKL()], ids=kind)
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


@pytest.mark.parametrize("loss", [L2(), L2Plus(), LogVariance()], ids=kind)
def test_gradient_on_a_spline_flow_against_finite_differences(loss: Loss) -> None:
    torch.set_default_dtype(torch.float64)
    flow = spline_flow([True, False, False], n_couplings=2, hidden=(8,), seed=3)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn_like(p))
    x = torch.randn(200, 3)
    zero = torch.zeros(200)
    samples = Samples(x, flow.log_prob(x).detach(), -(x**2).sum(1), zero, zero, zero)
    centre = masked_mean(
        samples.log_p - samples.log_q, kept(samples.log_p - samples.log_q, loss.drop)
    )
    parameters = list(flow.parameters())
    value, _ = loss(flow, samples)
    gradient = torch.autograd.grad(value, parameters)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))

    def at(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(step * d)
            r = samples.log_p - flow.log_prob(x)
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(step * d)
        weight = kept(samples.log_p - samples.log_q, loss.drop)
        # K carries no gradient in L2 and L2+: it stays where it was.
        k = masked_mean(r, weight) if isinstance(loss, LogVariance) else centre
        shape = loss.shape(r - k) if isinstance(loss, L2) else r - k
        return float(0.5 * masked_mean(shape**2, weight))

    h = 1e-5
    assert slope == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-5)


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
