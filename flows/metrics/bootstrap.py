"""Bootstrap intervals: how far an estimate from n independent rows would scatter.

Each replicate takes every row Poisson(1) times. What is a function of sums over the rows (means,
populations, free energies, histograms, ESS) needs no rows: sums over blocks of consecutive rows
scatter as those of the rows do, and cost the same whatever n is. Everything else is computed from
the rows taken. Intervals are percentiles of the replicates, so they follow a skewed estimate and
go along with any monotone function of it; they know nothing of a region that no row has seen.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from energies.base import R
from flows.errors import FlowInputError
from flows.metrics.histograms import as_density
from flows.metrics.weights import check_log_weights, effective_size

_AT_A_TIME = 1 << 22
"""Poisson numbers held at a time."""


class Interval(NamedTuple):
    """An estimate with its error, all in the same unit.

    Attributes:
        value: The estimate from all rows.
        se: Standard deviation of the replicates; +inf if one of them is not finite.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    se: float
    low: float
    high: float

    def reflected(self) -> "Interval":
        """Return the interval of an estimate that noise makes larger, such as a distance.

        Replicates have the noise twice and lie above the estimate about as far as the estimate
        lies above the truth: the interval is turned round it, and never below 0.
        """
        low, high = 2 * self.value - self.high, 2 * self.value - self.low
        return self._replace(low=max(low, 0.0), high=max(high, 0.0))


def bootstrap(
    statistic: Callable[[Tensor], float],
    n: int,
    *,
    level: float = 0.95,
    n_rep: int = 200,
    generator: torch.Generator,
) -> Interval:
    """Return a statistic of n rows with its interval.

    Args:
        statistic: Function of the rows taken, int64 [about n], for instance
            ``lambda rows: log_z(log_w[rows]).value``.
        n: Number of rows, at least 30 (so that no replicate is empty).
        level: Probability of the interval, in (0, 1).
        n_rep: Number of replicates, at least 2.
        generator: Source of randomness, on the device where the rows are wanted.
    """
    _check(n, level, n_rep)
    rate = torch.ones(n, device=generator.device)
    values = torch.empty(n_rep, dtype=torch.float64)
    for r in range(n_rep):
        counts = torch.poisson(rate, generator=generator)
        # Rows taken once or more, then those taken twice or more ...: quicker than repeating.
        repeats = range(int(counts.max()))
        values[r] = statistic(torch.cat([(counts > k).nonzero()[:, 0] for k in repeats]))
    return _interval(statistic(torch.arange(n, device=generator.device)), values, level)


