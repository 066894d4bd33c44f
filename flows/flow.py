"""The flow: a base density and a bijection, with the three calls every loss is made of."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from nflows.flows.base import Flow as NflowsFlow
from nflows.transforms import CompositeTransform, Transform
from torch import Tensor

from flows.bases import NormalUniform
from flows.errors import FlowInputError
from flows.memory import in_pieces


class Flow(NflowsFlow):  # type: ignore[misc]  # nflows has no types
    r"""Density of x when z = T(x) follows the base.

    .. math:: \log q(x) = \log p(T(x)) + \log|\det ∂T/∂x|

    Points have the dtype of the parameters; log densities are float64 whatever that is.

    Args:
        transforms: Layers in the order data → noise.
        base: Density of the noise; it says which coordinates are angles.
        n_angle_layers: How many of the layers, counted from the noise, move angles by the sight of
            angles alone, if no other layer moves an angle: then q(x) = q(φ) q(y | φ), and the
            angles' own density is known.

    Attributes:
        rows_at_once: Points that go through the layers together, for which the backward pass needs
            memory; more of them go in pieces. None for all.

    Example:
        >>> from flows.build import spline_flow
        >>> flow = spline_flow([True, False, False], n_couplings=2)
        >>> x, log_q = flow.sample_and_log_prob(5, generator=torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(log_q, flow.log_prob(x)))
        True
    """

    def __init__(
        self, transforms: Iterable[Transform], base: NormalUniform, *, n_angle_layers: int = 0
    ) -> None:
        super().__init__(_Chain(transforms), base)
        self.n_angles, self.n_angle_layers = int(base.periodic.sum()), n_angle_layers
        self.rows_at_once: int | None = None

    @property
    def periodic(self) -> Tensor:
        """The coordinates that are angles in [-π, π), bool [D]."""
        return self.base.periodic

    @property
    def dim(self) -> int:
        """Number of coordinates, D."""
        return len(self.periodic)

    @property
    def base(self) -> NormalUniform:
        """Density of the noise."""
        base: NormalUniform = self._distribution
        return base

    def log_prob(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return log q of the points.

        Args:
            inputs: x, [n, D]; angles may have any number of turns.
            context: Must be None.

        Returns:
            log q, float64 [n].

        Raises:
            FlowInputError: x does not have the shape [n, D], or a context is given.
        """
        if inputs.dim() != 2 or inputs.shape[1] != self.dim:
            raise FlowInputError(
                f"Expected inputs of shape [n, {self.dim}], got {list(inputs.shape)}"
            )
        if context is not None:
            raise FlowInputError("Expected context to be None, got one: the flow has no condition")
        z, log_det = self._pass(self._transform, inputs.to(self.base.scale.dtype))
        log_prob: Tensor = self.base.log_prob(z) + log_det
        return log_prob

    def angle_log_prob(self, z: Tensor) -> Tensor:
        """Return log q(φ) of the angles φ that noise becomes.

        Args:
            z: Noise, [n, D]; its lines play no part.

        Returns:
            log q(φ), float64 [n].

        Raises:
            FlowInputError: The flow has angles, and no layers for them alone.
        """
        if self.n_angles and not self.n_angle_layers:
            raise FlowInputError(
                "Expected a flow with layers for its angles alone (n_angle_layers > 0), got 0."
            )
        layers = self._transform._transforms
        layers = reversed(layers[len(layers) - self.n_angle_layers :])
        _, log_det = self._transform._cascade(z, (layer.inverse for layer in layers), None)
        log_prob: Tensor = -self.n_angles * math.log(2 * math.pi) - log_det
        return log_prob

    def from_noise(self, z: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points that noise becomes and their log density.

        Args:
            z: Noise, [n, D].
            log_p: Its log density, that of the base or of what else drew it, [n].

        Returns:
            x [n, D] and log p(z) + log|det ∂z/∂x|, float64 [n].
        """
        x, log_det = self._pass(self._transform.inverse, z)
        return x, log_p - log_det

    def _pass(self, direction: Callable[..., Any], rows: Tensor) -> tuple[Tensor, ...]:
        if self.rows_at_once is None or len(rows) <= self.rows_at_once:
            result: tuple[Tensor, ...] = direction(rows)
            return result
        return in_pieces(direction, rows, self.rows_at_once, self)

    def rsample_and_log_prob(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw points that carry a gradient with respect to the parameters.

        Args:
            n: Number of points.
            generator: Where the noise comes from; torch's global one if None.

        Returns:
            x [n, D] and log q(x), float64 [n].
        """
        if n < 1:
            raise FlowInputError(f"Expected n >= 1, got {n}")
        z = self.base.draw(n, generator=generator)
        return self.from_noise(z, self.base.log_prob(z))

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw points without gradient; arguments and result as in `rsample_and_log_prob`."""
        return self.rsample_and_log_prob(n, generator=generator)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        return self.sample_and_log_prob(num_samples)[0]


class _Chain(CompositeTransform):  # type: ignore[misc]  # nflows has no types
    """Compose transforms; the sum of their log-determinants is kept in float64."""

    @staticmethod
    def _cascade(
        inputs: Tensor, funcs: Iterable[Transform], context: None
    ) -> tuple[Tensor, Tensor]:
        total = inputs.new_zeros(inputs.shape[0], dtype=torch.float64)
        for func in funcs:
            inputs, log_det = func(inputs, context)
            total = total + log_det
        return inputs, total
