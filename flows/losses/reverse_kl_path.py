"""Reverse Kullback-Leibler divergence with the gradient along the path of the points alone."""

from torch import Tensor

from flows.flow import Flow
from flows.frozen import frozen
from flows.losses.reverse_kl import ReverseKL
from flows.types import Samples


class ReverseKLPath(ReverseKL):
    """The reverse KL without the part of its gradient whose mean is zero.

        L = E_z [ log q(x) - log p̃(x) ],   ∇L = E_z [ ∂x/∂θ · ∇_x log q(x)/p̃(x) ],   x = f_θ(z)

    ∂ log q/∂θ at fixed x, of mean zero, is left out: the gradient is zero point by point at q = p,
    where that of `ReverseKL` is noise. Like it, it needs points of the flow with gradient, and
    forces; and a second pass through the flow, from x back to z with its parameters held.

    Args:
        drop: Share of the batch with the lowest log weights that is left out.

    References:
        Roeder, Wu, Duvenaud, Sticking the landing, arXiv 1703.09194.
        Vaitl et al., Gradients should stay on path, arXiv 2207.08219.
    """

    def difference(self, flow: Flow, samples: Samples) -> Tensor:
        """Return log q - log p̃, in which q depends on the parameters through x alone, [n]."""
        with frozen(flow):
            return flow.log_prob(samples.x).double() - samples.log_p
