"""Wasserstein distances between weighted samples and a reference, by POT.

    W_p(a, b)^p = min over couplings of a and b of the mean of d(x, y)^p

In one dimension all points are sorted; on the torus the optimal plan between at most `cap` points
of each side is found exactly, which takes memory in proportion to cap² and time to about cap³.
"""

import math

import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.metrics.weights import check_log_weights, resample


def line_distance(
    values: Tensor, reference: Tensor, *, order: int = 1, log_w: Tensor | None = None
) -> float:
    """Return W_p between numbers, such as potential energies, in their own unit.

    Args:
        values: Numbers, [n]; ignored where the weight is zero.
        reference: Numbers of the reference, [m].
        order: p, 1 or 2. With 2 a few far outliers count for more.
        log_w: Log weights of `values`, [n]; all equal if None.

    Raises:
        FlowInputError: Wrong shapes or order, or a number of positive weight is not finite.
    """
    import ot  # slow to import, needed only here

    if order not in (1, 2):
        raise FlowInputError(f"Expected order 1 or 2, got {order}.")
    lw = _log_weights(values, log_w)
    kept = lw > -math.inf
    v, r = (t.detach().to("cpu", torch.float64) for t in (values[kept], reference))
    for name, t in (("values", v), ("reference", r)):
        if t.ndim != 1 or len(t) == 0 or not bool(t.isfinite().all()):
            raise FlowInputError(f"Expected {name} of shape [n], n >= 1, and finite.")
    w = lw[kept].softmax(0).cpu()
    cost = ot.wasserstein_1d(v.numpy(), r.numpy(), w.numpy(), p=order)
    return float(max(float(cost), 0.0) ** (1 / order))


def torus_distance(
    angles: Tensor,
    reference: Tensor,
    *,
    log_w: Tensor | None = None,
    cap: int = 1000,
    generator: torch.Generator,
) -> float:
    """Return W_2 between points on a torus, in radians.

    d² is the sum over angles of their differences squared, each the shorter way round. Both sides
    are reduced to `cap` points: the distance of two samples of one density falls only slowly with
    their number, so compare with `torus_floor` at the same cap.

    Args:
        angles: Radians, [n, K]; drawn by their weights.
        reference: Radians, [m, K].
        log_w: Log weights of `angles`, [n]; all equal if None.
        cap: Most points of a side, drawn without order.
        generator: Source of randomness, on the device of `angles`.
    """
    if angles.ndim != 2 or reference.ndim != 2 or angles.shape[1] != reference.shape[1]:
        raise FlowInputError(
            f"Expected angles [n, K] and reference [m, K], got {list(angles.shape)} "
            f"and {list(reference.shape)}."
        )
    lw = _log_weights(angles[:, 0], log_w)
    size = min(cap, len(angles), len(reference))
    rows = resample(lw, size, generator, "systematic")
    others = torch.randperm(len(reference), generator=generator, device=generator.device)[:size]
    return _matched(angles[rows], reference[others.to(reference.device)].to(angles))


def torus_floor(reference: Tensor, *, cap: int = 1000, generator: torch.Generator) -> float:
    """Return W_2 between two disjoint draws from one reference: what noise alone gives.

    Args:
        reference: Radians, [m, K], m >= 2; each draw has min(cap, m / 2) points.
        cap: As in `torus_distance`.
        generator: Source of randomness, on the device of `reference`.
    """
    if reference.ndim != 2 or len(reference) < 2:
        raise FlowInputError(
            f"Expected reference [m, K] with m >= 2, got {list(reference.shape)}."
        )
    size = min(cap, len(reference) // 2)
    order = torch.randperm(len(reference), generator=generator, device=reference.device)
    return _matched(reference[order[:size]], reference[order[size : 2 * size]])


def _matched(a: Tensor, b: Tensor) -> float:
    """W_2 between equally many points [n, K], each of the same weight: a best assignment."""
    import ot

    gap = (a[:, None] - b[None]).detach().to("cpu", torch.float64)
    gap = (gap + math.pi).remainder(2 * math.pi) - math.pi
    if not bool(gap.isfinite().all()):
        raise FlowInputError("Expected finite angles, got some that are not.")
    cost, found = ot.emd2([], [], gap.square().sum(-1).numpy(), numItermax=10**7, log=True)
    assert found["warning"] is None, found["warning"]
    return math.sqrt(max(float(cost), 0.0))


def _log_weights(like: Tensor, log_w: Tensor | None) -> Tensor:
    lw = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
    lw = check_log_weights(lw if log_w is None else log_w, positive=True)
    if lw.shape != like.shape:
        raise FlowInputError(f"Expected log_w of shape {list(like.shape)}, got {list(lw.shape)}.")
    return lw
