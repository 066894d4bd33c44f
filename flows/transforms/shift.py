"""Rotations of the circular coordinates."""

import math

import torch
from nflows.transforms import Transform
from torch import Tensor

from flows.errors import FlowInputError

TWO_PI = 2 * math.pi


def wrap(x: Tensor, periodic: Tensor) -> Tensor:
    """Move the periodic coordinates of x into [-π, π); points already there are not changed.

    Args:
        x: Points of any shape that `periodic` broadcasts to.
        periodic: bool, the coordinates that are angles.

    Returns:
        The same points, same shape.
    """
    turns = torch.floor((x + math.pi) / TWO_PI)
    return torch.where(periodic, x - TWO_PI * turns, x)


class PeriodicShift(Transform):  # type: ignore[misc]  # nflows has no types
    r"""Rotate every circle by a fixed angle, so that the knots and seams of layers differ.

    .. math:: z = \mathrm{wrap}(x + c), \quad \log|\det| = 0

    Args:
        shift: c, radians, [D]; where a coordinate is not periodic it must be zero.
        periodic: bool [D].
    """

    shift: Tensor
    periodic: Tensor

    def __init__(self, shift: Tensor, periodic: Tensor) -> None:
        super().__init__()
        if shift.shape != periodic.shape:
            raise FlowInputError(
                f"Expected shift of shape {tuple(periodic.shape)}, got {tuple(shift.shape)}"
            )
        if bool((shift[~periodic] != 0).any()):
            raise FlowInputError("Expected shift to be zero where periodic is False, got others")
        self.register_buffer("shift", shift)
        self.register_buffer("periodic", periodic)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data x [n, D] to noise; return it and log|det|, [n]."""
        return wrap(x + self.shift, self.periodic), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise z [n, D] to data; return it and log|det|, [n]."""
        return wrap(z - self.shift, self.periodic), z.new_zeros(z.shape[0])
