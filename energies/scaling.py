"""Harmonic statistics of the stiff coordinates at a minimum: how to whiten them without data."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from energies.base import R
from energies.errors import CoordinateError

_CHUNK = 64
"""Points whose gradient is asked for at once: what is fast for a force field, and small."""


def hessian(gradient: Callable[[Tensor], Tensor], q: Tensor, steps: Tensor) -> Tensor:
    """Second derivatives by central differences of the gradient, in batches.

    H_ij = (g_j(q + h_i e_i) - g_j(q - h_i e_i)) / 2h_i, symmetrised; the error is O(h²). Only
    first derivatives are needed, so that any energy will do.

    Args:
        gradient: Maps points [n, D] to gradients [n, D].
        q: The point, float64, [D].
        steps: h, [D], in the units of q.

    Returns:
        H, [D, D].
    """
    shift = torch.diag(steps)
    points = torch.cat([q + shift, q - shift])
    plus, minus = torch.cat([gradient(part) for part in torch.split(points, _CHUNK)]).chunk(2)
    h = (plus - minus) / (2 * steps[:, None])
    return (h + h.T) / 2


def harmonic_scale(
    h: Tensor, temperature: float, *, names: Sequence[str], spread: float = 1e3
) -> Tensor:
    """Return the Cholesky factor L of the harmonic covariance, L Lᵀ = RT H⁻¹.

    With q = q_min + L x, x is a standard normal at `temperature` as far as U is harmonic.
    Curvatures that are negative or `spread` times below the typical one of their coordinate are
    raised to that bound: they belong to motions that are not harmonic, which is the flow's work.

    Args:
        h: Hessian of U in the stiff coordinates, kJ/mol per squared unit, [D, D].
        temperature: T, kelvin.
        names: What the coordinates are called in messages, length D.
        spread: Largest ratio of a variance to the one its diagonal element alone would give.

    Returns:
        L, lower triangular, [D, D].

    Raises:
        CoordinateError: A diagonal element of `h` is not positive: not near a minimum.
    """
    diagonal = torch.diagonal(h)
    if not bool((diagonal > 0).all()):
        k = int(diagonal.argmin())
        raise CoordinateError(
            "Expected a reference structure at a minimum of the energy, got curvature "
            f"{float(diagonal[k]):.3g} along stiff coordinate {names[k]}."
        )
    # Unit diagonal first: eigenvalues are then comparable between nm and radians.
    d = diagonal.rsqrt()
    values, vectors = torch.linalg.eigh(h * d * d[:, None])
    half = (vectors * values.clamp_min(1.0 / spread).rsqrt()) * d[:, None]
    covariance: Tensor = R * temperature * half @ half.T
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor


def soft_coordinates(
    h: Tensor,
    temperature: float,
    candidates: Collection[int],
    *,
    names: Sequence[str],
    limit: float,
) -> list[int]:
    """Find the candidates whose harmonic motion is too wide to be one narrow peak.

    The widest one is taken out (held fixed), and the others are asked again: in a ring closed by
    a bond, fixing one torsion stiffens the rest.

    Args:
        h: Hessian, as for `harmonic_scale`, [D, D].
        temperature: T, kelvin.
        candidates: Rows of `h` that may be taken out; all others stay.
        names: What the coordinates are called in messages, length D.
        limit: Largest harmonic standard deviation, in units of the coordinates.

    Returns:
        The rows taken out, in ascending order.

    Raises:
        CoordinateError: Curvature that is not positive along a coordinate that stays.
    """
    kept, soft = list(range(len(h))), []
    while left := [k for k in kept if k in candidates]:
        widest = min(left, key=lambda k: float(h[k, k]))
        if h[widest, widest] > 0:
            factor = harmonic_scale(h[kept][:, kept], temperature, names=[names[k] for k in kept])
            width = dict(zip(kept, factor.norm(dim=1).tolist(), strict=True))
            widest = max(left, key=width.__getitem__)
            if width[widest] <= limit:
                break
        kept.remove(widest)
        soft.append(widest)
    return sorted(soft)
