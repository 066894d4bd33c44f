"""Forward Kullback-Leibler divergence by importance weights."""

from torch import Tensor

from flows.errors import FlowInputError
from flows.flow import Flow
from flows.losses.base import Loss, Stats, check_max_weight, scaled_weights, zeroed
from flows.types import Samples, Weights


class ForwardKL(Loss):
    """KL(p || q) up to the entropy of p, on weighted points from any μ.

        L = -E_{x~μ} [ (w - b v) log q(x) ],   w ∝ p/μ, v ∝ q/μ, both of mean 1 over the batch

    with w and v free of gradient. Minimised by q = p. Since E_μ[v ∇log q] = 0, the baseline b
    changes the noise and not the mean of the gradient, and with b = 1 the noise vanishes at q = p
    whatever μ is. On a fixed set of points it also bounds what is fitted, the ratio q/μ among
    them: a spike of q on every point gains nothing. On-policy (μ = q) v = 1, and b = 0 is the
    pseudo forward KL of arXiv 2301.05475. With b = 0 on data it is maximum likelihood (KLx), which
    asks nothing of the data's density. Compared with L2+ the pull on a point grows with its
    weight itself rather than its logarithm: basins that the flow has half lost come back first.

    Args:
        max_weight: Largest w and v; a single point beyond it pulls no harder.
        baseline: b in [0, 1].

    References:
        Felardos, Hénin, Charpiat, arXiv 2301.05475; Williams, REINFORCE, Mach. Learn. 8 (1992).
    """

    def __init__(self, max_weight: float = 50.0, *, baseline: float = 1.0) -> None:
        self.max_weight = check_max_weight(max_weight)
        if not 0 <= baseline <= 1:
            raise FlowInputError(f"Expected baseline in [0, 1], got {baseline}.")
        self.baseline = baseline
        self.needs = Weights.RELATIVE if baseline > 0 else Weights.NONE

    def __call__(self, flow: Flow, samples: Samples) -> tuple[Tensor, Stats]:
        """Return L; rows without a finite weight count with w = v = 0."""
        finite = samples.finite
        log_q = zeroed(flow.log_prob(samples.x).double(), finite)
        w = scaled_weights(samples.log_w, finite, self.max_weight)
        v = scaled_weights(log_q - samples.log_q, finite, self.max_weight)
        # The cut has lowered the means: with equal ones the coefficients sum to 1 - b.
        v = v * (w.mean() / v.mean().clamp_min(1e-300))
        return -((w - self.baseline * v) * log_q).mean(), {}
