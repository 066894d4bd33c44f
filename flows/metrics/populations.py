"""How much of the density lies in a box of torsions, and free-energy differences between boxes.

A box gives, for each torsion it restricts, the interval it allows: ``{"phi": (0.0, 2.3)}``.
Intervals are half open, [lo, hi), in radians, and run upwards from lo to hi around the circle:
``{"psi": (2.0, -2.0)}`` is the piece that contains π.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from energies.base import R
from flows.errors import FlowInputError
from flows.metrics.weights import Estimate, weighted_mean

Box = Mapping[str, tuple[float, float]]
"""Torsion name -> (lo, hi), radians. A torsion that is not named is not restricted."""


def in_box(torsions: Mapping[str, Tensor], box: Box) -> Tensor:
    """Return which points lie in the box.

    Args:
        torsions: Name -> angles, radians, each [n].
        box: Name -> (lo, hi), radians; every name must be one of `torsions`. An interval of 2π
            or more is the whole circle.

    Returns:
        bool [n]; False where an angle is NaN.

    Raises:
        FlowInputError: The box is empty, has lo = hi, or names a torsion that is not there.
    """
    if not box:
        raise FlowInputError("Expected box with at least one torsion, got none.")
    inside: Tensor | None = None
    for name, (lo, hi) in box.items():
        if name not in torsions:
            raise FlowInputError(
                f"Expected box to name torsions out of {sorted(torsions)}, got {name!r}."
            )
        turn = 2 * math.pi
        width = min(hi - lo, turn) if hi > lo else (hi - lo) % turn
        if not 0 < width <= turn or math.isinf(lo) or math.isinf(hi):
            raise FlowInputError(
                f"Expected box[{name!r}] = (lo, hi) finite and different, got {(lo, hi)}."
            )
        angle = torsions[name].detach().to(torch.float64)
        within = (angle - lo).remainder(turn) < width
        if width == turn:  # the remainder of a tiny negative number rounds up to 2π itself
            within = angle.isfinite()
        if inside is not None and inside.shape != within.shape:
            raise FlowInputError(
                f"Expected torsions[{name!r}] of shape {list(inside.shape)}, "
                f"got {list(within.shape)}."
            )
        inside = within if inside is None else inside & within
    assert inside is not None
    return inside


def population(
    torsions: Mapping[str, Tensor], box: Box, *, log_w: Tensor | None = None
) -> Estimate:
    """Return the probability of a box.

        P = Σ w 1[x in box] / Σ w

    Args:
        torsions: Name -> angles, radians, each [n].
        box: Name -> (lo, hi), radians.
        log_w: Log weights, [n]; None gives the raw population of what was sampled.

    Returns:
        P and its standard error. A box never visited gives 0 with error 0, which means less than
        about 1/n raw, and nothing at all reweighted.
    """
    inside = in_box(torsions, box)
    return weighted_mean(inside, _log_weights(inside, log_w))


def free_energy_difference(
    torsions: Mapping[str, Tensor],
    start: Box,
    end: Box,
    *,
    temperature: float,
    log_w: Tensor | None = None,
) -> Estimate:
    """Return the free energy of one box relative to another.

        ΔF = F_end - F_start = -RT log(P_end / P_start)

    The error is that of the ratio: both populations come from the same points.

    Args:
        torsions: Name -> angles, radians, each [n].
        start: Box that ΔF is counted from.
        end: Box that ΔF is counted to; positive ΔF means rarer than `start`.
        temperature: T in kelvin.
        log_w: Log weights, [n]; all equal if None.

    Returns:
        ΔF and its standard error, kJ/mol. If one box was never visited ΔF is infinite, if neither
        was it is NaN; the error is then +inf.
    """
    return free_energy_between(
        in_box(torsions, start), in_box(torsions, end), temperature=temperature, log_w=log_w
    )


def free_energy_between(
    in_start: Tensor, in_end: Tensor, *, temperature: float, log_w: Tensor | None = None
) -> Estimate:
    """Return `free_energy_difference` of any two sets of points.

    Args:
        in_start: Which points lie in the start, bool [n].
        in_end: Which lie in the end, bool [n].
        temperature: T in kelvin.
        log_w: Log weights, [n]; all equal if None.
    """
    if not temperature > 0:
        raise FlowInputError(f"Expected temperature > 0 kelvin, got {temperature}.")
    lw = _log_weights(in_start, log_w)
    p_start, p_end = weighted_mean(in_start, lw).value, weighted_mean(in_end, lw).value
    RT = R * temperature
    if p_start == 0 or p_end == 0:
        value = math.nan if p_start == p_end else math.copysign(math.inf, p_start - p_end)
        return Estimate(value, math.inf)
    # d log(P_end / P_start) is the weighted mean of this, which is zero at the estimate.
    change = in_end.to(lw) / p_end - in_start.to(lw) / p_start
    return Estimate(-RT * math.log(p_end / p_start), RT * weighted_mean(change, lw).se)


def _log_weights(like: Tensor, log_w: Tensor | None) -> Tensor:
    if log_w is not None:
        return log_w
    return torch.zeros(like.shape, dtype=torch.float64, device=like.device)
