"""Named flows. They only pass arguments."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from flows.bases import NormalUniform
from flows.conditioners import Conditioner, PeriodicFeatures
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.transforms import PeriodicShift, SplineCoupling


def spline_flow(
    periodic: Tensor | Sequence[bool],
    *,
    n_couplings: int = 8,
    hidden: Sequence[int] = (128, 128),
    n_bins: int = 8,
    tail_bound: float = 8.0,
    n_frequencies: int = 2,
    residual: bool = False,
    base_scale: float = 1.0,
    seed: int = 0,
) -> Flow:
    """Build a rational-quadratic spline coupling flow on lines and circles.

    Couplings come in pairs, a random half of the coordinates and its complement; every pair is
    preceded by a random rotation of the circles. At initialisation the flow's density is its base.

    Args:
        periodic: bool [D], the coordinates that are angles in [-π, π); the others are real, with
            a spread of about one.
        n_couplings: Coupling layers; an odd number leaves the last pair incomplete.
        hidden: Widths of each conditioner's hidden layers.
        n_bins: Bins of each spline.
        tail_bound: Half width of the splines' domain on lines; the tails are linear.
        n_frequencies: Harmonics of an angle that conditioners see.
        residual: Use residual hidden layers.
        base_scale: Standard deviation of the base on lines.
        seed: Fixes masks, rotations and initial weights; the global random state is not touched.

    Returns:
        The flow, on the CPU in torch's default dtype.

    Raises:
        FlowInputError: An argument is out of range.
    """
    periodic = torch.as_tensor(periodic, dtype=torch.bool).detach().cpu()
    if periodic.dim() != 1 or len(periodic) == 0:
        raise FlowInputError(f"Expected periodic of shape [D], got {list(periodic.shape)}")
    if n_couplings < 1:
        raise FlowInputError(f"Expected n_couplings >= 1, got {n_couplings}")
    base = NormalUniform(periodic, scale=base_scale)
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i in range(n_couplings):
            if i % 2 == 0:
                turn = math.pi * (2 * torch.rand(len(periodic)) - 1)
                layers.append(PeriodicShift(torch.where(periodic, turn, 0.0), periodic))
                mask = half_mask(periodic)
            elif len(periodic) > 1:
                mask = ~mask
            features = PeriodicFeatures(
                ~mask, periodic, n_frequencies=n_frequencies, squash=tail_bound
            )
            conditioner = partial(Conditioner, features, hidden=hidden, residual=residual)
            layers.append(
                SplineCoupling(mask, periodic, conditioner, n_bins=n_bins, tail_bound=tail_bound)
            )
    return Flow(layers, base)


def half_mask(periodic: Tensor) -> Tensor:
    """Return a random mask [D] of half the angles and half the other coordinates.

    Where both counts are odd, one is rounded down and the other up: the mask and its complement
    then have one size, and their couplings one compiled graph. Draws from the global generator.
    """
    if len(periodic) == 1:
        return torch.ones(1, dtype=torch.bool)
    mask = torch.zeros_like(periodic)
    circles, lines = periodic.nonzero().squeeze(-1), (~periodic).nonzero().squeeze(-1)
    mask[circles[torch.randperm(len(circles))[: len(circles) // 2]]] = True
    mask[lines[torch.randperm(len(lines))[: (len(lines) + 1) // 2]]] = True
    return mask
