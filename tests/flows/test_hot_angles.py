"""Points at angles that the flow rarely draws, and what is known of their density."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from energies.analytic import ManyWell
from energies.target import AnalyticTarget
from flows.build import spline_flow
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.paths import Temperature
from flows.proposals import HotAngles
from flows.types import Samples, Weights
from tests.flows.bent import bent

N = 20_000


def flow_with(circles: int, lines: int) -> Flow:
    torch.set_default_dtype(torch.float64)
    periodic = [True] * circles + [False] * lines
    options = {"hidden": (8,), "circle_hidden": (8,), "circle_bins": 5, "n_bins": 5}
    flow = spline_flow(periodic, n_couplings=2, n_circle_couplings=2, seed=4, **options)
    return bent(flow, 0.3)


def target(dim: int) -> AnalyticTarget:
    """Any density will do: the proposal weighs by it, and draws without it."""
    return AnalyticTarget(ManyWell(n_wells=dim // 2, b=-3.0).double())


def drawn(proposal: HotAngles, flow: Flow, n: int = N) -> Samples:
    return proposal.draw(
        flow, target(flow.dim), Temperature(300.0), n,
        reparametrised=False, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def log_angles(flow: Flow, x: Tensor) -> Tensor:
    """log q(φ) of points."""
    with torch.no_grad():
        return flow.angle_log_prob(flow._transform(x)[0])


def test_density_is_the_mixture_of_the_flow_and_its_heated_angles() -> None:
    flow, share, temperature = flow_with(2, 2), 0.4, 3.0
    proposal = HotAngles(share, temperature=temperature)
    assert proposal.gives == Weights.RELATIVE
    samples = drawn(proposal, flow)
    with torch.no_grad():
        log_w = flow.log_prob(samples.x) - samples.log_q
        # The mean of q^{1/τ - 1} over the flow, from other points than the proposal's.
        z = flow.base.draw(200_000, generator=torch.Generator().manual_seed(1))
        mean = ((1 / temperature - 1) * flow.angle_log_prob(z)).exp().mean()
    hot = ((1 / temperature - 1) * log_angles(flow, samples.x)).exp() / mean
    assert torch.allclose(log_w, -(1 - share + share * hot).log(), atol=0.02)
    assert float(log_w.max()) <= -math.log(1 - share)


def test_weights_bring_the_flow_back() -> None:
    flow = flow_with(2, 2)
    samples = drawn(HotAngles(0.5, temperature=4.0, pool=8), flow)
    with torch.no_grad():
        w = (flow.log_prob(samples.x) - samples.log_q).exp()
        x, _ = flow.sample_and_log_prob(8 * N, generator=torch.Generator().manual_seed(2))
    # Half of them are taken from a pool of 8 n angles: its own noise adds to that of the draw.
    assert float(w.mean()) == pytest.approx(1, abs=6 * float(w.std()) / math.sqrt(N))
    for wave in (torch.cos, torch.sin):
        f, expected = w[:, None] * wave(samples.x), wave(x)
        error = f.std(0) / math.sqrt(N) + expected.std(0) / math.sqrt(8 * N)
        assert ((f.mean(0) / w.mean() - expected.mean(0)).abs() < 6 * error).all()


def test_a_rare_basin_has_more_points() -> None:
    flow = flow_with(1, 1)
    with torch.no_grad():
        x, _ = flow.sample_and_log_prob(N, generator=torch.Generator().manual_seed(2))
    rare = float(log_angles(flow, x).quantile(0.01))
    samples = drawn(HotAngles(0.3, temperature=3.0), flow)
    assert float((log_angles(flow, samples.x) < rare).double().mean()) > 0.03


def test_hot_beyond_measure_is_uniform() -> None:
    flow = flow_with(1, 1)
    samples = drawn(HotAngles(0.999, temperature=1e6, pool=16), flow)
    turns = torch.exp(1j * samples.x[:, :1] * torch.arange(1.0, 4.0))
    with torch.no_grad():
        x, _ = flow.sample_and_log_prob(N, generator=torch.Generator().manual_seed(2))
    assert float(torch.exp(1j * x[:, 0]).mean().abs()) > 0.2
    assert float(turns.mean(0).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("proposal", "circles"),
    [(HotAngles(0.0), 2), (HotAngles(temperature=1.0), 2), (HotAngles(), 0)],
)
def test_without_heat_or_angles_it_is_the_flow(proposal: HotAngles, circles: int) -> None:
    flow = flow_with(circles, 4 - circles)
    samples = drawn(proposal, flow, n=100)
    with torch.no_grad():
        assert torch.allclose(samples.log_q, flow.log_prob(samples.x))


def test_no_point_is_taken_twice_as_a_whole() -> None:
    flow = flow_with(2, 2)
    samples = drawn(HotAngles(0.5, temperature=8.0, pool=1), flow, n=500)
    assert len(samples.x[:, :2].unique(dim=0)) < 500
    assert len(samples.x[:, 2:].unique(dim=0)) == 500


def test_angles_of_a_flow_have_a_density_of_their_own() -> None:
    """q(φ) and q(y | φ) = q(x) / q(φ) both integrate to one."""
    flow = flow_with(1, 1)
    angles = (torch.arange(4000) + 0.5) / 4000 * 2 * math.pi - math.pi
    log_q = log_angles(flow, torch.stack([angles, torch.zeros(4000)], 1))
    assert float(log_q.exp().mean()) * 2 * math.pi == pytest.approx(1, abs=1e-4)
    y = torch.linspace(-300, 300, 600_001)
    for k in (0, 1500, 3200):
        x = torch.stack([angles[k].expand(len(y)), y], 1)
        with torch.no_grad():
            given = (flow.log_prob(x) - log_q[k]).exp()
        assert float(torch.trapezoid(given, y)) == pytest.approx(1, abs=1e-4)


def test_a_flow_that_mixes_angles_and_lines_is_refused() -> None:
    flow = flow_with(2, 2)
    mixed = Flow(flow._transform._transforms, flow.base)
    with pytest.raises(FlowInputError, match="Expected a flow with layers for its angles alone"):
        drawn(HotAngles(), mixed, n=10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HotAngles(1.0), r"Expected share of hot_angles in \[0, 1\), got 1.0"),
        (lambda: HotAngles(temperature=0.5), "temperature >= 1 of hot_angles, got 0.5"),
        (lambda: HotAngles(pool=0), "Expected pool >= 1 of hot_angles, got 0"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], object], message: str) -> None:
    with pytest.raises(FlowInputError, match=message):
        build()
