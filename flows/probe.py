"""A probe of what a flow has missed: walkers that leave its samples over the barriers and return.

All that weights tell is told by points of the flow. A flow that lost a basin draws no points
there, and its ESS is high. So points are sought elsewhere: walkers start from the flow's weighted
samples, are heated until barriers are low, and cooled back, by Hamiltonian Monte Carlo at a ladder
of temperatures. Where they end the flow's density is asked for. No simulation, no reference.

The walkers carry the weights of annealed importance sampling around the cycle,

    log W = Σ_k (β_k - β_{k+1}) U(x_k),   β = 1/RT,

which make their ends points of the target at its own temperature, however fast they were heated
and cooled, if the flow's weighted samples are; weights of a flow that lost basins are not, and the
mass of what it lost is then a lower estimate, exact once the hot walkers forget where they began.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from energies.base import R, Target
from flows.errors import FlowInputError, OverlapError
from flows.flow import Flow
from flows.metrics.weights import (
    Estimate,
    check_log_weights,
    effective_size,
    log_z,
    resample,
    weighted_mean,
)
from flows.proposals.hmc import HMC, Walkers
from flows.types import Samples

LEAST_SAMPLES = 10.0
"""Effective samples of the flow that walkers need to start from."""

LEAST_WALKERS = 25.0
"""Effective walkers below which a probe that found nothing says nothing."""

LEAST_SEEN = 3.0
"""Effective walkers, (mass / its error)², that must have seen a missing mass."""

N_ERRORS = 3.0
"""Standard errors by which a missing mass must exceed what is known of and tolerated."""


@dataclass(frozen=True)
class Share:
    """A share of the target, seen by two kinds of points.

    Attributes:
        mass: As the walkers have it.
        known: As the flow's own weighted samples have it.
    """

    mass: Estimate
    known: Estimate

    def exceeds(self, tolerated: float) -> bool:
        """Whether the walkers' mass is more than the flow's samples account for.

        Its logarithm is compared, less `N_ERRORS` of its standard errors, with that of `known`,
        plus as many of its own, plus `tolerated`: with few walkers a mass is right to a factor.
        One heavy walker alone is no evidence.
        """
        value, se = self.mass
        if value == 0 or value**2 < LEAST_SEEN * se**2:
            return False
        allowed = self.known.value + N_ERRORS * self.known.se + tolerated
        return math.log(value) - N_ERRORS * se / value > math.log(allowed)


@dataclass(frozen=True)
class Region:
    """Points that lie together, where the target is far above the flow.

    Attributes:
        share: Of the target there.
        log_ratio: Median of log p(x)/q(x) over its points, nats, p normalised by the flow's log Z.
        samples: Its points, the heaviest first.
    """

    share: Share
    log_ratio: float
    samples: Samples


@dataclass(frozen=True)
class Probe:
    """What the walkers found.

    Attributes:
        missing: Share of the target where p > factor q.
        tolerated: Missing mass below which nothing is said.
        factor: By how much p exceeds q in what counts.
        effective: Effective number of walkers.
        acceptance: Share of their last moves that was accepted.
        temperature: Highest temperature, kelvin.
        regions: Where the missing share lies, the most massive first.
    """

    missing: Share
    tolerated: float
    factor: float
    effective: float
    acceptance: float
    temperature: float
    regions: list[Region]

    @property
    def found(self) -> bool:
        """Whether something is missing, in one region or in all of them together."""
        shares = [self.missing, *(region.share for region in self.regions)]
        return any(share.exceeds(self.tolerated) for share in shares)

    @property
    def verdict(self) -> str:
        """Say it in a sentence or two."""
        (value, se), known = self.missing.mass, self.missing.known.value
        where = (
            f"{value:.2%} ± {se:.2%} of the target lies where its density is more than "
            f"{self.factor:g} times the flow's, {known:.2%} by the flow's own samples."
        )
        if self.found:
            worst = next(
                (r for r in self.regions if r.share.exceeds(self.tolerated)), self.regions[0]
            )
            return (
                f"Not to be trusted: {where} One region holds {worst.share.mass.value:.2%} ± "
                f"{worst.share.mass.se:.2%} and the flow is too low there by a factor of about "
                f"e^{worst.log_ratio:.0f}: no ESS and no reweighting shows what was not sampled."
            )
        if self.effective < LEAST_WALKERS:
            return (
                f"Not conclusive: the walkers are worth {self.effective:.1f} independent points; "
                "take more of them, or more steps."
            )
        return f"Nothing missing was found: {where}"


def probe(
    flow: Flow,
    target: Target,
    samples: Samples,
    *,
    temperature: float,
    n: int = 2048,
    hot: float = 4.0,
    n_steps: int = 300,
    moves: HMC | None = None,
    factor: float = 20.0,
    tolerated: float = 3e-4,
    features: Callable[[Tensor], Tensor] | None = None,
    radius: float = 0.5,
    generator: torch.Generator,
    progress: Callable[[list[float]], Iterable[float]] = iter,
) -> Probe:
    """Send walkers from a flow's weighted samples over the barriers and back.

    Costs 2 n n_steps moves, each `n_leapfrog` energies with forces, and one density of the flow a
    walker.

    Args:
        flow: A trained flow.
        target: The density over x.
        samples: Points of the flow weighed towards the target.
        temperature: T, kelvin, that of the weights.
        n: Walkers.
        hot: Highest temperature, in units of T.
        n_steps: Temperatures on the way up, geometric, and as many on the way down.
        moves: How walkers move; `HMC(6, adaptation=0.2)` if not given.
        factor: p/q above which a point counts as missing.
        tolerated: Missing mass that is not worth an alarm.
        features: Gives of x [m, D] the features [m, K] whose Euclidean distance tells regions
            apart; x itself if not given.
        radius: Points closer than this lie in one region.
        generator: Source of randomness, on the CPU.
        progress: Wraps what is iterated over, as tqdm does.

    Raises:
        FlowInputError: An argument is out of range, or no sample has a weight.
        OverlapError: The weights rest on so few samples that there is nothing to start from.
    """
    for name, value, low in (("n", n, 2), ("n_steps", n_steps, 1)):
        if value < low or value != int(value):
            raise FlowInputError(f"Expected {name} >= {low} and a whole number, got {value}.")
    for name, number, least in (("hot", hot, 1.0), ("factor", factor, 1.0), ("radius", radius, 0)):
        if not least < number < math.inf:
            raise FlowInputError(f"Expected {name} > {least:g}, got {number}.")
    if not tolerated > 0:
        raise FlowInputError(f"Expected tolerated > 0, got {tolerated}.")
    own = check_log_weights(samples.log_w, min_rows=2, positive=True)
    if (size := effective_size(own)) < LEAST_SAMPLES:
        raise OverlapError(
            f"Expected at least {LEAST_SAMPLES:g} effective samples for walkers to start from, "
            f"got {size:.3g} of {len(own)}: the flow has learnt too little of the target yet."
        )
    z = log_z(own).value
    moves = HMC(6, adaptation=0.2) if moves is None else moves
    start = samples.x[resample(own.cpu(), int(n), generator).to(samples.x.device)]
    steps = progress(_shares(hot, int(n_steps)))
    walkers, log_w = _cycle(target, start, temperature, hot, steps, moves, generator)
    ends = _weighed(flow, walkers.samples)
    missing, heavy = (w - z > math.log(factor) for w in (ends.log_w, own))
    features = _itself if features is None else features
    at, heavy_at = features(ends.x).double(), features(samples.x[heavy]).double()
    regions = []
    for rows in _groups(missing, at, radius):
        near = torch.zeros_like(heavy)
        near[heavy] = (torch.cdist(heavy_at, at[rows]) < radius).any(1)
        regions.append(
            Region(
                Share(weighted_mean(rows, log_w), weighted_mean(near, own)),
                float((ends.log_w[rows] - z).median()),
                ends[rows.nonzero()[:, 0][log_w[rows].argsort(descending=True)]],
            )
        )
    return Probe(
        missing=Share(weighted_mean(missing, log_w), weighted_mean(heavy, own)),
        tolerated=tolerated,
        factor=factor,
        effective=effective_size(log_w),
        acceptance=moves.figures()["acceptance"],
        temperature=hot * temperature,
        regions=sorted(regions, key=lambda region: -region.share.mass.value),
    )


def _shares(hot: float, n_steps: int) -> list[float]:
    """Return s of p_hot^{1-s} p^s down to 0 and back to 1, its temperatures geometric.

    s is linear in 1/T: what AIS walks along from a flow to its target, with the hot density in
    the place of the flow's.
    """
    ladder = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    cold: list[float] = ((hot**-ladder - 1 / hot) / (1 - 1 / hot)).tolist()
    return cold[1:] + cold[-2::-1]


def _cycle(
    target: Target,
    x: Tensor,
    temperature: float,
    hot: float,
    shares: Iterable[float],
    moves: HMC,
    generator: torch.Generator,
) -> tuple[Walkers, Tensor]:
    """Heat the points [n, D] and cool them; return where they are, and their log W [n]."""

    def evaluate(x: Tensor) -> Walkers:
        return _between(target, x, hot * temperature, temperature)

    walkers, share = evaluate(x), 1.0
    log_w = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for s in shares:
        log_w = log_w + (s - share) * walkers.samples.log_w
        walkers = moves.move(
            walkers, evaluate, target.periodic, share=s, place=0, generator=generator
        )
        share = s
    return walkers, log_w


def _between(target: Target, x: Tensor, hot: float, cold: float) -> Walkers:
    """Return points whose "flow" is the target at the hot temperature, with both gradients."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        e = target.evaluate(x)
        (slope,) = torch.autograd.grad(e.potential.sum(), x, retain_graph=True)
        # Adding zero: the determinant of some coordinates is a constant.
        (growth,) = torch.autograd.grad((e.log_jac + 0.0 * x.sum(-1)).sum(), x)
    log_hot, log_cold = (target.log_prob(e, t) for t in (hot, cold))
    score_hot, score_cold = (
        torch.nan_to_num(growth - slope / (R * t), 0.0, 0.0, 0.0) for t in (hot, cold)
    )
    samples = Samples(x, log_hot, log_cold, log_cold - log_hot, e.potential, e.log_jac).detach()
    return Walkers(samples, score_hot, score_cold)


@torch.no_grad()
def _weighed(flow: Flow, samples: Samples) -> Samples:
    """Give the points the flow's density; where that is no number the flow has none."""
    log_q = torch.nan_to_num(flow.log_prob(samples.x), nan=-torch.inf, neginf=-torch.inf)
    return Samples(
        samples.x, log_q, samples.log_p, samples.log_p - log_q, samples.potential, samples.log_jac
    )


def _itself(x: Tensor) -> Tensor:
    return x


def _groups(rows: Tensor, features: Tensor, radius: float) -> list[Tensor]:
    """Split rows, bool [n], into those connected by steps shorter than the radius."""
    members = rows.nonzero()[:, 0]
    near = torch.cdist(features[members], features[members]) < radius
    n_groups, label = connected_components(near.cpu().numpy(), directed=False)
    groups = []
    for k in range(n_groups):
        mask = torch.zeros_like(rows)
        mask[members[torch.from_numpy(label == k).to(members.device)]] = True
        groups.append(mask)
    return groups
