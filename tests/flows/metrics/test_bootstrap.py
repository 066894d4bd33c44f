"""Intervals against closed forms: their width, their ends, and how often they cover the truth."""

import math

import pytest
import torch
from torch import Tensor

from energies.base import R
from flows.errors import FlowInputError
from flows.metrics.bootstrap import (
    Interval,
    bootstrap,
    bootstrap_distances,
    bootstrap_means,
    bootstrap_populations,
    bootstrap_sums,
    effective_inside,
    free_energy_of,
)
from flows.metrics.histograms import (
    as_density,
    blocked_histogram,
    kl_divergence,
    torsion_histogram,
    torus_histogram,
    total_variation,
)
from flows.metrics.weights import ess, log_z, reverse_kl, weighted_mean

SIGMA = 1.2
LOG_Z = 0.5 * math.log(2 * math.pi)
BEYOND_ONE = 0.5 * math.erfc(1 / math.sqrt(2))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of N(0, SIGMA²) and their log weights towards exp(-x²/2)."""
    x = SIGMA * torch.randn(n, generator=generator(seed), dtype=torch.float64)
    log_q = -0.5 * (x / SIGMA) ** 2 - math.log(SIGMA) - LOG_Z
    return x, -0.5 * x**2 - log_q


def test_rows_agree_with_the_delta_method() -> None:
    """300 replicates give the error to 4 %; 4 of these are allowed."""
    x, log_w = draw(2000, seed=3)
    cases = [
        (log_z(log_w), lambda rows: log_z(log_w[rows]).value),
        (reverse_kl(log_w), lambda rows: reverse_kl(log_w[rows]).value),
        (weighted_mean(x**2, log_w), lambda rows: weighted_mean(x[rows] ** 2, log_w[rows]).value),
    ]
    for (value, se), statistic in cases:
        found = bootstrap(statistic, 2000, n_rep=300, generator=generator(4))
        assert found.value == pytest.approx(value, rel=1e-12)
        assert found.se == pytest.approx(se, rel=4 / math.sqrt(600))
        assert found.low < value < found.high
        assert found.high - found.low == pytest.approx(2 * 1.96 * se, rel=0.25)


def test_sums_over_blocks_scatter_like_the_rows() -> None:
    """2000 replicates give an error to 1.6 %; blocks of 50 rows must not change it."""
    x, log_w = draw(50_000, seed=5)
    expected = weighted_mean(x**2, log_w)
    found = bootstrap_means({"x2": x**2}, log_w, n_rep=2000, generator=generator(6))["x2"]
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert found.se == pytest.approx(expected.se, rel=0.08)

    w = log_w.exp()
    terms = torch.stack([torch.ones_like(w), w, w**2], dim=-1)

    def functions(sums: Tensor) -> Tensor:
        n, first, second = sums.unbind(-1)
        return torch.stack([(first / n).log(), first**2 / (n * second)], dim=-1)

    z, size = bootstrap_sums(terms, functions, n_rep=2000, generator=generator(7))
    assert z.value == pytest.approx(log_z(log_w).value, rel=1e-9)
    assert z.se == pytest.approx(log_z(log_w).se, rel=0.08)
    assert size.value == pytest.approx(ess(log_w), rel=1e-9)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """20 repetitions of 5 estimates: 95 of 100 expected, 2.2 the standard deviation."""
    covered = 0
    for seed in range(20):
        x, log_w = draw(3000, seed=seed)
        found = bootstrap_means({"x": x, "x2": x**2}, log_w, generator=generator(100 + seed))
        found |= bootstrap_populations(
            {"beyond 1": x > 1, "beyond 2": x > 2, "below -1": x < -1},
            log_w,
            generator=generator(200 + seed),
        )
        beyond_two = 0.5 * math.erfc(2 / math.sqrt(2))
        truths = (0.0, 1.0, BEYOND_ONE, beyond_two, BEYOND_ONE)
        covered += sum(
            p.low <= truth <= p.high for p, truth in zip(found.values(), truths, strict=True)
        )
    assert 88 <= covered < 100


def test_half_of_the_intervals_of_level_one_half_miss() -> None:
    """200 intervals; 4 standard deviations of 7.1 are allowed."""
    covered = 0
    for seed in range(200):
        x, log_w = draw(1000, seed=seed)
        (p,) = bootstrap_means(
            {"x2": x**2}, log_w, level=0.5, n_rep=200, generator=generator(seed)
        ).values()
        covered += p.low <= 1.0 <= p.high
    assert abs(covered - 100) < 4 * math.sqrt(50)


def test_basin_that_no_row_has_seen_is_bounded_from_above() -> None:
    _, log_w = draw(1000, seed=0)
    found = bootstrap_populations(
        {"none": torch.zeros(1000, dtype=torch.bool), "all": torch.ones(1000, dtype=torch.bool)},
        log_w, generator=generator(0),
    )  # fmt: skip
    size = 1000 * ess(log_w)
    assert found["none"] == pytest.approx((0, -math.log(0.05) / size, 0, -math.log(0.05) / size))
    assert found["all"] == pytest.approx((1, 0, 1, 1))


def test_effective_samples_inside() -> None:
    log_w = torch.tensor([3.0, 1.0, 1.0, 2.0, 9.0]).log()
    inside = torch.tensor([True, True, True, False, False])
    assert effective_inside(inside, log_w) == pytest.approx(25 / 11)
    assert effective_inside(~inside & inside, log_w) == 0


def test_replicates_that_are_infinite_end_the_interval_there() -> None:
    """One row in 1000 is inside: a third of the replicates miss it."""
    inside = torch.zeros(1000, 2)
    inside[0, 0], inside[:, 1] = 1.0, 1.0
    (found,) = bootstrap_sums(
        inside, lambda s: -(s[:, :1] / s[:, 1:]).log(), generator=generator(0)
    )
    assert found.value == pytest.approx(math.log(1000))
    assert found.se == found.high == math.inf
    assert found.low < math.log(1000)


def test_one_seed_gives_one_interval() -> None:
    x, log_w = draw(500, seed=1)
    first, second = (bootstrap_means({"x": x}, log_w, generator=generator(8)) for _ in range(2))
    assert first == second


def test_zero_weights_hide_values_that_are_not_finite() -> None:
    x, log_w = draw(100, seed=2)
    x[3], log_w[3] = math.nan, -math.inf
    found = bootstrap_means({"x": x}, log_w, generator=generator(0))["x"]
    assert found.value == pytest.approx(weighted_mean(x, log_w).value)


def test_bad_arguments_raise() -> None:
    x, log_w = draw(100, seed=2)
    with pytest.raises(FlowInputError, match="Expected n >= 30"):
        bootstrap(lambda rows: 0.0, 5, generator=generator(0))
    with pytest.raises(FlowInputError, match="Expected n >= 30"):
        bootstrap_means({"x": x[:9]}, log_w[:9], generator=generator(0))
    with pytest.raises(FlowInputError, match=r"Expected level in \(0, 1\), got 95"):
        bootstrap_means({"x": x}, log_w, level=95, generator=generator(0))
    with pytest.raises(FlowInputError, match=r"Expected values\['x'\] of shape \[100\]"):
        bootstrap_means({"x": x[:50]}, log_w, generator=generator(0))
    with pytest.raises(FlowInputError, match="at least one row above -inf"):
        bootstrap_means({"x": x}, torch.full((100,), -math.inf), generator=generator(0))
    with pytest.raises(FlowInputError, match=r"Expected terms of shape \[n, K\]"):
        bootstrap_sums(x, lambda s: s, generator=generator(0))
    x[0] = math.inf
    with pytest.raises(FlowInputError, match=r"Expected values\['x'\] finite"):
        bootstrap_means({"x": x}, log_w, generator=generator(0))


def test_distances_of_histograms_cover_the_true_ones() -> None:
    """A step of known height on the circle: TV and KL exact; 2 x 20 intervals, 38 expected."""
    reference = torch.full((10,), 1 / (2 * math.pi), dtype=torch.float64)
    true = reference * torch.tensor([1.3] * 5 + [0.7] * 5)
    distances = {"tv": total_variation, "kl": kl_divergence}
    exact = {name: distance(reference, true) for name, distance in distances.items()}
    covered = 0
    for seed in range(20):
        u = torch.rand(4000, generator=generator(seed), dtype=torch.float64)
        side = torch.rand(4000, generator=generator(50 + seed)) < 0.65
        angles = torch.where(side, u - 1, u) * math.pi
        blocks = blocked_histogram(angles, bins=10, n_blocks=100)
        found = bootstrap_distances(blocks, reference, distances, generator=generator(seed))
        assert found["tv"].value == pytest.approx(
            total_variation(reference, torsion_histogram(angles, bins=10))
        )
        covered += sum(found[k].low <= exact[k] <= found[k].high for k in exact)
    assert 34 <= covered <= 40


def test_blocks_add_up_to_the_weighted_histogram() -> None:
    pairs = 6 * torch.rand(1003, 2, generator=generator(0), dtype=torch.float64) - 3
    log_w = pairs[:, 0].clone()
    log_w[5] = -math.inf
    blocks = blocked_histogram(pairs, log_w, bins=8, n_blocks=7)
    assert blocks.shape == (7, 64)
    assert torch.allclose(as_density(blocks.sum(0), (8, 8)), torus_histogram(pairs, log_w, bins=8))


def test_free_energy_follows_the_population() -> None:
    """P = 1/(1 + e²) lies 2 RT above the rest."""
    p = 1 / (1 + math.exp(2))
    found = free_energy_of(Interval(p, 0.01, p - 0.02, p + 0.02), temperature=300)
    RT = R * 300
    assert found.value == pytest.approx(2 * RT)
    assert found.se == pytest.approx(RT * 0.01 / (p * (1 - p)))
    assert found.low == pytest.approx(-RT * math.log((p + 0.02) / (0.98 - p)))
    assert found.low < found.value < found.high
    empty = free_energy_of(Interval(0.0, 1e-3, 0.0, 1e-3), temperature=300)
    assert empty.value == empty.high == math.inf
    assert empty.low == pytest.approx(-RT * math.log(1e-3 / 0.999))
    with pytest.raises(FlowInputError, match="Expected temperature > 0 kelvin, got 0"):
        free_energy_of(found, temperature=0)
