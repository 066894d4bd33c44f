r"""The coupling layer: splines whose parameters depend on the coordinates left alone."""

import math
from collections.abc import Callable

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from flows.errors import FlowInputError
from flows.transforms.rational_quadratic import (
    MIN_BIN,
    n_parameters,
    rational_quadratic,
    rational_quadratic_inverse,
)
from flows.transforms.shift import wrap

Direction = Callable[["SplineCoupling", Tensor], tuple[Tensor, Tensor]]

MAX_LOG_SCALE = 2.0


def encode(coupling: "SplineCoupling", x: Tensor) -> tuple[Tensor, Tensor]:
    """Map x [D, n] to z [D, n]: the spline in closed form, then scale and shift (or rotate)."""
    spline, scale, shift = coupling.parameters_at(x)
    u = wrap(x[coupling.active], coupling.circular)
    u, log_slope = rational_quadratic(u, spline, coupling.bound, coupling.circular[:, 0])
    u = wrap(u * torch.exp(scale) + shift, coupling.circular)
    return coupling.replace(x, u), (log_slope + scale).sum(0)


def decode(coupling: "SplineCoupling", z: Tensor) -> tuple[Tensor, Tensor]:
    """Map z [D, n] to x [D, n]: undo shift and scale, then solve the spline for its argument."""
    spline, scale, shift = coupling.parameters_at(z)
    u = wrap((z[coupling.active] - shift) * torch.exp(-scale), coupling.circular)
    u, log_slope = rational_quadratic_inverse(u, spline, coupling.bound, coupling.circular[:, 0])
    return coupling.replace(z, u), (log_slope - scale).sum(0)


class SplineCoupling(Transform):  # type: ignore[misc]  # nflows has no types
    r"""Transform some coordinates by splines conditioned on all others.

    With θ, s, t = conditioner(x_passive),

    .. math:: z = e^{s} f_θ(x) + t \ \text{(lines)}, \quad
              z = \mathrm{wrap}(f_θ(x) + t) \ \text{(circles)}

    The closed form serves data → noise, the direction that is asked at points chosen elsewhere
    (buffers, data, metrics); noise → data solves a quadratic per coordinate. Either costs about
    the same, and both have exact gradients with respect to parameters and inputs. A zero
    conditioner gives the identity. Of a circle's parameters the last slope and s are not used.

    Args:
        mask: bool [D], the coordinates to transform.
        periodic: bool [D], the coordinates that are angles in [-π, π).
        conditioner: Called with the number of outputs, returns the module that maps x [D, n] to
            parameters [n_outputs, n]; it must not see the masked coordinates.
        n_bins: Bins of each spline.
        tail_bound: Half width of the spline's domain on lines; outside it is linear.

    References:
        Durkan et al., Neural spline flows, arXiv 1906.04032.
        Dinh, Sohl-Dickstein, Bengio, Density estimation using Real NVP, arXiv 1605.08803.
    """

    active: Tensor
    restore: Tensor
    passive: Tensor
    circular: Tensor
    linear: Tensor
    bound: Tensor

    def __init__(
        self,
        mask: Tensor,
        periodic: Tensor,
        conditioner: Callable[[int], nn.Module],
        *,
        n_bins: int = 8,
        tail_bound: float = 8.0,
    ) -> None:
        super().__init__()
        if mask.shape != periodic.shape or mask.dim() != 1:
            raise FlowInputError(
                f"Expected mask and periodic of one shape [D], got {tuple(mask.shape)} and "
                f"{tuple(periodic.shape)}"
            )
        if not bool(mask.any()):
            raise FlowInputError("Expected mask to select at least one coordinate, got none")
        if not 1 <= n_bins < 1 / MIN_BIN:
            raise FlowInputError(f"Expected 1 <= n_bins < {1 / MIN_BIN:g}, got {n_bins}")
        if not tail_bound > 0:
            raise FlowInputError(f"Expected tail_bound > 0, got {tail_bound}")
        self.n_bins = n_bins
        active, passive = mask.nonzero().squeeze(-1), (~mask).nonzero().squeeze(-1)
        self.n_active = len(active)
        circular = periodic[active][:, None]
        line = torch.tensor(tail_bound, dtype=torch.get_default_dtype())
        buffers = {
            "active": active,
            "passive": passive,
            "restore": torch.cat([passive, active]).argsort(),
            "circular": circular,
            "linear": (~circular).to(line.dtype),
            "bound": torch.where(circular[:, 0], line.new_tensor(math.pi), line),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
        self.n_outputs = self.n_active * (n_parameters(n_bins) + 2)
        self.conditioner = conditioner(self.n_outputs)
        self.wrapper: Callable[[Direction], Direction] | None = None

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data x [n, D] to noise z [n, D]; return it and log|det dz/dx|, [n]."""
        return self._run(encode, x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise z [n, D] to data x [n, D]; return it and log|det dx/dz|, [n]."""
        return self._run(decode, z)

    def _run(self, direction: Direction, x: Tensor) -> tuple[Tensor, Tensor]:
        # The batch goes last here, outside of what is compiled: fusing a transpose into the
        # spline's backward made torch 2.13 generate CPU code that corrupts the heap.
        rows = x.T.contiguous()
        if self.wrapper is None:
            y, log_det = direction(self, rows)
        else:
            if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
                # The first layer's input needs no gradient; asking for one saves a second graph.
                rows = rows if rows.requires_grad else rows.detach().requires_grad_()
            y, log_det = self.wrapper(direction)(self, rows)
        return y.T, log_det

    def parameters_at(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return spline parameters [3K + 1, A, n], log scale [A, n] and shift [A, n]."""
        raw = self.conditioner(x).view(-1, self.n_active, x.shape[1])
        scale = self.linear * MAX_LOG_SCALE * torch.tanh(raw[-2] / MAX_LOG_SCALE)
        return raw[:-2], scale, raw[-1]

    def replace(self, x: Tensor, u: Tensor) -> Tensor:
        """Return x [D, n] with the transformed coordinates u [A, n] in their places."""
        return torch.cat([x[self.passive], u])[self.restore]


def couplings(module: nn.Module) -> list[SplineCoupling]:
    """Return the coupling layers of a flow, or of what else holds some."""
    return [layer for layer in module.modules() if isinstance(layer, SplineCoupling)]
