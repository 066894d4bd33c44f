"""Histograms of known densities, and distances whose values can be written down."""

import math

import pytest
import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.metrics import (
    floor,
    jensen_shannon,
    kl_divergence,
    torsion_histogram,
    torus_histogram,
    total_variation,
)

PI = math.pi


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def density(masses: list[float]) -> Tensor:
    """Masses of bins on the circle, as a density."""
    return torch.tensor(masses, dtype=torch.float64) * len(masses) / (2 * PI)


def test_one_point_falls_into_its_bin() -> None:
    angles = torch.tensor([[-PI, 0.1], [3.1, -0.1]], dtype=torch.float64)
    h = torus_histogram(angles, bins=4)
    height = 0.5 / (2 * PI / 4) ** 2
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[0, 2] = expected[3, 1] = height
    torch.testing.assert_close(h, expected, rtol=1e-12, atol=0)


def test_angles_are_wrapped() -> None:
    angles = PI * (2 * torch.rand(1000, 2, generator=generator(0), dtype=torch.float64) - 1)
    turned = angles + 2 * PI * torch.tensor([1.0, -3.0])
    assert total_variation(torus_histogram(angles), torus_histogram(turned)) < 2e-3
    ends = torch.tensor([PI, -PI, math.nextafter(-PI, -4.0), math.nextafter(PI, 0.0)])
    assert torsion_histogram(ends.double(), bins=10)[1:-1].sum() == 0


def test_weights_count_as_copies() -> None:
    angles = torch.tensor([0.5, 0.5, 0.5, -1.0], dtype=torch.float64)
    merged = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    log_w = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64).log() + 800.0
    h = torsion_histogram(merged, log_w, bins=8)
    torch.testing.assert_close(h, torsion_histogram(angles, bins=8), rtol=1e-12, atol=0)
    assert float(h.sum()) * 2 * PI / 8 == pytest.approx(1.0, rel=1e-12)


def test_rows_of_zero_weight_may_hold_anything() -> None:
    angles = torch.tensor([[0.5, 0.5], [math.nan, 0.0]])
    log_w = torch.tensor([0.0, -math.inf])
    assert torch.equal(torus_histogram(angles, log_w), torus_histogram(angles[:1]))
    with pytest.raises(FlowInputError, match=r"Expected finite angles .* got 1 other"):
        torus_histogram(angles)


def test_more_rows_than_a_chunk() -> None:
    """A cosine density, 1.5e6 rows: each of 20 bins within 5 standard errors."""
    n = 1_500_000
    x = PI * (2 * torch.rand(2 * n, generator=generator(1), dtype=torch.float64) - 1)
    x = x[torch.rand(2 * n, generator=generator(2)) < 0.5 * (1 + x.cos())]
    h = torsion_histogram(x, bins=20)
    edges = torch.linspace(-PI, PI, 21, dtype=torch.float64)
    mass = ((edges + edges.sin()) / (2 * PI)).diff()
    error = (mass * (1 - mass) / len(x)).sqrt()
    assert len(x) > 1 << 20
    assert ((h * 2 * PI / 20 - mass).abs() / error).max() < 5


def test_reweighting_recovers_the_target_density() -> None:
    """Uniform points weighted by 1 + cos: every bin within 5 standard errors."""
    n = 200_000
    x = PI * (2 * torch.rand(n, generator=generator(3), dtype=torch.float64) - 1)
    h = torsion_histogram(x, (1 + x.cos()).log(), bins=10)
    edges = torch.linspace(-PI, PI, 11, dtype=torch.float64)
    mass = ((edges + edges.sin()) / (2 * PI)).diff()
    # E[w² (1 - mass)² in the bin] + E[w² mass² outside] is at most E[w²; bin] + mass² E[w²].
    square = ((1.5 * edges + 2 * edges.sin() + 0.25 * (2 * edges).sin()) / (2 * PI)).diff()
    error = ((square + mass**2 * 1.5) / n).sqrt()
    assert ((h * 2 * PI / 10 - mass).abs() / error).max() < 5


