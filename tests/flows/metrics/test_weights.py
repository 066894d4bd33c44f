"""Weights of a Gaussian proposal N(0, σ²) towards exp(-x²/2) have closed forms for everything."""

import math
import re

import pytest
import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.metrics import (
    clip_log_weights,
    effective_size,
    elbo,
    ess,
    ess_curve,
    log_z,
    mean,
    pareto_k,
    pareto_k_threshold,
    resample,
    reverse_kl,
    verdict,
    weighted_mean,
)

SIGMA = 1.2
LOG_Z = 0.5 * math.log(2 * math.pi)
REVERSE_KL = 0.5 * (SIGMA**2 - 1 - math.log(SIGMA**2))
ESS = math.sqrt(2 * SIGMA**2 - 1) / SIGMA**2
N_ERRORS = 4
"""Standard errors allowed in tests with one seed."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int, seed: int, sigma: float = SIGMA) -> tuple[Tensor, Tensor]:
    """Points of N(0, sigma²) and their log weights towards exp(-x²/2)."""
    x = sigma * torch.randn(n, generator=generator(seed), dtype=torch.float64)
    log_q = -0.5 * (x / sigma) ** 2 - math.log(sigma) - LOG_Z
    return x, -0.5 * x**2 - log_q


def test_ess_of_gaussians() -> None:
    _, log_w = draw(1_000_000, seed=0)
    assert ess(log_w) == pytest.approx(ESS, abs=2e-3)
    assert effective_size(log_w) == pytest.approx(1e6 * ess(log_w), rel=1e-12)


def test_ess_of_hand_made_weights() -> None:
    assert ess(torch.full((7,), -812.5)) == pytest.approx(1.0, abs=1e-14)
    one = torch.zeros(1000)
    one[17] = 500.0
    assert ess(one) == pytest.approx(1e-3, rel=1e-12)
    assert ess(torch.tensor([1.0, 2.0, 3.0]).log()) == pytest.approx(36 / (3 * 14), rel=1e-6)
    assert ess(torch.full((4,), -math.inf)) == 0.0


def test_rows_of_minus_inf_are_zeros() -> None:
    """Weights 1, 2, 3, 0."""
    log_w = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64).log()
    assert ess(log_w) == pytest.approx(36 / (4 * 14), rel=1e-12)
    z, se = log_z(log_w)
    assert z == pytest.approx(math.log(1.5), rel=1e-12)
    assert se == pytest.approx(math.sqrt(5 / 3) / 2 / 1.5, rel=1e-12)
    bound = math.log(6) / 3 + math.log(3 / 4)
    assert elbo(log_w).value == pytest.approx(bound, rel=1e-12)
    assert reverse_kl(log_w).value == pytest.approx(z - bound, rel=1e-12)
    nan = math.nan
    assert weighted_mean(torch.tensor([1.0, 1.0, 3.0, nan]), log_w).value == pytest.approx(2.0)


def test_zero_rows_cost_their_share_of_ess_and_of_z() -> None:
    _, log_w = draw(1000, seed=1)
    padded = torch.cat([log_w, torch.full((3000,), -math.inf, dtype=torch.float64)])
    assert ess(padded) == pytest.approx(ess(log_w) / 4, rel=1e-12)
    assert log_z(padded).value == pytest.approx(log_z(log_w).value - math.log(4), rel=1e-12)
    assert reverse_kl(padded).value == pytest.approx(reverse_kl(log_w).value, rel=1e-12)


def test_weights_are_summed_in_float64() -> None:
    """2²⁴ + 1 ones cannot even be counted in float32."""
    log_w = torch.full((2**24 + 1,), 0.1, dtype=torch.float32)
    assert log_z(log_w).value == pytest.approx(float(log_w[0]), abs=1e-12)


@pytest.mark.parametrize(
    ("statistic", "truth"),
    [
        (log_z, LOG_Z),
        (elbo, LOG_Z - REVERSE_KL),
        (reverse_kl, REVERSE_KL),
    ],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_standard_errors_are_calibrated(statistic, truth: float, zeros: bool) -> None:
    """z-scores over 300 repetitions: std within 4 of its own errors (1/√600) of 1, mean of 0."""
    keep = 0.7 if zeros else 1.0
    if zeros and statistic is not reverse_kl:
        truth += math.log(keep)
    scores = []
    for seed in range(300):
        _, log_w = draw(2000, seed)
        dropped = torch.rand(2000, generator=generator(10_000 + seed)) > keep
        value, se = statistic(log_w.masked_fill(dropped, -math.inf))
        scores.append((value - truth) / se)
    z = torch.tensor(scores)
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(600)
    assert abs(float(z.mean())) < 4 / math.sqrt(300)


def test_errors_of_means_are_calibrated() -> None:
    """E[x²] is 1 under the target and σ² under the proposal; 300 repetitions, 4 errors."""
    weighted, raw = [], []
    for seed in range(300):
        x, log_w = draw(2000, seed)
        value, se = weighted_mean(x**2, log_w)
        weighted.append((value - 1) / se)
        value, se = mean(x**2)
        raw.append((value - SIGMA**2) / se)
    for z in (torch.tensor(weighted), torch.tensor(raw)):
        assert abs(float(z.std()) - 1) < 4 / math.sqrt(600)
        assert abs(float(z.mean())) < 4 / math.sqrt(300)


def test_mean_is_the_textbook_one() -> None:
    value, se = mean(torch.tensor([1.0, 2.0, 6.0]))
    assert value == pytest.approx(3.0)
    assert se == pytest.approx(math.sqrt(7 / 3), rel=1e-12)


def test_clip_lowers_the_top_k_to_the_kth() -> None:
    log_w = torch.arange(20_000, dtype=torch.float64).flip(0)
    clipped = clip_log_weights(log_w, 1e-4)  # K = 2
    assert clipped[:3].tolist() == [19_998.0, 19_998.0, 19_997.0]
    assert torch.equal(clipped[1:], log_w[1:])
    assert torch.equal(clip_log_weights(log_w[:10], 1e-4), log_w[:10])  # K = 1 changes nothing
    assert clip_log_weights(log_w[:10], 0.5).max() == log_w[4]


def test_clip_with_fewer_positive_weights_than_k() -> None:
    log_w = torch.tensor([3.0, -math.inf, 1.0, -math.inf])
    assert clip_log_weights(log_w, 1.0).tolist() == [1.0, -math.inf, 1.0, -math.inf]


def test_ess_curve() -> None:
    _, log_w = draw(100_000, seed=5)
    curve = ess_curve(log_w, [1, 10, 1000, 100_000])
    assert curve.sizes.tolist() == [1, 10, 1000, 100_000]
    assert curve.mean[0] == pytest.approx(1.0)
    assert curve.mean[-1] == pytest.approx(ess(log_w), rel=1e-12)
    assert curve.std[-1].isnan()
    by_hand = torch.tensor([ess(log_w[i * 1000 : (i + 1) * 1000]) for i in range(100)])
    assert curve.mean[2] == pytest.approx(float(by_hand.mean()), rel=1e-6)
    assert curve.std[2] == pytest.approx(float(by_hand.std()), rel=1e-4)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_pareto_k_of_exact_pareto_weights(k: float) -> None:
    """w = u^-k has shape k; the fit to M = 3 √n points has an error near (1 + k) / √M."""
    n = 200_000
    log_w = -k * torch.rand(n, generator=generator(6), dtype=torch.float64).log()
    allowed = N_ERRORS * (1 + k) / math.sqrt(3 * math.sqrt(n))
    assert pareto_k(log_w) == pytest.approx(k, abs=allowed)
    padded = torch.cat([log_w - 900.0, torch.full((n,), -math.inf, dtype=torch.float64)])
    assert pareto_k(padded) == pytest.approx(pareto_k(log_w), abs=1e-9)


def test_pareto_k_where_no_tail_can_be_fitted() -> None:
    assert pareto_k(torch.zeros(1000)) == -math.inf
    assert pareto_k(torch.randn(24, generator=generator(7))) == math.inf
    wide = 1e4 * torch.randn(1000, generator=generator(8))
    assert pareto_k(wide) == math.inf
    one = torch.zeros(1000)
    one[3] = 50.0
    assert pareto_k(one) == math.inf


def test_pareto_k_of_a_million_weights_and_threshold() -> None:
    """Bounded weights: w ≤ √(2π) σ for σ > 1, with k = 0 or below."""
    _, log_w = draw(1_000_000, seed=9)
    assert pareto_k(log_w) < 0.0
    assert pareto_k_threshold(100) == pytest.approx(0.5)
    assert pareto_k_threshold(10**7) == 0.7


@pytest.mark.parametrize("method", ["multinomial", "systematic"])
def test_resample_counts(method) -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 5.0, 2.0, 0.0], dtype=torch.float64)
    n = 80_000
    index = resample(weights.log(), n, generator(10), method=method)
    counts = torch.bincount(index, minlength=6).double()
    expected = n * weights / weights.sum()
    allowed = 1.0 if method == "systematic" else 4 * math.sqrt(n / 4)
    assert counts.sum() == n
    assert (counts - expected).abs().max() <= allowed
    assert counts[[0, 2, 5]].sum() == 0
    assert torch.equal(index, resample(weights.log(), n, generator(10), method=method))


def test_resampled_points_follow_the_target() -> None:
    x, log_w = draw(400_000, seed=11)
    y = x[resample(log_w, 100_000, generator(12))]
    assert float(y.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 100_000 + 2 / 400_000))


@pytest.mark.parametrize(
    "function",
    [ess, effective_size, clip_log_weights, log_z, elbo, reverse_kl, pareto_k],
)
def test_bad_log_weights_raise(function) -> None:
    with pytest.raises(FlowInputError, match=r"Expected log_w .* got 1 such"):
        function(torch.tensor([0.0, math.nan, 1.0]))
    with pytest.raises(FlowInputError, match=r"Expected log_w .* got 2 such"):
        function(torch.tensor([math.inf, 0.0, math.inf]))
    with pytest.raises(FlowInputError, match=r"Expected log_w of shape \[n\].*got \[3, 1\]"):
        function(torch.zeros(3, 1))


@pytest.mark.parametrize("function", [log_z, elbo, reverse_kl])
def test_no_positive_weight_raises(function) -> None:
    with pytest.raises(FlowInputError, match="above -inf, got"):
        function(torch.full((5,), -math.inf))


def test_other_bad_arguments_raise() -> None:
    log_w = torch.zeros(5)
    with pytest.raises(FlowInputError, match="Expected fraction"):
        clip_log_weights(log_w, 0.0)
    with pytest.raises(FlowInputError, match=r"Expected sizes within 1\.\.5, got \[6\]"):
        ess_curve(log_w, [6])
    with pytest.raises(FlowInputError, match="Expected values of shape"):
        weighted_mean(torch.zeros(5, 1), log_w)
    with pytest.raises(FlowInputError, match="Expected values of shape"):
        mean(torch.zeros(5, 1))
    with pytest.raises(FlowInputError, match="Expected finite values"):
        weighted_mean(torch.tensor([0.0, 0.0, math.nan, 0.0, 0.0]), log_w)
    with pytest.raises(FlowInputError, match="Expected method"):
        resample(log_w, 3, generator(0), method="stratified")  # type: ignore[arg-type]


def test_verdict_is_in_words() -> None:
    _, log_w = draw(10_000, seed=9)
    good = verdict(log_w)
    assert good.reliable
    assert re.fullmatch(
        r"\d+ effective of 10000 samples, Pareto k -?\d\.\d\d below 0\.70", good.reason
    )
    few = verdict(log_w, min_size=1e5)
    assert not few.reliable
    assert few.reason.endswith("where at least 100000 are needed")
    # w = q^-0.9 has the tail index k = 0.9.
    x, _ = draw(10_000, seed=9)
    heavy = verdict(0.5 * x**2 / SIGMA**2 * 0.9, min_size=2)
    assert not heavy.reliable
    assert "few weights carry all" in heavy.reason
    one = torch.full((1000,), -900.0)
    one[4] = 0.0
    assert verdict(one) == (False, "1 effective of 1000 samples, where at least 100 are needed")
    assert not verdict(torch.full((50,), -math.inf)).reliable
