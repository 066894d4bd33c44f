"""Harmonic statistics of the stiff coordinates at a minimum: how to whiten them without data."""

from collections.abc import Callable

import torch
from torch import Tensor

from energies.base import R
from energies.errors import CoordinateError


def hessian(gradient: Callable[[Tensor], Tensor], q: Tensor, steps: Tensor) -> Tensor:
    """Second derivatives by central differences of the gradient, in one batched call.

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
    g = gradient(torch.cat([q + shift, q - shift]))
    plus, minus = g.chunk(2)
    h = (plus - minus) / (2 * steps[:, None])
    return (h + h.T) / 2


def harmonic_scale(h: Tensor, temperature: float, *, spread: float = 1e3) -> Tensor:
    """Return the Cholesky factor L of the harmonic covariance, L Lᵀ = RT H⁻¹.

    With q = q_min + L x, x is a standard normal at `temperature` as far as U is harmonic.
    Curvatures that are negative or `spread` times below the typical one of their coordinate are
    raised to that bound: they belong to motions that are not harmonic, which is the flow's work.

    Args:
        h: Hessian of U in the stiff coordinates, kJ/mol per squared unit, [D, D].
        temperature: T, kelvin.
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
            f"{float(diagonal[k]):.3g} along stiff coordinate {k}."
        )
    # Unit diagonal first: eigenvalues are then comparable between nm and radians.
    d = diagonal.rsqrt()
    values, vectors = torch.linalg.eigh(h * d * d[:, None])
    half = (vectors * values.clamp_min(1.0 / spread).rsqrt()) * d[:, None]
    covariance: Tensor = R * temperature * half @ half.T
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor
