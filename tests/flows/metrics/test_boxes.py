"""Populations of boxes in densities whose integrals are known."""

import math

import pytest
import torch
from torch import Tensor

from energies.base import R
from flows.errors import FlowInputError
from flows.metrics import bootstrap_free_energies, bootstrap_populations, in_box
from flows.metrics.bootstrap import Interval

PI = math.pi


def uniform(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return PI * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)


def cosine_mass(lo: float, hi: float) -> float:
    """Mass of (1 + cos φ) / 2π between lo and hi."""
    return (hi - lo + math.sin(hi) - math.sin(lo)) / (2 * PI)


def population(phi: Tensor, box: tuple[float, float], log_w: Tensor) -> Interval:
    inside = in_box({"phi": phi}, {"phi": box})
    return bootstrap_populations({"box": inside}, log_w, generator=torch.manual_seed(0))["box"]


def difference(
    phi: Tensor,
    start: tuple[float, float],
    end: tuple[float, float],
    log_w: Tensor | None = None,
    temperature: float = 300.0,
) -> Interval:
    first, last = (in_box({"phi": phi}, {"phi": box}) for box in (start, end))
    return bootstrap_free_energies(
        {"end": last},
        first,
        torch.zeros(len(phi)) if log_w is None else log_w,
        temperature=temperature,
        n_rep=200,
        generator=torch.manual_seed(0),
    )["end"]


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
    value, se = population(phi, (0.0, 2.3), torch.zeros_like(phi))[:2]
    p = 2.3 / (2 * PI)
    assert se == pytest.approx(math.sqrt(p * (1 - p) / 10_000), rel=0.1)
    assert abs(value - p) < 4 * se


@pytest.mark.parametrize("box", [(0.0, 2.3), (2.0, -2.0)])
def test_reweighted_population_of_a_known_density(box: tuple[float, float]) -> None:
    """Uniform points weighted to (1 + cos φ) / 2π, within 4 standard errors."""
    phi = uniform(100_000, seed=1)
    value, se = population(phi, box, (1 + phi.cos()).log())[:2]
    truth = cosine_mass(box[0], box[1] if box[1] > box[0] else box[1] + 2 * PI)
    assert abs(value - truth) < 4 * se
    assert se < 3e-3


def test_free_energies_are_calibrated() -> None:
    """300 repetitions: the std of the z-scores is within 4 of its errors (1/√600) of 1."""
    start, end = (-1.0, 1.0), (1.0, 2.5)
    truth = -R * 300 * math.log(cosine_mass(1.0, 2.5) / cosine_mass(-1.0, 1.0))
    scores = []
    for seed in range(300):
        phi = uniform(3000, seed)
        found = difference(phi, start, end, (1 + phi.cos()).log())
        scores.append((found.value - truth) / found.se)
    z = torch.tensor(scores)
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(600)
    assert abs(float(z.mean())) < 4 / math.sqrt(300)


def test_free_energy_by_hand() -> None:
    """One point in three is in the end box: ΔG = RT log 2, error RT √(1/n_a + 1/n_b)."""
    phi = torch.tensor([0.5] * 200 + [-0.5] * 400)[torch.randperm(600)]
    above, below = (0.0, 1.0), (-1.0, 0.0)
    found = difference(phi, below, above)
    assert found.value == pytest.approx(R * 300 * math.log(2), rel=1e-6)
    assert found.se == pytest.approx(R * 300 * math.sqrt(1 / 200 + 1 / 400), rel=0.15)
    assert found.low < found.value < found.high
    assert difference(phi, above, below).value == pytest.approx(-found.value, rel=1e-12)


def test_box_never_visited() -> None:
    phi = torch.full((100,), -1.0)
    here, empty = (-2.0, 0.0), (0.0, 2.3)
    assert difference(phi, here, empty)[:2] == (math.inf, math.inf)
    assert difference(phi, empty, here).value == -math.inf
    assert math.isnan(difference(phi, empty, empty).value)


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
        difference(torch.zeros(40), (0, 1), (1, 2), temperature=0.0)