def bootstrap_sums(
    terms: Tensor,
    function: Callable[[Tensor], Tensor],
    *,
    level: float = 0.95,
    n_rep: int = 1000,
    n_blocks: int = 10_000,
    generator: torch.Generator,
) -> list[Interval]:
    """Return functions of sums over rows with their intervals.

    Args:
        terms: What is summed, [n, K], n >= 30.
        function: Takes sums [r, K] to statistics [r, J], row by row.
        level: Probability of the interval, in (0, 1).
        n_rep: Number of replicates, at least 2.
        n_blocks: Blocks that replicates are made of; the rows themselves if there are fewer.
        generator: Source of randomness, on the device of `terms`.

    Returns:
        J intervals.
    """
    if terms.ndim != 2:
        raise FlowInputError(f"Expected terms of shape [n, K], got {list(terms.shape)}.")
    n = len(terms)
    _check(n, level, n_rep)
    blocks = min(n, n_blocks)
    owner = torch.arange(n, device=terms.device) * blocks // n
    sums = terms.new_zeros(blocks, terms.shape[1], dtype=torch.float64)
    sums.index_add_(0, owner, terms.detach().to(torch.float64))
    parts = []
    step = max(1, _AT_A_TIME // blocks)
    for done in range(0, n_rep, step):
        rate = torch.ones(min(step, n_rep - done), blocks, device=terms.device)
        counts = torch.poisson(rate, generator=generator).to(torch.float64)
        parts.append(function(counts @ sums))
    values = function(sums.sum(0, keepdim=True))[0].tolist()
    return [
        _interval(value, column, level)
        for value, column in zip(values, torch.cat(parts).unbind(-1), strict=True)
    ]


def bootstrap_means(
    values: Mapping[str, Tensor],
    log_w: Tensor,
    *,
    level: float = 0.95,
    n_rep: int = 1000,
    generator: torch.Generator,
) -> dict[str, Interval]:
    """Return self-normalised means Σ w v / Σ w with their intervals.

    Args:
        values: Name -> observable at each point, any unit, [n]; ignored where the weight is zero.
        log_w: Log weights, [n]; zeros for plain means.
        level: Probability of the intervals, in (0, 1).
        n_rep: Number of replicates.
        generator: Source of randomness, on the device of `log_w`.

    Raises:
        FlowInputError: Every weight is zero, or an observable has another shape or is not finite
            where the weight is positive.
    """
    lw = check_log_weights(log_w, positive=True)
    w = (lw - lw.max()).exp()
    columns = [w]
    for name, v in values.items():
        if v.shape != lw.shape:
            raise FlowInputError(
                f"Expected values[{name!r}] of shape {list(lw.shape)} like log_w, "
                f"got {list(v.shape)}."
            )
        column = v.detach().to(lw).where(w > 0, 0.0)
        if n_bad := int((~column.isfinite()).sum()):
            raise FlowInputError(
                f"Expected values[{name!r}] finite where the weight is positive, "
                f"got {n_bad} rows that are not."
            )
        columns.append(w * column)
    found = bootstrap_sums(
        torch.stack(columns, dim=-1),
        lambda sums: sums[:, 1:] / sums[:, :1],
        level=level,
        n_rep=n_rep,
        generator=generator,
    )
    return dict(zip(values, found, strict=True))


def bootstrap_populations(
    inside: Mapping[str, Tensor],
    log_w: Tensor,
    *,
    level: float = 0.95,
    n_rep: int = 1000,
    generator: torch.Generator,
) -> dict[str, Interval]:
    """Return the probability of being inside with its interval.

    A basin that no row has seen tells by its absence only: the interval ends where n_eff
    independent points would have missed it with probability 1 - `level`, which is 3 / n_eff for
    95 %, n_eff = (Σ w)² / Σ w².

    Args:
        inside: Name -> which rows are in it, bool [n].
        log_w: Log weights, [n]; zeros for what was sampled.
        level: Probability of the intervals, in (0, 1).
        n_rep: Number of replicates.
        generator: Source of randomness, on the device of `log_w`.
    """
    found = bootstrap_means(inside, log_w, level=level, n_rep=n_rep, generator=generator)
    bound = min(-math.log(1 - level) / effective_size(log_w), 1.0)
    unseen = Interval(0.0, bound, 0.0, bound)
    return {name: p if p.value > 0 else unseen for name, p in found.items()}


def bootstrap_free_energies(
    inside: Mapping[str, Tensor],
    start: Tensor,
    log_w: Tensor,
    *,
    temperature: float,
    level: float = 0.95,
    n_rep: int = 1000,
    generator: torch.Generator,
) -> dict[str, Interval]:
    """Return free energies of basins relative to one of them with their intervals, kJ/mol.

        ΔG = -RT log(P / P_start)

    Both populations come from the same points, and so does each replicate of both.

    Args:
        inside: Name -> which rows are in it, bool [n].
        start: Which rows are in the basin that ΔG is counted from, bool [n].
        log_w: Log weights, [n]; zeros for what was sampled.
        temperature: T in kelvin.
        level: Probability of the intervals, in (0, 1).
        n_rep: Number of replicates.
        generator: Source of randomness, on the device of `log_w`.

    Returns:
        Estimates; infinite where one of the two was never visited, NaN where neither was.
    """
    _check_temperature(temperature)
    lw = check_log_weights(log_w, positive=True)
    w = (lw - lw.max()).exp()
    found = bootstrap_sums(
        torch.stack([w * start, *(w * rows for rows in inside.values())], dim=-1),
        lambda sums: R * temperature * (sums[:, :1].log() - sums[:, 1:].log()),
        level=level,
        n_rep=n_rep,
        generator=generator,
    )
    return dict(zip(inside, found, strict=True))


def effective_inside(inside: Tensor, log_w: Tensor) -> float:
    """Return the effective number of samples that a population rests on: (Σ w)² / Σ w² inside.

    Below some tens the heaviest weights inside may still be unseen, and an interval too narrow.

    Args:
        inside: Which rows are in the basin, bool [n].
        log_w: Log weights, [n].
    """
    return effective_size(torch.where(inside, log_w, -math.inf))


def bootstrap_distances(
    blocks: Tensor,
    reference: Tensor,
    distances: Mapping[str, Callable[[Tensor, Tensor], float]],
    *,
    level: float = 0.95,
    n_rep: int = 200,
    generator: torch.Generator,
) -> dict[str, Interval]:
    """Return distances of a histogram from a reference with their intervals.

    Args:
        blocks: The histogram by blocks, as `blocked_histogram` gives it, [B, bins ** d].
        reference: Density taken as exact, [bins] * d.
        distances: Name -> function of the reference and a density.
        level: Probability of the intervals, in (0, 1).
        n_rep: Number of replicates.
        generator: Source of randomness, on the device of `blocks`.
    """
    shape = tuple(reference.shape)

    def function(sums: Tensor) -> Tensor:
        rows = [
            [distance(reference, as_density(row, shape)) for distance in distances.values()]
            for row in sums
        ]
        return torch.tensor(rows, dtype=torch.float64)

    found = bootstrap_sums(blocks, function, level=level, n_rep=n_rep, generator=generator)
    return {name: p.reflected() for name, p in zip(distances, found, strict=True)}


def free_energy_of(population: Interval, *, temperature: float) -> Interval:
    """Return the free energy of a basin relative to all that is outside it, kJ/mol.

        ΔG = -RT log(P / (1 - P)),   se = RT se_P / (P (1 - P))

    Args:
        population: P; its interval becomes that of ΔG, turned round.
        temperature: T in kelvin.
    """
    _check_temperature(temperature)
    RT = R * temperature

    def of(p: float) -> float:
        if 0 < p < 1:
            return -RT * math.log(p / (1 - p))
        return math.inf if p <= 0 else -math.inf

    p = population.value
    se = RT * population.se / (p * (1 - p)) if 0 < p < 1 else math.inf
    return Interval(of(p), se, of(population.high), of(population.low))


def _interval(value: float, replicates: Tensor, level: float) -> Interval:
    """Percentiles of replicates [n_rep]; the outer of two neighbours, so that inf stays inf."""
    tail = (1 - level) / 2
    low = replicates.quantile(tail, interpolation="lower")
    high = replicates.quantile(1 - tail, interpolation="higher")
    se = float(replicates.std()) if bool(replicates.isfinite().all()) else math.inf
    return Interval(float(value), se, float(low), float(high))


def _check(n: int, level: float, n_rep: int) -> None:
    if n < 30 or n_rep < 2:
        raise FlowInputError(f"Expected n >= 30 and n_rep >= 2, got n={n} and n_rep={n_rep}.")
    if not 0 < level < 1:
        raise FlowInputError(f"Expected level in (0, 1), got {level}.")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise FlowInputError(f"Expected temperature > 0 kelvin, got {temperature}.")
