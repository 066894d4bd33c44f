"""Named flows. They only pass arguments."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from flows.bases import NormalUniform
from flows.conditioners import Conditioner, PeriodicFeatures
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.transforms import PeriodicShift, SplineCoupling

_ANGLE_GAIN = 10.0


def spline_flow(
    periodic: Tensor | Sequence[bool],
    *,
    n_couplings: int = 8,
    hidden: Sequence[int] = (128, 128),
    n_bins: int = 8,
    n_circle_couplings: int = 6,
    circle_hidden: Sequence[int] = (64, 64),
    circle_bins: int = 8,
    tail_bound: float = 8.0,
    n_frequencies: int = 4,
    residual: bool = False,
    precision: str = "fp32",
    base_scale: float = 1.0,
    seed: int = 0,
) -> Flow:
    r"""Build a rational-quadratic spline coupling flow on lines and circles.

    .. math:: q(φ, y) = q(φ)\, q(y \mid φ)

    The angles φ have couplings of their own, in which they see each other only; those of the
    lines y see all angles and the other half of the lines. The few slow angles of a molecule are
    thus modelled as sharply as their own, cheap, layers allow, whatever the many stiff
    coordinates do. Either kind of coupling comes in pairs (see `halves`), each pair of the angles
    after a random rotation. The constant terms of the angles' splines train at a multiple of the
    learning rate: they set the populations of basins, which have to follow a target that cools by
    orders of magnitude. At initialisation the flow's density is its base.

    Args:
        periodic: bool [D], the coordinates that are angles in [-π, π); the others are real, with
            a spread of about one.
        n_couplings: Coupling layers of the lines.
        hidden: Widths of their conditioners' hidden layers.
        n_bins: Bins of their splines.
        n_circle_couplings: Coupling layers of the angles.
        circle_hidden: Widths of their conditioners' hidden layers.
        circle_bins: Bins of their splines.
        tail_bound: Half width of the splines' domain on lines; the tails are linear.
        n_frequencies: Harmonics of an angle that conditioners see.
        residual: Use residual hidden layers.
        precision: Of the matrix products in conditioners, "fp32" or "bf16"; splines, densities and
            sums keep the dtype of the points.
        base_scale: Standard deviation of the base on lines.
        seed: Fixes halves, rotations and initial weights; the global random state is not touched.

    Returns:
        The flow, on the CPU in torch's default dtype.

    Raises:
        FlowInputError: An argument is out of range.
    """
    periodic = torch.as_tensor(periodic, dtype=torch.bool).detach().cpu()
    if periodic.dim() != 1 or len(periodic) == 0:
        raise FlowInputError(f"Expected periodic of shape [D], got {list(periodic.shape)}")
    for name, n in {"n_couplings": n_couplings, "n_circle_couplings": n_circle_couplings}.items():
        if n < 1:
            raise FlowInputError(f"Expected {name} >= 1, got {n}")

    def coupling(
        active: Tensor, visible: Tensor, widths: Sequence[int], bins: int, gain: float
    ) -> SplineCoupling:
        features = PeriodicFeatures(
            visible & ~active, periodic, n_frequencies=n_frequencies, squash=tail_bound
        )
        conditioner = partial(
            Conditioner, features, hidden=widths, residual=residual, gain=gain, precision=precision
        )
        return SplineCoupling(active, periodic, conditioner, n_bins=bins, tail_bound=tail_bound)

    base = NormalUniform(periodic, scale=base_scale)
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for half in halves(~periodic, n_couplings):
            layers.append(coupling(half, torch.ones_like(periodic), hidden, n_bins, 1.0))
        n_lines = len(layers)
        for i, half in enumerate(halves(periodic, n_circle_couplings)):
            if i % 2 == 0:
                turn = math.pi * (2 * torch.rand(len(periodic)) - 1)
                layers.append(PeriodicShift(torch.where(periodic, turn, 0.0), periodic))
            layers.append(coupling(half, periodic, circle_hidden, circle_bins, _ANGLE_GAIN))
    return Flow(layers, base, n_angle_layers=len(layers) - n_lines)


def halves(mask: Tensor, n: int) -> Iterator[Tensor]:
    """Yield n masks, bool [D], each of half the coordinates in `mask`, in complementary pairs.

    Pair k splits the coordinates by bit k of a random code, so that any two have been on opposite
    sides once all bits were used; new codes follow (arXiv 2001.05486). Halves are rounded up: all
    have one size, and their couplings one compiled graph; those of an odd number of coordinates
    share one. An empty mask yields nothing. Draws from the global generator.
    """
    members = mask.nonzero().squeeze(-1)
    size, n_bits = (len(members) + 1) // 2, max(1, (len(members) - 1).bit_length())
    # A code and its complement follow each other: half of them have any given bit.
    code = torch.arange(len(members)) // 2
    code[1::2] = ~code[1::2]
    for i in range(n if size else 0):
        if i % 2 == 0:
            bit = i // 2 % n_bits
            if bit == 0:
                members = members[torch.randperm(len(members))]
            order = members[(code >> bit & 1).argsort(stable=True)]
        half = torch.zeros_like(mask)
        half[order[:size] if i % 2 == 0 else order[-size:]] = True
        yield half
