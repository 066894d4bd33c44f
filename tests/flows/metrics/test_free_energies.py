"""Free energy differences of Gaussians, whose partition functions are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flows.errors import FlowInputError, OverlapError
from flows.metrics.free_energies import bar, mbar, perturbation, require_overlap

N = 4000
D = 3
START, END = 1.0, 1.3
"""Widths σ of p̃ = exp(-|x - m|²/2σ²) at the ends; Z = (2π)^{D/2} σ^D."""

EXACT = -D * math.log(END / START)

pytestmark = pytest.mark.filterwarnings("ignore:.*:SyntaxWarning")


def log_p(x: Tensor, sigma: float, shift: float = 0.0) -> Tensor:
    return -0.5 * ((x - shift) / sigma).square().sum(-1)


def drawn(sigma: float, seed: int, *, shift: float = 0.0, n: int = N) -> tuple[Tensor, Tensor]:
    """Points of a Gaussian and their normalised log density."""
    z = torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = shift + sigma * z
    return x, log_p(x, sigma, shift) - D * math.log(sigma * math.sqrt(2 * math.pi))


def by_perturbation(seed: int) -> tuple[float, float]:
    x, log_q = drawn(1.2, seed)
    return perturbation(log_p(x, START) - log_q, log_p(x, END, 0.3) - log_q)


def by_bar(seed: int) -> tuple[float, float]:
    (x, log_q), (y, log_q_y) = drawn(1.1, 2 * seed), drawn(1.4, 2 * seed + 1, shift=0.3)
    return bar(
        log_p(x, START) - log_p(x, END, 0.3),
        log_p(y, END, 0.3) - log_p(y, START),
        log_w_start=log_p(x, START) - log_q,
        log_w_end=log_p(y, END, 0.3) - log_q_y,
        generator=torch.Generator().manual_seed(seed),
        n_rep=20,
    )


def by_mbar(seed: int) -> tuple[float, float]:
    (x, _), (y, _) = drawn(1.1, 2 * seed), drawn(1.4, 2 * seed + 1, shift=0.3)
    both = torch.cat([x, y])
    # The densities sampled are given up to constants, which must not matter.
    log_q = torch.stack([log_p(both, 1.1) + 7.0, log_p(both, 1.4, 0.3) - 3.0])
    return mbar(log_q, (N, N), torch.stack([log_p(both, START), log_p(both, END, 0.3)]))


@pytest.mark.parametrize("method", [by_perturbation, by_bar, by_mbar])
def test_errors_are_calibrated(method: object) -> None:
    """30 repetitions: mean within 4 errors, deviation of z-scores within 4 of its error of 1."""
    found = [method(seed) for seed in range(30)]  # type: ignore[operator]
    z = torch.tensor([(value - EXACT) / se for value, se in found])
    assert abs(float(z.mean())) < 4 / math.sqrt(30)
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(60)
    assert max(se for _, se in found) < 0.05


def test_a_map_that_fits_leaves_no_error() -> None:
    """Noise of one row through the exact map of each end: every weight is its Z."""
    z, log_base = drawn(1.0, 0)
    start, end = 1.0 * z, 0.3 + 1.3 * z
    value, se = perturbation(
        log_p(start, START) - log_base, log_p(end, END, 0.3) - (log_base - D * math.log(END))
    )
    assert value == pytest.approx(EXACT, abs=1e-12)
    assert se < 1e-12


def test_bar_of_equal_weights_is_that_of_pymbar() -> None:
    from pymbar import bar as theirs

    (x, _), (y, _) = drawn(START, 0), drawn(END, 1, shift=0.3, n=1000)
    work, back = log_p(x, START) - log_p(x, END, 0.3), log_p(y, END, 0.3) - log_p(y, START)
    errors = np.geterr()
    ours = bar(
        work, back, log_w_start=torch.zeros(N), log_w_end=torch.zeros(1000),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert np.geterr() == errors
    expected = theirs(work.numpy(), back.numpy())
    assert ours.value == pytest.approx(expected["Delta_f"], abs=1e-9)
    assert ours.se == pytest.approx(expected["dDelta_f"], rel=0.5)  # 50 replicates: 10 %


def test_a_point_that_is_impossible_at_the_other_end_does_no_harm() -> None:
    x, log_q = drawn(1.2, 0)
    y, log_q_y = drawn(1.2, 1)
    cut = torch.where(x[:, 0] > 0, log_p(x, START), -torch.inf)
    cut_y = torch.where(y[:, 0] > 0, log_p(y, START), -torch.inf)
    value, se = perturbation(log_p(x, START) - log_q, cut - log_q)
    assert abs(value - math.log(2)) < 4 * se
    both = torch.cat([x, y])
    whole, half = log_p(both, START), torch.cat([cut, cut_y])
    q = log_p(both, 1.2)
    value, se = mbar(torch.stack([q, q]), (N, N), torch.stack([whole, half]))
    assert abs(value - math.log(2)) < 4 * se
    value, se = bar(
        log_p(x, START) - cut, (cut_y - log_p(y, START)).nan_to_num(0.0),
        log_w_start=log_p(x, START) - log_q, log_w_end=cut_y - log_q_y,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert abs(value - math.log(2)) < 4 * se


def test_ends_that_do_not_overlap_are_refused() -> None:
    (x, log_q), (y, log_q_y) = drawn(1.0, 0), drawn(1.0, 1, shift=8.0)
    with pytest.raises(OverlapError, match="at least 100 effective samples for the end, got"):
        perturbation(log_p(x, 1.0) - log_q, log_p(x, 1.0, 8.0) - log_q)
    with pytest.raises(OverlapError, match=r"Expected the ends to overlap by 0.06 or more, got"):
        bar(
            log_p(x, 1.0) - log_p(x, 1.0, 8.0),
            log_p(y, 1.0, 8.0) - log_p(y, 1.0),
            log_w_start=log_p(x, 1.0) - log_q,
            log_w_end=log_p(y, 1.0, 8.0) - log_q_y,
            generator=torch.Generator().manual_seed(0),
        )
    both = torch.cat([x, y])
    q = torch.stack([log_p(both, 1.0)] * 2)
    with pytest.raises(OverlapError, match="for the end"):
        mbar(q, (N, N), torch.stack([log_p(both, 1.0), log_p(both, 1.0, 16.0)]))


def test_weights_that_carry_nothing_are_refused() -> None:
    one = torch.full((1000,), -torch.inf)
    one[3] = 0.0
    with pytest.raises(OverlapError, match="at least 100 effective samples for a mean, got 1 of"):
        require_overlap(one, "a mean")
    # Too narrow by half: k = 1 - 0.5² = 0.75.
    x, log_q = drawn(0.5, 0, n=100_000)
    heavy = log_p(x, 1.0) - log_q
    with pytest.raises(OverlapError, match=r"k below 0.70 for a mean, got 0.*% of all weight"):
        require_overlap(heavy, "a mean", least=1.0)
    # The same tail on top of equal weights a thousand times as large: nothing rests on it.
    level = heavy.logsumexp(0) - math.log(len(heavy)) + math.log(1000.0)
    require_overlap(torch.logaddexp(heavy, level), "a mean")


def test_bad_arguments_raise() -> None:
    with pytest.raises(FlowInputError, match=r"log_w_end of shape \[5\] like log_w_start"):
        perturbation(torch.zeros(5), torch.zeros(4))
    with pytest.raises(FlowInputError, match="K counts that add up to N"):
        mbar(torch.zeros(2, 5), (2, 2), torch.zeros(2, 5))
