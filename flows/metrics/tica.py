"""The slowest motion of reference chains, and how well weighted samples fill it.

Time-lagged independent component analysis finds, among linear combinations y of features with
unit variance, those whose autocorrelation at a lag is largest: what changes slowest is what is
hardest to sample. The features of a torsion are its cosine and sine, so nothing has a seam.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.metrics.bootstrap import Interval, bootstrap
from flows.metrics.transport import line_distance


class SlowCoordinates(NamedTuple):
    """A projection of torsions onto what moves slowest.

    Attributes:
        mean: Mean feature of the chains, float64 [2K].
        weights: Coefficients of each coordinate, slowest first, float64 [2K, dim].
        timescales: -lag / log(autocorrelation at the lag), in rows, float64 [dim]; NaN where the
            autocorrelation is not between 0 and 1.
    """

    mean: Tensor
    weights: Tensor
    timescales: Tensor

    def project(self, angles: Tensor) -> Tensor:
        """Return the slow coordinates, float64 [..., dim]: mean 0 and variance 1 in the chains.

        Args:
            angles: Torsions, radians, [..., K].
        """
        return (_features(angles) - self.mean) @ self.weights


def slow_coordinates(chains: Tensor, *, lag: int, dim: int = 1) -> SlowCoordinates:
    r"""Find the slowest coordinates of torsions by TICA, with deeptime.

    .. math:: C_\tau v = \lambda C_0 v, \quad
              C_0 = E[f_t f_t^T], \; C_\tau = E[f_t f_{t + \tau}^T] \text{ symmetrised}

    Chains of an exchange simulation jump where replicas are exchanged. What they forget last is
    still what is hardest to sample; their time scales are not those of dynamics.

    Args:
        chains: Torsions in the order of time, radians, [S, C, K]: S rows, C independent chains.
        lag: Rows between the two times compared, 1 to S / 2.
        dim: Number of coordinates.

    Raises:
        FlowInputError: Wrong shape, a lag out of range, angles that are not finite, or chains in
            which fewer than `dim` combinations move.

    References:
        Pérez-Hernández et al., J. Chem. Phys. 139, 015102 (2013).
    """
    from deeptime.decomposition import TICA  # slow to import, needed only here
    from deeptime.numeric import ZeroRankError

    if chains.ndim != 3 or not bool(chains.isfinite().all()):
        raise FlowInputError(
            f"Expected chains of shape [S, C, K] and finite, got {list(chains.shape)}."
        )
    if not 1 <= lag <= len(chains) // 2:
        raise FlowInputError(f"Expected lag within 1..{len(chains) // 2}, got {lag}.")
    features = _features(chains)
    mean = features.flatten(0, 1).mean(0)
    trajectories = [(chain - mean).cpu().numpy() for chain in features.unbind(1)]
    try:
        model = TICA(lagtime=lag, dim=dim, scaling=None).fit(trajectories).fetch_model()
        found = min(dim, model.singular_vectors_left.shape[1])
    except ZeroRankError:
        found = 0
    if found < dim:
        raise FlowInputError(
            f"Expected chains with {dim} combinations of angles that move, got {found}."
        )
    weights = torch.from_numpy(model.singular_vectors_left[:, :dim].copy()).to(mean)
    values = torch.from_numpy(model.singular_values[:dim].copy()).to(mean)
    # deeptime normalises over the rows that have a partner.
    weights = weights / ((features.flatten(0, 1) - mean) @ weights).std(0, unbiased=False)
    inside = (values > 0) & (values < 1)
    timescales = torch.where(inside, -lag / values.log(), math.nan)
    return SlowCoordinates(mean, weights, timescales)


def slow_distance(
    slow: SlowCoordinates,
    angles: Tensor,
    chains: Tensor,
    *,
    log_w: Tensor | None = None,
    n_rep: int = 50,
    generator: torch.Generator,
) -> list[Interval]:
    """Return W_2 between samples and reference along each slow coordinate, with its interval.

    Its unit is the standard deviation of the coordinate in the reference.

    Args:
        slow: The projection.
        angles: Torsions of the samples, radians, [n, K].
        chains: Of the reference, radians, [S, C, K].
        log_w: Log weights of `angles`, [n]; all equal if None.
        n_rep: Bootstrap replicates over the samples.
        generator: Source of randomness, on the device of `angles`.

    Returns:
        An interval a coordinate.
    """
    mine, exact = slow.project(angles), slow.project(chains).flatten(0, 1)
    lw = torch.zeros(len(mine), dtype=torch.float64) if log_w is None else log_w
    found = []
    for k in range(mine.shape[1]):

        def distance(rows: Tensor, k: int = k) -> float:
            return line_distance(mine[rows, k], exact[:, k], order=2, log_w=lw[rows])

        p = bootstrap(distance, len(mine), n_rep=n_rep, generator=generator)
        found.append(p.reflected())
    return found


def slow_floor(slow: SlowCoordinates, chains: Tensor) -> list[float]:
    """Return W_2 between two halves of the reference along each slow coordinate: what is noise.

    Args:
        slow: The projection.
        chains: Torsions, radians, [S, C, K]; split between chains, or in time if there is one.
    """
    first, second = chains.chunk(2, dim=1 if chains.shape[1] > 1 else 0)
    halves = [slow.project(half).flatten(0, 1) for half in (first, second)]
    return [
        line_distance(a, b, order=2)
        for a, b in zip(*(half.unbind(-1) for half in halves), strict=True)
    ]


def _features(angles: Tensor) -> Tensor:
    a = angles.detach().to(torch.float64)
    return torch.cat([a.cos(), a.sin()], dim=-1)
