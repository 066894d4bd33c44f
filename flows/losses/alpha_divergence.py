"""The α-divergences."""

import math

import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.flow import Flow
from flows.losses.base import Loss, Stats, check_max_weight, scaled_weights, zeroed
from flows.types import Samples, Weights


class AlphaDivergence(Loss):
    """Rényi's divergence of order α > 0 over α: for α = 2 what FAB minimises.

        L = log E_{x~μ} [ (p̃/q)^α q/μ ] / (α (α - 1)),   ∇L = -E_π[∇ log q] / α,   π ∝ p^α q^{1-α}

    Minimised by q = p, with L = log Z / (α - 1). Its gradient points as that of the α-divergence
    (∫ p^α q^{1-α} - 1) / (α (α - 1)), whose logarithm it is: weights of the batch enter by their
    ratios. α > 1 punishes mass that q lacks, the more the larger α; α -> 1 is the forward KL, α ->
    0 the reverse. The best μ is π itself, from AIS or a prioritised buffer; on-policy (μ = q) the
    weights w^α are the noisier the larger α.

    Args:
        alpha: α > 0, not 1.
        max_weight: Largest weight π/μ, of mean 1 over the batch, in the gradient.

    References:
        Midgley et al., Flow annealed importance sampling bootstrap, arXiv 2208.01893.
    """

    needs = Weights.RELATIVE

    def __init__(self, alpha: float = 2.0, *, max_weight: float = 10.0) -> None:
        if not 0 < alpha < math.inf or alpha == 1:
            raise FlowInputError(
                f"Expected alpha > 0 and not 1, got {alpha}; loss=forward_kl is alpha = 1, "
                "loss=reverse_kl alpha = 0."
            )
        self.alpha, self.max_weight = alpha, check_max_weight(max_weight)

    def __call__(self, flow: Flow, samples: Samples) -> tuple[Tensor, Stats]:
        """Return L with the gradient of the cut weights."""
        a, finite = self.alpha, samples.finite
        log_q = zeroed(flow.log_prob(samples.x).double(), finite)
        log_w = a * samples.log_p + (1 - a) * log_q.detach() - samples.log_q
        mean = torch.where(finite, log_w, -torch.inf).logsumexp(0) - math.log(len(samples))
        w = scaled_weights(log_w, finite, self.max_weight)
        pull = -(w * log_q).mean() / a
        return mean / (a * (a - 1)) + pull - pull.detach(), {}
