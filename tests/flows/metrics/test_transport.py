"""Wasserstein distances of shifted, scaled and moved points, whose values are known."""

import math

import pytest
import torch

from flows.errors import FlowInputError
from flows.metrics.transport import line_distance, torus_distance, torus_floor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2])
def test_shifted_numbers_are_their_shift_apart(order: int) -> None:
    x = normal(500, 0)
    assert line_distance(x, x + 3.5, order=order) == pytest.approx(3.5)
    assert line_distance(x, x.flip(0), order=order) == pytest.approx(0.0, abs=1e-7)


def test_two_gaussians() -> None:
    """W2² = (μ1 - μ2)² + (σ1 - σ2)²; W1 between equal means is |σ1 - σ2| √(2/π)."""
    a, b = normal(200_000, 1), 1.5 * normal(200_000, 2)
    assert line_distance(a + 1.0, b, order=2) == pytest.approx(math.hypot(1.0, 0.5), abs=0.02)
    assert line_distance(a, b) == pytest.approx(0.5 * math.sqrt(2 / math.pi), abs=0.01)


def test_weights_make_one_density_of_another() -> None:
    """Weights p/q turn N(0, 1.5²) into N(0, 1): what is left is noise."""
    x = 1.5 * normal(100_000, 3)
    log_w = -0.5 * x**2 + 0.5 * (x / 1.5) ** 2
    exact = normal(100_000, 4)
    assert line_distance(x, exact) > 0.35
    assert line_distance(x, exact, log_w=log_w) < 0.02
    # A row without weight may be anything.
    x[0], log_w[0] = math.nan, -math.inf
    assert line_distance(x, exact, log_w=log_w) < 0.02


def test_hand_made_weights() -> None:
    values, reference = torch.tensor([0.0, 1.0]), torch.tensor([0.0])
    log_w = torch.tensor([0.25, 0.75]).log()
    assert line_distance(values, reference, log_w=log_w) == pytest.approx(0.75)
    assert line_distance(values, reference, order=2, log_w=log_w) == pytest.approx(0.75**0.5)


def test_torus_moves_the_shorter_way_round() -> None:
    """Three points moved by (0.4, -0.3) across the seam: 0.5 apart, in whatever order."""
    points = torch.tensor([[3.0, -3.1], [-1.0, 0.5], [0.2, 2.0]], dtype=torch.float64)
    moved = (points + torch.tensor([0.4, -0.3]) + math.pi).remainder(2 * math.pi) - math.pi
    assert moved[0, 0] < 0 < moved[0, 1]
    distance = torus_distance(points, moved.flip(0), generator=generator(0))
    assert distance == pytest.approx(0.5)


def test_torus_floor_is_where_samples_of_the_reference_lie() -> None:
    uniform = (2 * torch.rand(4000, 2, generator=generator(1)).double() - 1) * math.pi
    low = torus_floor(uniform[:2000], cap=300, generator=generator(2))
    same = torus_distance(uniform[2000:], uniform[:2000], cap=300, generator=generator(3))
    half = uniform[2000:] / 2
    other = torus_distance(half, uniform[:2000], cap=300, generator=generator(4))
    assert same == pytest.approx(low, rel=0.25)
    assert other > 3 * low
    # Moving U(-π/2, π/2) to U(-π, π) in both angles: E (θ/2)² = π²/12 each.
    assert other == pytest.approx(math.sqrt(2 * math.pi**2 / 12), rel=0.1)


def test_weights_draw_points_on_the_torus() -> None:
    angles = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    log_w = torch.tensor([0.0, -math.inf])
    assert torus_distance(angles, torch.ones(2, 1), log_w=log_w, generator=generator(0)) == (
        pytest.approx(1.0)
    )


def test_bad_arguments_raise() -> None:
    x = normal(10, 0)
    with pytest.raises(FlowInputError, match="Expected order 1 or 2, got 3"):
        line_distance(x, x, order=3)
    with pytest.raises(FlowInputError, match="Expected reference of shape"):
        line_distance(x, torch.tensor([math.inf]))
    with pytest.raises(FlowInputError, match=r"Expected log_w of shape \[10\], got \[4\]"):
        line_distance(x, x, log_w=x[:4])
    with pytest.raises(FlowInputError, match=r"Expected angles \[n, K\] and reference"):
        torus_distance(torch.zeros(3, 2), torch.zeros(3, 1), generator=generator(0))
    with pytest.raises(FlowInputError, match="Expected finite angles"):
        torus_distance(torch.full((3, 1), math.nan), torch.zeros(3, 1), generator=generator(0))
    with pytest.raises(FlowInputError, match="with m >= 2, got"):
        torus_floor(torch.zeros(1, 2), generator=generator(0))
