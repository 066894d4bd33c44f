"""The flow's samples with a share of them at angles that it rarely draws."""

import math

import torch

from energies.base import Target
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.losses.base import check_fraction
from flows.paths.base import Path
from flows.proposals.base import Proposal, systematic
from flows.types import Samples, Weights


class HotAngles(Proposal):
    """Points of the flow, in some of which the angles are drawn from their density heated.

        μ(φ, y) = q(φ) g(φ) q(y | φ),   g = 1 - s + s q(φ)^{1/τ - 1} / E_q[q(φ)^{1/τ - 1}]

    A basin of small population has few points in a batch of the flow's own, and its population is
    learned as slowly and with as much noise as these few allow. Here it has many more, whereas
    all other coordinates are drawn as the flow draws them and cost no weight. Of n points n - s n
    are the flow's own; the angles of the others are resampled by q^{1/τ - 1} from a pool of the
    flow's, which takes its angle layers and no energy. The mean in g is the pool's, so that μ is
    known up to a factor. Weights q/μ are at most 1 / (1 - s).

    Args:
        share: s in [0, 1), of points drawn from q(φ)^{1/τ}.
        temperature: τ >= 1, of the angles' density in units of its own.
        pool: Size of the pool in batches; the first is that of the flow's own points.

    References:
        Hesterberg, Weighted average importance sampling and defensive mixture distributions,
        Technometrics 37 (1995); Rubin, sampling importance resampling, JASA 82 (1987).
    """

    gives = Weights.RELATIVE

    def __init__(self, share: float = 0.3, *, temperature: float = 2.0, pool: int = 3) -> None:
        if not temperature >= 1:
            raise FlowInputError(f"Expected temperature >= 1 of hot_angles, got {temperature}.")
        if pool < 1:
            raise FlowInputError(f"Expected pool >= 1 of hot_angles, got {pool}.")
        self.share = check_fraction("share of hot_angles", share)
        self.temperature, self.pool = temperature, pool

    @torch.no_grad()
    def draw(
        self,
        flow: Flow,
        target: Target,
        path: Path,
        n: int,
        *,
        reparametrised: bool,
        generator: torch.Generator,
    ) -> Samples:
        """Return n points, those of heated angles first."""
        pool = [flow.base.draw(n, generator=generator) for _ in range(self.pool)]
        log_q = torch.cat([flow.angle_log_prob(z) for z in pool])
        log_hot = (1 / self.temperature - 1) * log_q
        n_hot = round(self.share * n)
        hot = systematic(torch.softmax(log_hot, 0), n_hot, generator)
        rows = torch.cat([hot, torch.arange(n_hot, n, device=hot.device)])
        z = torch.where(flow.periodic, torch.cat(pool)[rows], pool[0])
        log_ratio = log_hot[rows] - log_hot.logsumexp(0) + math.log(len(log_hot))
        log_g = torch.log1p(n_hot / n * torch.expm1(log_ratio))
        return path.evaluate(target, *flow.from_noise(z, flow.base.log_prob(z) + log_g))
