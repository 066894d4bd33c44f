"""Free energy of one density relative to another, from points of one of them or of both.

The two ends have unnormalised densities p̃_a and p̃_b. Every difference here is reduced,

    Δf = f_b - f_a = -log(Z_b / Z_a),

without unit; where both ends have one temperature, RT Δf is F_b - F_a. An estimate that its
weights cannot carry is refused with an `OverlapError`, never returned with a small error.
"""

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flows.errors import FlowInputError, OverlapError
from flows.metrics.bootstrap import bootstrap
from flows.metrics.weights import (
    Estimate,
    check_log_weights,
    effective_size,
    log_z,
    pareto_k,
    pareto_k_threshold,
    resample,
)

LEAST_EFFECTIVE = 100.0
"""Effective samples below which an estimate is refused."""

LARGEST_SHARE = 0.005
"""Share of all weight that one sample of a heavy tail may hold: an error of 0.01 RT or so."""

LEAST_OVERLAP = 0.06
"""Overlap of two ends below which BAR is refused: 0.03 either way in the matrix of Klimovich,
Shirts, Mobley, J. Comput. Aided Mol. Des. 29 (2015)."""

_STEEP = 1e4
"""Reduced energy that stands for an infinite one: its Boltzmann factor is 0 in float64 too."""


def require_overlap(log_w: Tensor, what: str, *, least: float = LEAST_EFFECTIVE) -> None:
    """Refuse weights on which no average can rest.

    A heavy tail (Pareto k-hat at or above `pareto_k_threshold`) is refused where it matters: it
    is the shape of the largest weights, whatever they add, and a flow that is nearly exact may
    have one too.

    Args:
        log_w: Log weights, [n].
        what: What they are weights of, for the message.
        least: Effective samples needed.

    Raises:
        OverlapError: Fewer effective samples, or a heavy tail of which one sample holds more than
            `LARGEST_SHARE` of all weight.
    """
    lw = check_log_weights(log_w, min_rows=2, positive=True)
    n, size = len(lw), effective_size(lw)
    if size < least:
        raise OverlapError(
            f"Expected at least {least:g} effective samples for {what}, got {size:.3g} of {n}: "
            "what was sampled and what is asked for overlap too little."
        )
    share = float((lw.max() - lw.logsumexp(0)).exp())
    if share > LARGEST_SHARE and (k := pareto_k(lw)) >= (limit := pareto_k_threshold(n)):
        raise OverlapError(
            f"Expected Pareto k below {limit:.2f} for {what}, got {k:.2f}, and one of {n} samples "
            f"holds {share:.1%} of all weight: the tail is too heavy to believe in an error."
        )


def perturbation(log_w_start: Tensor, log_w_end: Tensor) -> Estimate:
    """Return Δf from points that have a weight towards each end.

        Δf = -log(Σ w_end / Σ w_start)

    The rows may be points of the start as they are: reweighting. Or each end may see a row through
    a map of its own, whose change of volume is part of its weight: targeted perturbation. With
    two flows a row is their common noise z, and w = p̃(x)/q(x) at the x that either makes of it.
    The error is that of the ratio: both sums share their rows.

    Args:
        log_w_start: Log weights towards the start, [n].
        log_w_end: Log weights of the same rows towards the end, [n].

    Raises:
        OverlapError: One end has too few effective samples, or too heavy a tail.

    References:
        Jarzynski, Targeted free energy perturbation, cond-mat/0109461; Wirnsberger et al.,
        arXiv:2002.04913, with flows as maps.
    """
    start, end = (
        check_log_weights(w, min_rows=2, positive=True) for w in (log_w_start, log_w_end)
    )
    if start.shape != end.shape:
        raise FlowInputError(
            f"Expected log_w_end of shape {list(start.shape)} like log_w_start, "
            f"got {list(end.shape)}."
        )
    require_overlap(start, "the start")
    require_overlap(end, "the end")
    # Both means enter as logarithms: what a row adds to Δf is the difference of relative weights.
    change = len(start) * (start.softmax(0) - end.softmax(0))
    se = float(change.std()) / math.sqrt(len(start))
    return Estimate(log_z(start).value - log_z(end).value, se)


