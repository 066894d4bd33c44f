"""The noise a flow starts from."""

import math
from typing import Any

import torch
from nflows.distributions import Distribution
from torch import Tensor

from flows.errors import FlowInputError


class NormalUniform(Distribution):  # type: ignore[misc]  # nflows has no types
    r"""Independent normal coordinates on lines and uniform ones on circles.

    .. math:: \log p(z) = \sum_{\text{lines}} \log N(z_i; 0, σ^2) - n_{\text{circles}} \log 2π

    Args:
        periodic: bool [D], the coordinates on the circle [-π, π).
        scale: σ of the normal coordinates.
    """

    periodic: Tensor
    scale: Tensor

    def __init__(self, periodic: Tensor, *, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise FlowInputError(f"Expected scale > 0, got {scale}")
        self.register_buffer("periodic", periodic)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.get_default_dtype()))
        n_linear = int((~periodic).sum())
        self._log_norm = -n_linear * (math.log(scale) + 0.5 * math.log(2 * math.pi))
        self._log_norm -= (len(periodic) - n_linear) * math.log(2 * math.pi)

    def draw(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Return n points, [n, D].

        A generator's numbers are drawn where it lives and then moved: a CPU generator gives the
        same points on every device.
        """
        device = self.scale.device if generator is None else generator.device
        shape = (n, len(self.periodic))
        options: Any = {"generator": generator, "device": device, "dtype": self.scale.dtype}
        normal = torch.randn(shape, **options).to(self.scale.device)
        uniform = torch.rand(shape, **options).to(self.scale.device)
        return torch.where(self.periodic, math.pi * (2 * uniform - 1), self.scale * normal)

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """Return log p of the points [n, D] as float64, [n]."""
        u = torch.where(self.periodic, 0.0, inputs / self.scale).double()
        return self._log_norm - 0.5 * u.square().sum(-1)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        return self.draw(num_samples)