def test_distances_of_known_discrete_densities() -> None:
    p, q = density([0.5, 0.5, 0.0, 0.0]), density([0.25, 0.25, 0.25, 0.25])
    assert total_variation(p, q) == pytest.approx(0.5, rel=1e-12)
    assert kl_divergence(p, q) == pytest.approx(math.log(2), rel=1e-8)
    missed = 0.5 * math.log(0.25 * 4 / (2 * PI) / 1e-10) + 0.5 * math.log(0.5)
    assert kl_divergence(q, p) == pytest.approx(missed, rel=1e-8)
    jsd = 0.5 * math.log(4 / 3) + 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert jensen_shannon(p, q) == pytest.approx(jsd, rel=1e-12)
    assert jensen_shannon(q, p) == pytest.approx(jsd, rel=1e-12)


def test_distances_at_their_ends() -> None:
    p, q = density([0.3, 0.7, 0.0, 0.0]), density([0.0, 0.0, 0.6, 0.4])
    assert total_variation(p, q) == pytest.approx(1.0, rel=1e-12)
    assert jensen_shannon(p, q) == pytest.approx(math.log(2), rel=1e-12)
    assert total_variation(p, p) == kl_divergence(p, p) == jensen_shannon(p, p) == 0.0


def test_torus_distances_use_the_area_of_a_bin() -> None:
    p = torch.outer(density([0.5, 0.5]), density([1.0, 0.0]))
    q = torch.outer(density([0.5, 0.5]), density([0.25, 0.75]))
    assert total_variation(p, q) == pytest.approx(0.75, rel=1e-12)
    assert kl_divergence(p, q) == pytest.approx(math.log(4), rel=1e-8)


@pytest.mark.parametrize("bins", [10, 20])
def test_floor_of_a_uniform_density(bins: int) -> None:
    """Two sets of n uniform points differ by TV = ½ Σ |difference| ≈ B^½ / √(π n), B = bins²."""
    angles = PI * (2 * torch.rand(300_000, 2, generator=generator(4)) - 1)
    for n in (None, 30_000):
        expected = bins / math.sqrt(PI * (n or 150_000))
        # Each of the B terms varies by 76 % of its mean.
        got = floor(angles, total_variation, n=n, bins=bins)
        assert got == pytest.approx(expected, rel=4 * 0.76 / bins)


def test_floor_compares_first_rows_with_last() -> None:
    angles = torch.cat([torch.full((50,), -1.0), torch.full((50,), 1.0)])
    assert floor(angles, total_variation) == pytest.approx(1.0)
    assert floor(angles[:50], jensen_shannon) == 0.0
    log_w = torch.zeros(100)
    log_w[50:] = -50.0
    mixed = angles.clone()
    mixed[:10] = 1.0
    assert floor(mixed, total_variation, log_w=log_w) == pytest.approx(0.8)


def test_bad_arguments_raise() -> None:
    p = density([0.5, 0.5])
    with pytest.raises(FlowInputError, match=r"Expected angles of shape \[n, 2\], got \[4, 3\]"):
        torus_histogram(torch.zeros(4, 3))
    with pytest.raises(FlowInputError, match=r"Expected angles of shape \[n\], got \[4, 2\]"):
        torsion_histogram(torch.zeros(4, 2))
    with pytest.raises(FlowInputError, match=r"Expected log_w of shape \[4\] like angles"):
        torsion_histogram(torch.zeros(4), torch.zeros(3))
    with pytest.raises(FlowInputError, match="Expected bins >= 1, got 0"):
        torsion_histogram(torch.zeros(4), bins=0)
    with pytest.raises(FlowInputError, match="Expected q of the shape of p"):
        total_variation(p, density([0.5, 0.25, 0.25]))
    with pytest.raises(FlowInputError, match="Expected q a density"):
        kl_divergence(p, 2 * p)
    with pytest.raises(FlowInputError, match=r"Expected n within 1\.\.5, got 6"):
        floor(torch.zeros(10), total_variation, n=6)
