"""Forward Kullback-Leibler divergence by importance weights."""

import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.flow import Flow
from flows.losses.base import Loss, Stats, zeroed
from flows.types import Samples


class ForwardKL(Loss):
    """KL(p || q) up to the entropy of p, on weighted points.

        L = -E_{x~μ} [ (w - 1) log q(x) ],   w = p/μ scaled to mean 1 over the batch

    with w free of gradient. Minimised by q = p. Without the "- 1" this is weighted maximum
    likelihood: on-policy (μ = q) the pseudo forward KL of arXiv 2301.05475. There
    E_q[∇ log q] = 0, so that the baseline changes the noise and not the mean of the gradient, and
    the noise vanishes at q = p. The pull on a point grows with its weight itself rather than, as
    in L2+, with the logarithm: basins that the flow has half lost come back first. Off-policy the
    baseline would be biased: points must come from the flow in training.

    Args:
        max_weight: Largest scaled weight; a single point beyond it pulls no harder.

    References:
        Felardos, Hénin, Charpiat, arXiv 2301.05475; Williams, REINFORCE, Mach. Learn. 8 (1992).
    """

    def __init__(self, max_weight: float = 50.0) -> None:
        if not max_weight > 1:
            raise FlowInputError(f"Expected max_weight > 1, got {max_weight}.")
        self.max_weight = max_weight

    def __call__(self, flow: Flow, samples: Samples) -> tuple[Tensor, Stats]:
        """Return L; rows without a finite weight count with w = 0."""
        log_w = torch.where(samples.finite, samples.log_w, -torch.inf)
        w = (torch.softmax(log_w, 0) * len(samples)).clamp_max(self.max_weight)
        log_q = zeroed(flow.log_prob(samples.x).to(torch.float64), samples.finite)
        # The mean rather than 1, which the cut has lowered: the coefficients sum to zero.
        return -((w - w.mean()) * log_q).mean(), {}
