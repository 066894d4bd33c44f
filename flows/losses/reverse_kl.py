"""Reverse Kullback-Leibler divergence."""

from torch import Tensor

from flows.flow import Flow
from flows.losses.base import Loss, Stats, check_fraction, kept, masked_mean
from flows.types import Samples


class ReverseKL(Loss):
    """KL(q || p) up to log Z, the free energy of the flow (KLz of arXiv 2301.05475).

        L = E_{z} [ log q(x) - log p̃(x) ],   x = f_θ(z)

    Minimised by q = p, with L = -log Z; also low wherever q covers some modes of p only. On-policy
    by construction: the gradient passes through x. It needs forces, and its noise does not vanish
    at the minimum; `ReverseKLPath` has none there.

    Args:
        drop: Share of the batch with the lowest log weights that is left out.

    References:
        Noé et al., Boltzmann generators, Science 365 (2019), arXiv 1812.01729.
    """

    reparametrised = True

    def __init__(self, drop: float = 0.01) -> None:
        self.drop = check_fraction("drop", drop)

    def difference(self, flow: Flow, samples: Samples) -> Tensor:
        """Return log q - log p̃ with the gradient that counts, [n]."""
        return samples.log_q - samples.log_p

    def __call__(self, flow: Flow, samples: Samples) -> tuple[Tensor, Stats]:
        """Return L over the rows kept."""
        difference = self.difference(flow, samples)
        return masked_mean(difference, kept(-difference.detach(), self.drop)), {}
