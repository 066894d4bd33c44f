"""Networks that turn the coordinates a coupling leaves alone into parameters of the others.

Like the splines they feed, they hold the batch in the last axis: x is [D, n].
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from flows.errors import FlowInputError

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
"""Name -> what factors of products are rounded to; None for the dtype of the points."""


class PeriodicFeatures(nn.Module):
    r"""What a network may see of a point: smooth on circles, bounded on lines.

    .. math:: 1 \oplus (B \tanh(x / B)) \oplus (\cos kφ, \sin kφ)_{k=1..n_frequencies}

    over the visible lines and circles. The constant is for a network that sees nothing else.

    Args:
        visible: bool [D], the coordinates that may be seen.
        periodic: bool [D], the coordinates that are angles.
        n_frequencies: Harmonics of each angle.
        squash: B; beyond it a coordinate's influence levels off, so that an outlier cannot drive
            the network into a regime it was never trained in.
    """

    periodic_index: Tensor
    linear_index: Tensor
    frequencies: Tensor

    def __init__(
        self, visible: Tensor, periodic: Tensor, *, n_frequencies: int = 2, squash: float = 8.0
    ) -> None:
        super().__init__()
        if n_frequencies < 1:
            raise FlowInputError(f"Expected n_frequencies >= 1, got {n_frequencies}")
        if not squash > 0:
            raise FlowInputError(f"Expected squash > 0, got {squash}")
        self.squash = squash
        index = {"periodic_index": visible & periodic, "linear_index": visible & ~periodic}
        for name, mask in index.items():
            self.register_buffer(name, mask.nonzero().squeeze(-1))
        self.register_buffer("frequencies", torch.arange(1.0, n_frequencies + 1)[:, None, None])
        self.n_features = 1 + len(self.linear_index)
        self.n_features += 2 * n_frequencies * len(self.periodic_index)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [n_features, n] of points x [D, n]."""
        angles = x[self.periodic_index] * self.frequencies
        linear = self.squash * torch.tanh(x[self.linear_index] / self.squash)
        waves = torch.cos(angles).flatten(0, 1), torch.sin(angles).flatten(0, 1)
        return torch.cat([torch.ones_like(x[:1]), linear, *waves])


class Conditioner(nn.Module):
    """A multilayer perceptron with zero output at initialisation, so that a coupling starts as 1.

    Args:
        features: Turns x [D, n] into what the network sees, [features.n_features, n].
        n_outputs: Rows of the output.
        hidden: Widths of the hidden layers.
        residual: Add a hidden layer's input to its output wherever both have one width.
        gain: Factor on the trained constant terms of the output. Optimizers move each number by
            about the learning rate a step; with a gain, what all points share moves that much
            faster than what depends on the point.
        precision: Of the factors of the matrix products, one of `PRECISIONS`; their sums, the
            weights that are trained and all else keep the dtype of the points.

    Raises:
        FlowInputError: No hidden layer, or an unknown precision.
    """

    def __init__(
        self,
        features: PeriodicFeatures,
        n_outputs: int,
        *,
        hidden: Sequence[int] = (128, 128),
        residual: bool = False,
        gain: float = 1.0,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise FlowInputError(
                f"Expected precision to be one of {', '.join(PRECISIONS)}, got {precision!r}"
            )
        if not hidden or min(hidden) < 1:
            raise FlowInputError(f"Expected hidden to hold positive widths, got {list(hidden)}")
        self.features = features
        self.residual, self.gain, self._rounded = residual, gain, PRECISIONS[precision]
        widths = [features.n_features, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.weight = nn.Parameter(torch.zeros(n_outputs, widths[-1]))
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the parameters [n_outputs, n] for points x [D, n]."""
        h = self.features(x)
        for layer in self.layers:
            weight, bias = layer.parameters()
            new = nn.functional.silu(self._affine(bias, weight, h))
            h = h + new if self.residual and new.shape == h.shape else new
        return self._affine(self.gain * self.bias, self.weight, h)

    def _affine(self, bias: Tensor, weight: Tensor, h: Tensor) -> Tensor:
        """Return W h + b, [n_outputs, n], with the factors rounded."""
        if self._rounded is None:
            return torch.addmm(bias[:, None], weight, h)
        return (weight.to(self._rounded) @ h.to(self._rounded)).to(h.dtype) + bias[:, None]
