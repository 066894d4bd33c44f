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
            matrices: dict[torch.Size, list[Tensor]] = {}
            others = []
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.ndim == 2:
                    matrices.setdefault(parameter.shape, []).append(parameter)
                elif parameter.grad is not None:
                    others.append(parameter)
            for same in matrices.values():
                self._orthogonal_step(same, group)
            if others:
                self._adam_step(others, group)

    def _orthogonal_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Change matrices of one shape: together, as small products alone leave cores idle."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients, momenta = _gradients(parameters), self._states(parameters, "momentum")
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        directions = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        steps = orthogonalised(torch.stack(directions)).unbind()
        scale = _UPDATE_RMS * group["lr"] * math.sqrt(max(parameters[0].shape))
        torch._foreach_add_(parameters, steps, alpha=-scale)

    def _adam_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["step"] = 0
                self.state[parameter]["mean"] = torch.zeros_like(parameter)
                self.state[parameter]["square"] = torch.zeros_like(parameter)
            self.state[parameter]["step"] += 1
        steps = [self.state[parameter]["step"] for parameter in parameters]
        gradients = _gradients(parameters)
        means, squares = (self._states(parameters, name) for name in ("mean", "square"))
        first, second = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - second)
        scales = torch._foreach_div(squares, [1 - second**n for n in steps])
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, group["eps"])
        rates = [-group["lr"] / (1 - first**n) for n in steps]
        torch._foreach_addcdiv_(parameters, means, scales, rates)

    def _states(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        return [self.state[parameter][name] for parameter in parameters]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return nearly U Vᵀ of each matrix U Σ Vᵀ, [..., m, n]; singular values about [0.7, 1.2].

    Five iterations X ← (a + b S + c S²) X, S = X Xᵀ, whose slope at zero lifts a singular value
    500-fold; those below 1e-3 of the Frobenius norm stay short of one. They commute with S, so
    all but the last product run on the smaller Gram matrix, S ← P S P with P = a + b S + c S².
    """
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / norm.clamp_min(torch.finfo(x.dtype).tiny)
    gram = x @ x.mT
    product = identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    for _ in range(_N_ITERATIONS):
        polynomial = a * identity + b * gram + c * (gram @ gram)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    result: Tensor = product @ x
    return result.mT if tall else result
