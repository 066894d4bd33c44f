"""The slowest coordinate of chains whose slowest coordinate is known."""

import math

import pytest
import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.metrics.tica import slow_coordinates, slow_distance, slow_floor

FLIP = 0.02  # probability of a change of sides, a row


def chains(n_rows: int = 4000, n_chains: int = 16, seed: int = 0) -> Tensor:
    """φ = ±1 rad flips rarely, its autocorrelation is (1 - 2 FLIP)^t; ψ is new at every row."""
    generator = torch.Generator().manual_seed(seed)
    flips = torch.rand(n_rows, n_chains, generator=generator) < FLIP
    start = torch.rand(1, n_chains, generator=generator) < 0.5
    side = 1.0 - 2.0 * ((flips.cumsum(0) + start) % 2)
    psi = math.pi * (2 * torch.rand(n_rows, n_chains, generator=generator) - 1)
    return torch.stack([psi, side], dim=-1)


def on_sides(share: float, n: int = 4000) -> Tensor:
    side = torch.where(torch.arange(n) < share * n, 1.0, -1.0)
    return torch.stack([torch.linspace(-3, 3, n), side], dim=-1)


@pytest.mark.parametrize("lag", [1, 10])
def test_slow_coordinate_is_the_side_and_its_time_is_that_of_the_flips(lag: int) -> None:
    reference = chains()
    slow = slow_coordinates(reference, lag=lag)
    y = slow.project(reference)[..., 0].flatten()
    side = reference[..., 1].flatten().double()
    assert float(torch.corrcoef(torch.stack([y, side]))[0, 1].abs()) > 0.999
    assert float(y.mean()) == pytest.approx(0, abs=1e-9)
    assert float(y.std(unbiased=False)) == pytest.approx(1, abs=1e-9)
    # 64 000 rows of which one in 50 flips: 1280 events, 3 % each standard error; 4 allowed.
    assert float(slow.timescales[0]) == pytest.approx(-1 / math.log(1 - 2 * FLIP), rel=0.12)


def test_distance_is_the_mass_on_the_wrong_side() -> None:
    """Sides are 2 standard deviations apart: W_2 = 2 √|P - P_reference|, to 5 %."""
    reference = chains()
    slow = slow_coordinates(reference, lag=5)
    share = float((reference[..., 1] > 0).double().mean())
    g = torch.Generator().manual_seed(0)
    (off,) = slow_distance(slow, on_sides(share + 0.2), reference, generator=g)
    assert off.value == pytest.approx(2 * math.sqrt(0.2), rel=0.05)
    assert off.low < off.value < off.high
    # The same samples with weights that put it right.
    p = share + 0.2
    side = on_sides(p)[:, 1] > 0
    log_w = torch.where(side, math.log(share / p), math.log((1 - share) / (1 - p))).double()
    (right,) = slow_distance(slow, on_sides(p), reference, log_w=log_w, generator=g)
    assert right.value < 0.1
    assert right.low == 0  # the interval reaches what noise alone gives


def test_floor_is_the_distance_between_the_halves_of_the_chains() -> None:
    reference = chains(n_rows=1000)
    slow = slow_coordinates(reference, lag=5, dim=2)
    shares = [float((half > 0).double().mean()) for half in reference[..., 1].chunk(2, dim=1)]
    floor = slow_floor(slow, reference)
    assert len(floor) == 2
    assert floor[0] == pytest.approx(2 * math.sqrt(abs(shares[0] - shares[1])), rel=0.1)
    assert len(slow_floor(slow, reference[:, :1])) == 2


def test_bad_input() -> None:
    some = chains(n_rows=50, n_chains=2)
    with pytest.raises(FlowInputError, match=r"Expected chains of shape \[S, C, K\]"):
        slow_coordinates(some[:, 0], lag=1)
    with pytest.raises(FlowInputError, match=r"Expected lag within 1..25, got 26"):
        slow_coordinates(some, lag=26)
    with pytest.raises(FlowInputError, match=r"finite"):
        slow_coordinates(some * math.nan, lag=1)
    still = torch.zeros(50, 2, 1)
    with pytest.raises(FlowInputError, match=r"combinations of angles that move, got 0"):
        slow_coordinates(still, lag=1)
