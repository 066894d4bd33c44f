"""Muon: steps of equal length in every direction of a weight matrix."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flows.errors import FlowInputError

_QUINTIC = (3.4445, -4.7750, 2.0315)
_N_ITERATIONS = 5
_UPDATE_RMS = 0.2


class Muon(Optimizer):
    r"""Orthogonalised momentum for matrices, Adam for every other parameter.

    .. math:: B ← μ B + G, \quad W ← W - 0.2\, η \sqrt{\max(m, n)}\ U V^T, \quad
              U Σ V^T = G + μ B

    A step of a matrix [m, n] has all its singular values near one: directions in which the
    gradient is small move as far as the others. With the factor 0.2 √max(m, n) the root mean
    square of a step is that of a usual Adam step, so that η means the same for both kinds of
    parameter. U Vᵀ comes from five Newton-Schulz iterations in the dtype of the parameter;
    `torch.optim.Muon` casts to bfloat16, which CPUs without it emulate, and takes matrices only.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate η.
        momentum: μ in [0, 1).
        betas: Adam's decays for the parameters that are no matrices.
        eps: Added to Adam's denominators.

    Raises:
        FlowInputError: lr is not positive, or a decay is outside [0, 1).

    References:
        Jordan et al., Muon, https://kellerjordan.github.io/posts/muon (2024);
        Liu et al., Muon is scalable for LLM training, arXiv 2502.16982 (the factor 0.2 √max);
        Kingma, Ba, Adam, arXiv 1412.6980.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        if not lr > 0:
            raise FlowInputError(f"Expected lr > 0, got {lr}.")
        for name, decays in {"momentum": [momentum], "betas": betas}.items():
            if not all(0 <= decay < 1 for decay in decays):
                raise FlowInputError(f"Expected {name} in [0, 1), got {decays}.")
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        if closure is not None:
            raise FlowInputError("Expected no closure: Muon evaluates the gradient once.")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if parameter.ndim == 2:
                    parameter.sub_(_orthogonal_step(parameter.grad, state, group))
                else:
                    parameter.sub_(_adam_step(parameter.grad, state, group))


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return nearly U Vᵀ of `matrix` = U Σ Vᵀ, [m, n], with singular values in about [0.7, 1.2].

    Five iterations X ← a X + (b S + c S²) X, S = X Xᵀ, whose slope at zero lifts a singular value
    500-fold; those below 1e-3 of the Frobenius norm stay short of one.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(_N_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _orthogonal_step(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if not state:
        state["momentum"] = torch.zeros_like(gradient)
    momentum = state["momentum"].mul_(group["momentum"]).add_(gradient)
    direction = orthogonalised(torch.add(gradient, momentum, alpha=group["momentum"]))
    return direction.mul_(_UPDATE_RMS * group["lr"] * math.sqrt(max(gradient.shape)))


def _adam_step(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float64)
        state["mean"] = torch.zeros_like(gradient)
        state["square"] = torch.zeros_like(gradient)
    state["step"] += 1
    first, second = group["betas"]
    state["mean"].lerp_(gradient, 1 - first)
    state["square"].lerp_(gradient.square(), 1 - second)
    n = int(state["step"])
    mean, square = state["mean"] / (1 - first**n), state["square"] / (1 - second**n)
    update: Tensor = group["lr"] * mean / (square.sqrt() + group["eps"])
    return update