def bar(
    work: Tensor,
    work_back: Tensor,
    *,
    log_w_start: Tensor,
    log_w_end: Tensor,
    generator: torch.Generator,
    n_rep: int = 50,
) -> Estimate:
    """Return Δf by Bennett's acceptance ratio from weighted points of both ends.

    pymbar solves it for points of equal weight, which are drawn by the weights; the error comes
    from bootstrap replicates of the weighted points, so that it holds what the weights add.

    Args:
        work: u_end - u_start at the start's points, reduced, [n].
        work_back: u_start - u_end at the end's points, reduced, [m].
        log_w_start: Log weights of the start's points, [n].
        log_w_end: Log weights of the end's points, [m]; drawn apart from those of the start.
        generator: Source of randomness, on the CPU.
        n_rep: Bootstrap replicates.

    Raises:
        OverlapError: One end has too few effective samples, or the two share too few.

    References:
        Bennett, J. Comput. Phys. 22 (1976).
    """
    require_overlap(log_w_start, "the start")
    require_overlap(log_w_end, "the end")
    n, m = len(work), len(work_back)
    works = torch.cat([work, work_back]).to("cpu", torch.float64).clamp(-_STEEP, _STEEP)
    log_w = torch.cat([log_w_start, log_w_end]).to("cpu", torch.float64)

    def drawn(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Equally weighted works of the rows of each end."""
        first, second = (
            works[part[resample(log_w[part], len(part), generator, "systematic")]]
            for part in (rows[rows < n], rows[rows >= n])
        )
        return first, second

    def solve(rows: Tensor) -> float:
        return _bennett(*drawn(rows))

    every = torch.arange(n + m)
    value = solve(every)
    shared = _overlap(*drawn(every), value)
    if shared < LEAST_OVERLAP:
        raise OverlapError(
            f"Expected the ends to overlap by {LEAST_OVERLAP} or more, got {shared:.2g}: hardly "
            "a point of the one could be of the other; choose ends that are closer."
        )
    return Estimate(value, bootstrap(solve, n + m, n_rep=n_rep, generator=generator).se)


def mbar(log_q: Tensor, counts: Sequence[int], log_p: Tensor) -> Estimate:
    """Return Δf from points of several densities taken together, by pymbar's MBAR.

    No point need be of either end: those of two flows will do, which need no weights then. The
    points are taken to be independent; the error is pymbar's asymptotic one.

    Args:
        log_q: Log densities that were sampled, each up to a constant, at all points, [K, N].
        counts: How many points each of them gave; the points stand in that order.
        log_p: Unnormalised log densities of start and end at all points, [2, N].

    Raises:
        OverlapError: The points hold too few effective samples of one end.

    References:
        Shirts, Chodera, arXiv:0801.1426.
    """
    if sum(counts) != log_q.shape[1] or len(counts) != len(log_q) or len(log_p) != 2:
        raise FlowInputError(
            f"Expected log_q [K, N] with K counts that add up to N, and log_p [2, N], got "
            f"{list(log_q.shape)}, {list(counts)} and {list(log_p.shape)}."
        )
    u = -torch.cat([log_q, log_p]).to("cpu", torch.float64)
    # A constant a state, so that its lowest energy is 0 and one limit stands for infinity.
    offset = u.amin(1, keepdim=True)
    u = torch.nan_to_num(u - offset, nan=_STEEP).clamp(max=_STEEP)
    # Newton's method; what pymbar tries first gives scipy options that scipy warns of.
    solver = ({"method": "adaptive", "options": {"min_sc_iter": 0}},)
    solved = _pymbar().MBAR(u.numpy(), np.array([*counts, 0, 0]), solver_protocol=solver)
    for k, name in ((-2, "the start"), (-1, "the end")):
        require_overlap(torch.from_numpy(solved.Log_W_nk[:, k].copy()), name)
    found = solved.compute_free_energy_differences()
    constant = float(offset[-1] - offset[-2])
    return Estimate(float(found["Delta_f"][-2, -1]) + constant, float(found["dDelta_f"][-2, -1]))


def _bennett(work: Tensor, work_back: Tensor) -> float:
    with np.errstate():  # pymbar leaves its own settings behind
        found = _pymbar().bar(work.numpy(), work_back.numpy(), compute_uncertainty=False)
    return float(found["Delta_f"])


def _overlap(work: Tensor, work_back: Tensor, delta: float) -> float:
    """Return the overlap of two ends, from 0 to 1 for equal ones.

    The mean over all points of P(start | x) P(end | x), by what it is for equal ends.
    """
    log_ratio = math.log(len(work_back) / len(work))
    log_odds = torch.cat([delta - work, delta + work_back]) + log_ratio
    both = torch.sigmoid(log_odds) * torch.sigmoid(-log_odds)
    n, m = len(work), len(work_back)
    return float(both.mean()) * (n + m) ** 2 / (n * m)


def _pymbar() -> Any:
    """Import pymbar when it is needed: it takes seconds, and talks of modules not used here."""
    logging.getLogger("pymbar").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pymbar
    return pymbar
