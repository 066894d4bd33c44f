"""Histograms of angles on the circle and on the torus, and distances between them.

A histogram is a density on [-π, π)^d with `bins` equal bins a dimension: float64, shape
[bins] * d, and its sum times the bin volume (2π / bins)^d is one. Angles outside [-π, π) are
wrapped. Rows are counted in chunks, so memory beyond the input is bounded.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.metrics.weights import check_log_weights

_CHUNK = 1 << 20


def torus_histogram(angles: Tensor, log_w: Tensor | None = None, bins: int = 100) -> Tensor:
    """Return the density of pairs of angles, for instance a Ramachandran map.

    Args:
        angles: Pairs of angles, radians, [n, 2].
        log_w: Log weights, [n]; all equal if None. A row of -inf is not counted.
        bins: Number of bins a dimension.

    Returns:
        Density, rad⁻², float64 [bins, bins]; the first index belongs to the first angle.

    Raises:
        FlowInputError: Wrong shape, or an angle of positive weight is not finite.
    """
    if angles.ndim != 2 or angles.shape[1] != 2:
        raise FlowInputError(f"Expected angles of shape [n, 2], got {list(angles.shape)}.")
    return _histogram(angles, log_w, bins)


def torsion_histogram(angles: Tensor, log_w: Tensor | None = None, bins: int = 100) -> Tensor:
    """Return the density of one angle.

    Args:
        angles: Angles, radians, [n].
        log_w: Log weights, [n]; all equal if None. A row of -inf is not counted.
        bins: Number of bins.

    Returns:
        Density, rad⁻¹, float64 [bins].

    Raises:
        FlowInputError: Wrong shape, or an angle of positive weight is not finite.
    """
    if angles.ndim != 1:
        raise FlowInputError(f"Expected angles of shape [n], got {list(angles.shape)}.")
    return _histogram(angles[:, None], log_w, bins)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Return TV(p, q) = ½ ∫ |p - q|, between 0 and 1.

    Args:
        p: Density on the torus, [bins] * d.
        q: Density on the torus, same shape.
    """
    _check_pair(p, q)
    return float(0.5 * (p - q).abs().sum() * _bin_volume(p))


def kl_divergence(p: Tensor, q: Tensor, eps: float = 1e-10) -> float:
    """Return KL(p || q) = ∫ p log((p + eps) / (q + eps)), in nats.

    Args:
        p: Density of the reference, [bins] * d.
        q: Density of the model, same shape.
        eps: Added to both densities; where q is empty it sets the price of a missed bin.
    """
    _check_pair(p, q)
    if not eps > 0:
        raise FlowInputError(f"Expected eps > 0, got {eps}.")
    return float((p * ((p + eps) / (q + eps)).log()).sum() * _bin_volume(p))


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Return the Jensen-Shannon divergence, in nats, between 0 and log 2; symmetric.

        JSD = ½ KL(p || m) + ½ KL(q || m),   m = (p + q) / 2

    Args:
        p: Density, [bins] * d; for one torsion [bins].
        q: Density, same shape.
    """
    _check_pair(p, q)
    # xlogy(0, 0) = 0, so a bin that is empty in one or both of them needs no care.
    terms = torch.xlogy(p, p) + torch.xlogy(q, q) - torch.xlogy(p + q, 0.5 * (p + q))
    return max(float(0.5 * terms.sum() * _bin_volume(p)), 0.0)


def floor(
    angles: Tensor,
    distance: Callable[[Tensor, Tensor], float],
    *,
    n: int | None = None,
    log_w: Tensor | None = None,
    bins: int = 100,
) -> float:
    """Return the distance between two parts of one reference: what sampling noise alone gives.

    A model whose distance from the reference is at the floor cannot be told from it. The parts
    are the first and the last `n` rows, so that the frames of a trajectory next to each other in
    time fall into the same part.

    Args:
        angles: Reference, radians, [m] or [m, 2].
        distance: One of `total_variation`, `kl_divergence`, `jensen_shannon`.
        n: Rows a part, at most m / 2; half of the reference if None. Distances shrink with the
            number of samples: give the number the model was measured with.
        log_w: Log weights of the reference, [m]; all equal if None.
        bins: Number of bins a dimension.
    """
    size = len(angles) // 2 if n is None else n
    if not 1 <= size <= len(angles) // 2:
        raise FlowInputError(f"Expected n within 1..{len(angles) // 2}, got {size}.")
    histogram = torsion_histogram if angles.ndim == 1 else torus_histogram
    first, last = slice(None, size), slice(len(angles) - size, None)
    return distance(
        histogram(angles[first], None if log_w is None else log_w[first], bins),
        histogram(angles[last], None if log_w is None else log_w[last], bins),
    )


def blocked_histogram(
    angles: Tensor, log_w: Tensor | None = None, bins: int = 100, *, n_blocks: int = 400
) -> Tensor:
    """Return what lies in each bin by blocks of consecutive rows: what `bootstrap_sums` takes.

    Args:
        angles: Radians, [n] or [n, 2].
        log_w: Log weights, [n]; all equal if None. A row of -inf is not counted.
        bins: Number of bins a dimension.
        n_blocks: Number of blocks; their sum is in proportion to the histogram of all rows.

    Returns:
        Sums of weights up to a factor, float64 [n_blocks, bins ** d].
    """
    return _counts(angles[:, None] if angles.ndim == 1 else angles, log_w, bins, n_blocks)


def as_density(counts: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what is in the bins, [bins ** d], as a density of shape [bins] * d."""
    volume = math.prod(2 * math.pi / bins for bins in shape)
    return (counts / (counts.sum() * volume)).reshape(shape)


