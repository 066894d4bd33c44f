"""Populations of boxes in densities whose integrals are known."""

import math

import pytest
import torch
from torch import Tensor

from energies.base import R
from flows.errors import FlowInputError
from flows.metrics import free_energy_difference, in_box, population

PI = math.pi


def uniform(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return PI * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)


def cosine_mass(lo: float, hi: float) -> float:
    """Mass of (1 + cos φ) / 2π between lo and hi."""
    return (hi - lo + math.sin(hi) - math.sin(lo)) / (2 * PI)


def test_box_is_half_open_and_wraps() -> None:
    phi = torch.tensor([-PI, -2.0, 0.0, 1.0, 2.3, 3.0], dtype=torch.float64)
    assert in_box({"phi": phi}, {"phi": (0.0, 2.3)}).tolist() == [0, 0, 1, 1, 0, 0]
    across = [1, 0, 0, 0, 1, 1]
    assert in_box({"phi": phi}, {"phi": (2.3, -2.0)}).tolist() == across
    assert in_box({"phi": phi}, {"phi": (2.3, 2 * PI - 2.0)}).tolist() == across
    assert in_box({"phi": phi + 2 * PI}, {"phi": (-4.2, -1.5)}).tolist() == [1, 1, 0, 0, 1, 1]
    assert in_box({"phi": phi}, {"phi": (-PI, PI)}).all()


def test_box_of_several_torsions_is_their_intersection() -> None:
    torsions = {"phi": torch.tensor([1.0, 1.0, -1.0]), "psi": torch.tensor([1.0, -1.0, 1.0])}
    assert in_box(torsions, {"phi": (0, 2), "psi": (0, 2)}).tolist() == [1, 0, 0]
    nan = torch.tensor([math.nan])
    assert not in_box({"phi": nan}, {"phi": (-PI, PI)})


def test_raw_population_is_binomial() -> None:
    phi = uniform(10_000, seed=0)
    value, se = population({"phi": phi}, {"phi": (0.0, 2.3)})
    p = 2.3 / (2 * PI)
    assert se == pytest.approx(math.sqrt(p * (1 - p) / 10_000), rel=0.02)
    assert abs(value - p) < 4 * se


@pytest.mark.parametrize("box", [(0.0, 2.3), (2.0, -2.0)])
def test_reweighted_population_of_a_known_density(box: tuple[float, float]) -> None:
    """Uniform points weighted to (1 + cos φ) / 2π, within 4 standard errors."""
    phi = uniform(100_000, seed=1)
    value, se = population({"phi": phi}, {"phi": box}, log_w=(1 + phi.cos()).log())
    truth = cosine_mass(box[0], box[1] if box[1] > box[0] else box[1] + 2 * PI)
    assert abs(value - truth) < 4 * se
    assert se < 3e-3


def test_free_energy_difference_is_calibrated() -> None:
    """300 repetitions: the std of the z-scores is within 4 of its errors (1/√600) of 1."""
    start, end = {"phi": (-1.0, 1.0)}, {"phi": (1.0, 2.5)}
    truth = -R * 300 * math.log(cosine_mass(1.0, 2.5) / cosine_mass(-1.0, 1.0))
    scores = []
    for seed in range(300):
        phi = uniform(3000, seed)
        log_w = (1 + phi.cos()).log()
        value, se = free_energy_difference({"phi": phi}, start, end, temperature=300, log_w=log_w)
        scores.append((value - truth) / se)
    z = torch.tensor(scores)
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(600)
    assert abs(float(z.mean())) < 4 / math.sqrt(300)


def test_free_energy_difference_by_hand() -> None:
    """One point in three is in the end box: ΔF = RT log 2, error RT √(1/n_a + 1/n_b)."""
    phi = torch.tensor([0.5] * 200 + [-0.5] * 400)
    above, below = {"phi": (0.0, 1.0)}, {"phi": (-1.0, 0.0)}
    value, se = free_energy_difference({"phi": phi}, below, above, temperature=300)
    assert value == pytest.approx(R * 300 * math.log(2), rel=1e-6)
    assert se == pytest.approx(R * 300 * math.sqrt(1 / 200 + 1 / 400), rel=2e-3)
    back, _ = free_energy_difference({"phi": phi}, above, below, temperature=300)
    assert back == pytest.approx(-value, rel=1e-12)


def test_box_never_visited() -> None:
    torsions = {"phi": torch.full((10,), -1.0)}
    here, empty = {"phi": (-2.0, 0.0)}, {"phi": (0.0, 2.3)}
    assert population(torsions, empty) == (0.0, 0.0)
    to_empty = free_energy_difference(torsions, here, empty, temperature=300)
    assert to_empty == (math.inf, math.inf)
    assert free_energy_difference(torsions, empty, here, temperature=300).value == -math.inf
    assert math.isnan(free_energy_difference(torsions, empty, empty, temperature=300).value)


def test_bad_arguments_raise() -> None:
    torsions = {"phi": torch.zeros(3), "psi": torch.zeros(4)}
    with pytest.raises(FlowInputError, match="Expected box with at least one torsion"):
        in_box(torsions, {})
    with pytest.raises(FlowInputError, match=r"out of \['phi', 'psi'\], got 'chi'"):
        in_box(torsions, {"chi": (0, 1)})
    for interval in ((1.0, 1.0), (0.0, math.inf), (math.nan, 1.0), (0.0, -2 * PI)):
        with pytest.raises(FlowInputError, match="finite and different"):
            in_box(torsions, {"phi": interval})
    with pytest.raises(FlowInputError, match=r"Expected torsions\['psi'\] of shape \[3\]"):
        in_box(torsions, {"phi": (0, 1), "psi": (0, 1)})
    with pytest.raises(FlowInputError, match="Expected temperature > 0"):
        free_energy_difference(torsions, {"phi": (0, 1)}, {"phi": (1, 2)}, temperature=0)
