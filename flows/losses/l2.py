"""Squared differences of log densities: L2, L2+ and the log-variance."""

import torch
from torch import Tensor

from flows.flow import Flow
from flows.losses.base import Loss, Stats, check_fraction, kept, masked_mean, zeroed
from flows.losses.centres import BatchMean, Centre
from flows.state import State
from flows.types import Samples


class L2(Loss):
    """Squared deviation of log p̃ - log q from a constant, under any sampling measure μ.

        L = 1/2 E_{x~μ} [ φ(r - K)² ],   r = log p̃(x) - log q(x),   K without gradient

    with φ the identity and K the batch mean of r or another estimate of log Z. Minimised, with
    L = 0, by every q that is proportional to p̃ where μ has mass; q = p if μ covers p. On-policy
    (μ = q) the gradient is that of the reverse KL, without the noise at the minimum; no force is
    needed.

    Args:
        drop: Share of the batch with the lowest r that is left out, of K too.
        centre: K; `BatchMean` if not given.

    References:
        Felardos, Hénin, Charpiat, arXiv 2301.05475.
    """

    def __init__(self, drop: float = 0.01, *, centre: Centre | None = None) -> None:
        self.drop = check_fraction("drop", drop)
        self.centre = BatchMean() if centre is None else centre
        self.needs = self.centre.needs

    def shape(self, deviation: Tensor) -> Tensor:
        """Return φ(r - K)."""
        return deviation

    def __call__(self, flow: Flow, samples: Samples) -> tuple[Tensor, Stats]:
        """Return L over the rows kept."""
        r = samples.log_p - flow.log_prob(samples.x).to(torch.float64)
        weight = kept(r.detach(), self.drop)
        r = zeroed(r, weight)
        k = self.centre(r.detach(), weight, samples)
        return 0.5 * masked_mean(self.shape(r - k) ** 2, weight), {"log_z_mean": k}

    def state_dict(self) -> State:
        """Return the state of K."""
        return self.centre.state_dict()

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        self.centre.load_state_dict(state, flow)


class L2Plus(L2):
    """L2 with φ = relu: only points to which the flow gives too little mass push.

        L = 1/2 E_{x~μ} [ relu(r - K)² ]

    Minimised by the same q as L2. Points where q is too large are brought down by normalisation
    alone, so that no mode is ever pushed away: this repairs flows that have lost mass. On-policy
    the points below K are silent, which leaves more noise than in L2; off-policy nothing changes.

    Args:
        drop: Share of the batch with the lowest r that is left out, of K too.
        centre: K; `BatchMean` if not given.

    References:
        Felardos, Hénin, Charpiat, arXiv 2301.05475.
    """

    def shape(self, deviation: Tensor) -> Tensor:
        """Return max(deviation, 0)."""
        return torch.relu(deviation)


class LogVariance(Loss):
    """Variance of log p̃ - log q over the batch, mean included in the gradient.

        L = 1/2 Var_{x~μ} [ log p̃(x) - log q(x) ]

    Minimised, with L = 0, by q = p on the support of μ, on-policy or off. Unlike in L2 the mean
    carries gradient, which makes the sum of the score's coefficients vanish: on-policy a baseline
    that lowers the noise, off-policy what makes the loss blind to the norm of q.

    Args:
        drop: Share of the batch with the lowest log weights that is left out.

    References:
        Richter et al., VarGrad, arXiv 2010.10436.
    """

    def __init__(self, drop: float = 0.01) -> None:
        self.drop = check_fraction("drop", drop)

    def __call__(self, flow: Flow, samples: Samples) -> tuple[Tensor, Stats]:
        """Return L over the rows kept."""
        r = samples.log_p - flow.log_prob(samples.x).to(torch.float64)
        weight = kept(r.detach(), self.drop)
        r = zeroed(r, weight)
        mean = masked_mean(r, weight)
        return 0.5 * masked_mean((r - mean) ** 2, weight), {"log_z_mean": mean.detach()}
