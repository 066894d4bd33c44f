"""What a simulation of independent chains says, and whether it can be believed."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from energies.base import R
from energies.errors import EnergyInputError
from energies.reference.langevin import Phase


class ChainMean(NamedTuple):
    """The mean of an observable over chains, with its error and the signs of trouble.

    Attributes:
        value: Mean, in the unit of the observable.
        se: Its standard error from the spread between chains; NaN for one chain.
        first_half: Mean over the first half of every chain.
        second_half: Mean over the second half; their difference should be about 2 `se`.
        split_rhat: Split R-hat: 1 when chains agree, doubtful above 1.01.
        n_effective: Independent samples that would have this error.
    """

    value: float
    se: float
    first_half: float
    second_half: float
    split_rhat: float
    n_effective: float


def chain_mean(values: Tensor, weights: Tensor | None = None) -> ChainMean:
    """Average an observable over time and chains.

    The error needs no autocorrelation time: chains are independent, whatever happens within one.

        value = Σ_c A_c / Σ_c B_c,   se² = C/(C-1) Σ_c (A_c - value B_c)² / (Σ_c B_c)²

    with A_c and B_c the sums over chain c of w v and of w.

    Args:
        values: Observable at times t of chains c, any unit, [S, C].
        weights: w, [S, C]; all one if None. R-hat is that of the values as they are.

    Raises:
        EnergyInputError: Shapes differ, fewer than 4 times, or a value that is not finite.

    References:
        Gelman et al., Bayesian Data Analysis (2013), section 11.4, for split R-hat.
    """
    if values.ndim != 2 or len(values) < 4:
        raise EnergyInputError(
            f"Expected values of shape [S, C] with S >= 4, got {list(values.shape)}."
        )
    v = values.to(torch.float64)
    w = torch.ones_like(v) if weights is None else weights.to(v)
    if w.shape != v.shape:
        raise EnergyInputError(
            f"Expected weights of shape {list(v.shape)} like values, got {list(w.shape)}."
        )
    if not bool((v.isfinite() & w.isfinite()).all()):
        raise EnergyInputError("Expected finite values and weights, got some that are not.")
    value = float((w * v).sum() / w.sum())
    n_chains, half = v.shape[1], len(v) // 2
    se = math.nan
    if n_chains > 1:
        residual = (w * (v - value)).sum(0)
        se = math.sqrt(n_chains / (n_chains - 1) * float(residual.square().sum()))
        se /= float(w.sum())
    variance = float((w * (v - value).square()).sum() / w.sum())
    return ChainMean(
        value,
        se,
        first_half=float((w * v)[:half].sum() / w[:half].sum()),
        second_half=float((w * v)[half:].sum() / w[half:].sum()),
        split_rhat=_split_rhat(v),
        n_effective=variance / se**2 if se > 0 else math.nan,
    )


def _split_rhat(values: Tensor) -> float:
    """R-hat of [S, C] with each chain cut in two; NaN for an observable that never changes."""
    from arviz_stats.base.array import array_stats  # slow to import, needed only here

    statistics: Any = array_stats  # its methods are not typed
    if bool((values == values[0, 0]).all()):
        return math.nan
    return float(statistics.rhat(values.T.cpu().numpy(), method="split"))


def configurational_temperature(phase: Phase) -> Tensor:
    """Return the temperature that positions and forces show, without the velocities.

        T = -Σ_i (r_i - r̄) · F_i / (d (N - 1) R),   averaged over the distribution,

    holds for any energy that keeps the particles together, and is the first to show a time step
    that is too long: its mean should be that of the thermostat within its error. A single
    particle has no centre but the origin: T = -r · F / (d R), for an energy that confines it.

    Args:
        phase: Replicas, [..., N, d].

    Returns:
        kelvin, float64 [...]; one number means nothing, their mean does.
    """
    n_atoms, n_dims = phase.xyz.shape[-2:]
    r, n_free = phase.xyz.to(torch.float64), n_dims
    if n_atoms > 1:
        r, n_free = r - r.mean(-2, keepdim=True), n_dims * (n_atoms - 1)
    return -(r * phase.force.to(torch.float64)).sum((-2, -1)) / (R * n_free)


def torus_counts(angles: Tensor, *, bins: int = 100) -> Tensor:
    """Count pairs of angles on a grid: a Ramachandran map that can be added to another.

    Args:
        angles: Pairs of angles, radians, [..., n, 2]; wrapped to [-π, π).
        bins: Bins a dimension.

    Returns:
        int64 [..., bins, bins]; the first index belongs to the first angle.

    Raises:
        EnergyInputError: Wrong shape, or an angle that is not finite.
    """
    if angles.ndim < 2 or angles.shape[-1] != 2:
        raise EnergyInputError(f"Expected angles of shape [..., n, 2], got {list(angles.shape)}.")
    if bins < 1:
        raise EnergyInputError(f"Expected bins >= 1, got {bins}.")
    if not bool(angles.isfinite().all()):
        raise EnergyInputError("Expected finite angles, got some that are not.")
    a = angles.to(torch.float64)
    # The remainder also catches -π - 1 ulp, whose bin would round up to `bins`.
    digits = ((a + math.pi) * (bins / (2 * math.pi))).floor().long().remainder(bins)
    flat = (digits[..., 0] * bins + digits[..., 1]).reshape(-1, angles.shape[-2])
    counts = torch.stack([torch.bincount(row, minlength=bins**2) for row in flat])
    return counts.reshape(*angles.shape[:-2], bins, bins)
