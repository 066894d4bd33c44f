"""What importance weights say: ESS, log Z, ELBO, reverse KL, Pareto k, weighted means, resampling.

Every function takes the log weights log w = log p - log q of n points drawn from q, [n], does its
sums in float64, and shares one rule for the values: a row of -inf is a legitimate weight of zero
and counts in n; NaN or +inf is an error in what came before and raises `FlowInputError`.
Standard errors are those of independent rows; with an infinite variance of w (Pareto k above 1/2)
they are too small, which a bootstrap cannot mend either.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flows.errors import FlowInputError


class Estimate(NamedTuple):
    """A number and its standard error, in the same unit."""

    value: float
    se: float


class Verdict(NamedTuple):
    """Whether weights can be trusted, and why, in words."""

    reliable: bool
    reason: str


class EssCurve(NamedTuple):
    """ESS / N as a function of N.

    Attributes:
        sizes: Sample sizes N, int64 [k].
        mean: ESS / N averaged over disjoint blocks of N rows, [k].
        std: Standard deviation between the blocks, [k]; NaN where only one block fits.
    """

    sizes: Tensor
    mean: Tensor
    std: Tensor


def check_log_weights(log_w: Tensor, *, min_rows: int = 1, positive: bool = False) -> Tensor:
    """Return `log_w` detached and in float64 once it is known to be a set of log weights.

    Args:
        log_w: Log weights, [n].
        min_rows: Smallest n allowed.
        positive: Whether at least one weight must be above zero.

    Raises:
        FlowInputError: Wrong shape, too few rows, NaN or +inf, or every weight zero.
    """
    if log_w.ndim != 1 or log_w.shape[0] < min_rows:
        raise FlowInputError(
            f"Expected log_w of shape [n] with n >= {min_rows}, got {list(log_w.shape)}."
        )
    out = log_w.detach().to(torch.float64)
    n_bad = int((out.isnan() | (out == math.inf)).sum())
    if n_bad:
        raise FlowInputError(f"Expected log_w below +inf and not NaN, got {n_bad} such rows.")
    if positive and bool((out == -math.inf).all()):
        raise FlowInputError("Expected log_w with at least one row above -inf, got none.")
    return out


def known(log_w: Tensor) -> Tensor:
    """Return log weights [n] with -inf, weight zero, where there is no number."""
    return torch.where(torch.isfinite(log_w), log_w, -torch.inf)


def ess(log_w: Tensor) -> float:
    """Return the reverse Kish effective sample size per sample, unclipped.

        ESS / N = (Σ w)² / (N Σ w²)

    Args:
        log_w: Log weights, [n].

    Returns:
        A fraction between 1/n (one weight holds everything) and 1 (all equal); 0 if all are zero.
    """
    lw = check_log_weights(log_w)
    top = lw.max()
    if top == -math.inf:
        return 0.0
    w = (lw - top).exp()
    return float(w.sum() ** 2 / (len(w) * w.square().sum()))


def effective_size(log_w: Tensor) -> float:
    """Return the effective number of samples (Σ w)² / Σ w², between 0 and n, of `log_w` [n]."""
    return len(log_w) * ess(log_w)


def clip_log_weights(log_w: Tensor, fraction: float = 1e-4) -> Tensor:
    """Lower the largest log weights to the K-th largest, K = max(1, round(fraction n)).

    This biases every estimate made from the result: name the fraction wherever it is shown.

    Args:
        log_w: Log weights, [n].
        fraction: Share of rows that end up equal to the largest, in (0, 1].

    Returns:
        Clipped log weights, float64 [n]. With fewer than K positive weights, the smallest of
        them is the limit.
    """
    lw = check_log_weights(log_w)
    if not 0 < fraction <= 1:
        raise FlowInputError(f"Expected fraction in (0, 1], got {fraction}.")
    n_positive = int((lw > -math.inf).sum())
    if n_positive == 0:
        return lw.clone()
    k = min(max(1, round(fraction * len(lw))), n_positive)
    return lw.clamp(max=lw.topk(k).values[-1])


def ess_curve(log_w: Tensor, sizes: Iterable[int], *, max_blocks: int = 100) -> EssCurve:
    """Return ESS / N for several N: flat if the tail of the weights has been seen, falling if not.

    Args:
        log_w: Log weights in the order drawn, [n]; the rows are taken to be exchangeable.
        sizes: Values of N, each in 1..n.
        max_blocks: Most disjoint blocks of N consecutive rows averaged over.
    """
    lw = check_log_weights(log_w)
    ns = list(sizes)
    if not ns or min(ns) < 1 or max(ns) > len(lw):
        raise FlowInputError(f"Expected sizes within 1..{len(lw)}, got {ns}.")
    if max_blocks < 1:
        raise FlowInputError(f"Expected max_blocks >= 1, got {max_blocks}.")
    mean, std = [], []
    for n in ns:
        blocks = min(len(lw) // n, max_blocks)
        values = torch.tensor(
            [ess(block) for block in lw[: blocks * n].reshape(blocks, n).unbind()],
            dtype=torch.float64,
        )
        mean.append(float(values.mean()))
        std.append(float(values.std()) if blocks > 1 else math.nan)
    return EssCurve(
        torch.tensor(ns), torch.tensor(mean, dtype=torch.float64), torch.tensor(std).double()
    )


def log_z(log_w: Tensor) -> Estimate:
    """Return log Z = log mean w, in nats, with the delta-method error std(w) / (√n mean w)."""
    lw = check_log_weights(log_w, min_rows=2, positive=True)
    return Estimate(float(lw.logsumexp(0)) - math.log(len(lw)), _standard_error(_relative(lw)))


def elbo(log_w: Tensor) -> Estimate:
    """Return the evidence lower bound of log Z, in nats.

        ELBO = mean of log w over the rows with w > 0, plus log f, f the share of such rows

    For f = 1 it is the plain mean of log w. Otherwise the plain mean is -inf: what is bounded
    instead is log Z by the flow conditioned on w > 0, whose log density is log q - log f.

    Args:
        log_w: Log weights, [n].
    """
    n = len(check_log_weights(log_w, positive=True))
    lw = _positive_rows(log_w)
    f = len(lw) / n
    # The mean over the rows kept and the share kept are uncorrelated: their variances add.
    se = math.hypot(_standard_error(lw), math.sqrt((1 - f) / (f * n)))
    return Estimate(float(lw.mean()) + math.log(f), se)


def reverse_kl(log_w: Tensor) -> Estimate:
    """Return KL(q || p) = log Z - ELBO, in nats, with the joint delta-method standard error.

    log Z and ELBO come from the same rows, so their errors do not add. Rows of zero weight, for
    which the divergence would be infinite, are left to the flow's domain: the result is that of
    q conditioned on w > 0, is never negative, and equals `log_z` - `elbo`.

    Args:
        log_w: Log weights, [n].
    """
    lw = _positive_rows(log_w)
    value = float(lw.logsumexp(0)) - math.log(len(lw)) - float(lw.mean())
    return Estimate(max(value, 0.0), _standard_error(_relative(lw) - lw))


def pareto_k(log_w: Tensor) -> float:
    """Return k-hat, the shape of a generalised Pareto tail fitted to the largest weights (PSIS).

    Weights have finite moments up to order 1/k: below 1/2 the variance of w is finite. Compare
    with `pareto_k_threshold`. The 3 √n largest positive weights are fitted (n / 5 if fewer).

    Args:
        log_w: Log weights, [n].

    Returns:
        k-hat; -inf if the largest weights are all equal, and +inf where no tail can be fitted:
        fewer than 25 positive weights, or so wide a tail that most of it underflows.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling,
        arXiv:1507.02646.
    """
    from arviz_stats.base.array import array_stats  # slow to import, needed only here

    psis: Any = array_stats  # its methods are not typed
    lw = check_log_weights(log_w)
    lw = lw[lw > -math.inf]
    n = len(lw)
    if n < 25:
        return math.inf
    n_tail = math.floor(3 * math.sqrt(n)) if n > 225 else n // 5
    tail = lw.topk(n_tail + 1).values
    if float(tail[0] - tail[n_tail - 1]) < 1e-12:
        return -math.inf
    # arviz_stats divides by the first quartile of what exceeds the cutoff, and from a zero there
    # goes on to a harmless looking k: such tails are answered here.
    quartile = tail[n_tail - math.floor(n_tail / 4 + 0.5)]
    if float((quartile - tail[0]).exp() - (tail[n_tail] - tail[0]).exp()) < 1e-290:
        return math.inf
    _, k = psis.psislw(-lw.cpu().numpy())
    return float(np.asarray(k))


def pareto_k_threshold(n: int) -> float:
    """Return min(1 - 1/log10 n, 0.7): estimates from n weights are reliable with k-hat below."""
    if n < 2:
        raise FlowInputError(f"Expected n >= 2, got {n}.")
    return min(1 - 1 / math.log10(n), 0.7)


def verdict(log_w: Tensor, *, min_size: float = 100.0) -> Verdict:
    """Say whether averages over weighted samples can be believed, as far as weights can tell.

    Weights know nothing of a region that no sample has seen.

    Args:
        log_w: Log weights, [n], n >= 2.
        min_size: Effective samples below which an average is not worth its error.
    """
    n = len(check_log_weights(log_w, min_rows=2))
    size, k, limit = effective_size(log_w), pareto_k(log_w), pareto_k_threshold(n)
    found = f"{size:.4g} effective of {n} samples"
    if size < min_size:
        return Verdict(False, f"{found}, where at least {min_size:g} are needed")
    if k >= limit:
        return Verdict(
            False, f"{found}, but Pareto k {k:.2f} is not below {limit:.2f}: few weights carry all"
        )
    return Verdict(True, f"{found}, Pareto k {k:.2f} below {limit:.2f}")


def mean(values: Tensor) -> Estimate:
    """Return the plain mean of `values` [n], that is of q itself, with its standard error."""
    if values.ndim != 1 or len(values) < 2:
        raise FlowInputError(
            f"Expected values of shape [n] with n >= 2, got {list(values.shape)}."
        )
    return weighted_mean(
        values, torch.zeros(values.shape, dtype=torch.float64, device=values.device)
    )


def weighted_mean(values: Tensor, log_w: Tensor) -> Estimate:
    """Return the self-normalised mean Σ w v / Σ w with its delta-method standard error.

        se² = n/(n-1) Σ w̄² (v - mean)²,   w̄ = w / Σ w

    Args:
        values: Observable at each point, any unit, [n]; ignored where the weight is zero.
        log_w: Log weights, [n].

    Raises:
        FlowInputError: Shapes differ, or a value with positive weight is not finite.
    """
    lw = check_log_weights(log_w, min_rows=2, positive=True)
    if values.shape != lw.shape:
        raise FlowInputError(
            f"Expected values of shape {list(lw.shape)} like log_w, got {list(values.shape)}."
        )
    v = values.detach().to(lw).where(lw > -math.inf, 0.0)
    if not bool(v.isfinite().all()):
        n_bad = int((~v.isfinite()).sum())
        raise FlowInputError(f"Expected finite values where the weight is positive, got {n_bad}.")
    w = lw.softmax(0)
    value = (w * v).sum()
    return Estimate(float(value), _standard_error(len(w) * w * (v - value)))


def resample(
    log_w: Tensor,
    n: int,
    generator: torch.Generator,
    method: Literal["multinomial", "systematic"] = "multinomial",
) -> Tensor:
    """Draw `n` row indices with probability proportional to the weights, with replacement.

    Args:
        log_w: Log weights, [m].
        n: Number of indices.
        generator: Source of randomness, on the device of `log_w`.
        method: "multinomial" draws independently; "systematic" draws row i either floor(n w̄_i)
            or ceil(n w̄_i) times, in row order, which adds the least noise.

    Returns:
        Indices, int64 [n]; a row of zero weight is never drawn.
    """
    lw = check_log_weights(log_w, positive=True)
    if n < 1:
        raise FlowInputError(f"Expected n >= 1, got {n}.")
    cdf = (lw - lw.max()).exp().cumsum(0)
    if method == "multinomial":
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=lw.device)
    elif method == "systematic":
        shift = torch.rand(1, generator=generator, dtype=torch.float64, device=lw.device)
        u = (torch.arange(n, dtype=torch.float64, device=lw.device) + shift) / n
    else:
        raise FlowInputError(f"Expected method 'multinomial' or 'systematic', got {method!r}.")
    index = torch.searchsorted(cdf, u * cdf[-1], right=True)
    return index.clamp(max=int((lw > -math.inf).nonzero()[-1]))  # u * cdf[-1] may round up to it


def _positive_rows(log_w: Tensor) -> Tensor:
    """Return the rows above -inf, at least two of them."""
    lw = check_log_weights(log_w)
    lw = lw[lw > -math.inf]
    if len(lw) < 2:
        raise FlowInputError(f"Expected log_w with at least 2 rows above -inf, got {len(lw)}.")
    return lw


def _relative(lw: Tensor) -> Tensor:
    """Return w / mean w, [n]."""
    return len(lw) * lw.softmax(0)


def _standard_error(influence: Tensor) -> float:
    """Return std / √n, the error of the mean of n independent rows."""
    return float(influence.std()) / math.sqrt(len(influence))
