"""Boxes of torsions: basins that a population or a free energy is asked of.

A box gives, for each torsion it restricts, the interval it allows: ``{"phi": (0.0, 2.3)}``.
Intervals are half open, [lo, hi), in radians, and run upwards from lo to hi around the circle:
``{"psi": (2.0, -2.0)}`` is the piece that contains π.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flows.errors import FlowInputError

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