def _histogram(angles: Tensor, log_w: Tensor | None, bins: int) -> Tensor:
    """Return the density of `angles` [n, d] as float64 [bins] * d."""
    return as_density(_counts(angles, log_w, bins, 1)[0], (bins,) * angles.shape[1])


def _counts(angles: Tensor, log_w: Tensor | None, bins: int, n_blocks: int) -> Tensor:
    """Return the weight in each bin, [n_blocks, bins ** d], for `angles` [n, d]."""
    n, d = angles.shape
    if bins < 1:
        raise FlowInputError(f"Expected bins >= 1, got {bins}.")
    if n == 0:
        raise FlowInputError(f"Expected angles with at least one row, got {list(angles.shape)}.")
    lw = None if log_w is None else check_log_weights(log_w, positive=True)
    if lw is not None and len(lw) != n:
        raise FlowInputError(f"Expected log_w of shape [{n}] like angles, got {list(lw.shape)}.")
    top = 0.0 if lw is None else float(lw.max())
    counts = torch.zeros(n_blocks * bins**d, dtype=torch.float64, device=angles.device)
    for start in range(0, n, _CHUNK):
        a = angles[start : start + _CHUNK].detach().to(torch.float64)
        flat = torch.arange(start, start + len(a), device=a.device) * n_blocks // n
        weight = None if lw is None else (lw[start : start + _CHUNK] - top).exp()
        if weight is not None:
            a, flat, weight = a[weight > 0], flat[weight > 0], weight[weight > 0]
        if not bool(a.isfinite().all()):
            raise FlowInputError(
                f"Expected finite angles where the weight is positive, "
                f"got {int((~a.isfinite()).any(1).sum())} other rows."
            )
        # The remainder also catches -π - 1 ulp, whose bin would round up to `bins`.
        digits = ((a + math.pi) * (bins / (2 * math.pi))).floor().long().remainder(bins)
        for column in range(d):
            flat = flat * bins + digits[:, column]
        counts += torch.bincount(flat, weight, minlength=len(counts))
    return counts.reshape(n_blocks, bins**d)


def _bin_volume(p: Tensor) -> float:
    return float((2 * math.pi) ** p.ndim / p.numel())


def _check_pair(p: Tensor, q: Tensor) -> None:
    if p.shape != q.shape or p.ndim == 0:
        raise FlowInputError(
            f"Expected q of the shape of p, got {list(q.shape)} and {list(p.shape)}."
        )
    for name, density in (("p", p), ("q", q)):
        mass = float(density.sum()) * _bin_volume(density)
        if not (bool((density >= 0).all()) and abs(mass - 1) < 1e-6):
            raise FlowInputError(
                f"Expected {name} a density on the torus (not negative, mass 1), got mass {mass}."
            )
