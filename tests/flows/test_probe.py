"""The probe against flows whose gaps are known: found when lost, and no alarm without a gap."""

import math

import pytest
import torch
from torch import Tensor

from energies.analytic import AnalyticEnergy, DoubleWell, Gaussian
from energies.base import Evaluation, R, Target
from energies.target import AnalyticTarget
from flows.bases import NormalUniform
from flows.build import spline_flow
from flows.errors import FlowInputError, OverlapError
from flows.evaluation import draw_weighted
from flows.flow import Flow
from flows.metrics.weights import ess
from flows.probe import Probe, probe
from flows.proposals import HMC
from flows.types import Samples
from tests.flows.bent import bent

T = 300.0


class TwoModes(AnalyticEnergy):
    """Normal modes at (0, 0) and (9, 0), the second with a share of the mass."""

    def __init__(self, share: float) -> None:
        super().__init__(1, 2, temperature=T)
        self.share = share

    def reduced(self, y: Tensor) -> Tensor:
        at = y.new_tensor([[0.0, 0.0], [9.0, 0.0]])
        log_mode = -0.5 * (y - at).square().sum(-1)  # [..., 2]
        return -(log_mode + y.new_tensor([1 - self.share, self.share]).log()).logsumexp(-1)

    def log_z(self, temperature: float) -> float:
        return math.log(2 * math.pi)

    def moments(self, temperature: float) -> None:  # type: ignore[override]
        raise NotImplementedError

    def sample(self, n: int, temperature: float, *, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


class Itself(Target):
    """The density of a flow as a target: the flow is exact, and as rugged as may be."""

    n_evals = 0

    def __init__(self, flow: Flow) -> None:
        self.flow, self.dim, self.periodic = flow, flow.dim, flow.periodic

    def evaluate(self, x: Tensor) -> Evaluation:
        log_q = self.flow.log_prob(x)
        return Evaluation(-R * T * log_q, torch.zeros_like(log_q))


def weighted(flow: Flow, target: Target, n: int = 20_000) -> Samples:
    generator = torch.Generator().manual_seed(9)
    return Samples.cat(list(draw_weighted(flow, target, T, n, chunk=n, generator=generator)))


def probed(flow: Flow, target: Target, seed: int, **options: object) -> Probe:
    return probe(
        flow, target, weighted(flow, target), temperature=T, n=400,
        generator=torch.Generator().manual_seed(seed), **options,  # type: ignore[arg-type]
    )  # fmt: skip


def normal_flow(scale: float = 1.0, dim: int = 2) -> Flow:
    return Flow([], NormalUniform(torch.zeros(dim, dtype=torch.bool), scale=scale))


@pytest.mark.parametrize("share", [0.3, 0.02, 0.003])
@pytest.mark.parametrize("seed", [0, 1])
def test_missing_mode_is_found_with_its_mass(share: float, seed: int) -> None:
    """The flow is one of the two modes exactly: an ESS of 100 %, and half of the story."""
    flow, target = normal_flow(), AnalyticTarget(TwoModes(share))
    assert ess(weighted(flow, target).log_w) > 0.99
    found = probed(flow, target, seed, hot=8.0, n_steps=30, radius=2.0)
    assert found.found
    assert "Not to be trusted" in found.verdict
    mass = found.missing.mass
    # All walkers start in the other mode: what they find is too little rather than too much.
    assert share / 3 < mass.value < share + 4 * mass.se
    worst = found.regions[0]
    # At the mode the flow is lower by exp(9²/2), and more beyond.
    assert worst.log_ratio > 10
    assert float((worst.samples.x[0] - torch.tensor([9.0, 0.0])).norm()) < 4
    assert worst.share.mass.value == pytest.approx(mass.value, rel=0.2)
    assert worst.share.known == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_no_alarm_where_the_flow_is_whole(seed: int) -> None:
    few = {"n_couplings": 1, "hidden": (8,), "n_circle_couplings": 1, "circle_hidden": (8,)}
    whole = bent(spline_flow([True, True, False], **few, seed=seed), 0.5)  # type: ignore[arg-type]
    cases: list[tuple[Flow, Target]] = [
        (whole, Itself(whole)),
        (normal_flow(), AnalyticTarget(Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]))),
        # Too narrow by a fifth: a tail beyond the factor, which its own samples tell of.
        (normal_flow(0.8), AnalyticTarget(Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]))),
        (normal_flow(2.0), AnalyticTarget(DoubleWell(b=-2.0))),
    ]
    for flow, target in cases:
        result = probed(flow, target, seed, n_steps=10)
        assert not result.found, result.verdict
        assert "Nothing missing was found" in result.verdict


def test_walkers_come_back_as_points_of_the_target() -> None:
    """E[W h] of closed cycles is the mean of the target, whatever the flow: 4 errors."""
    from flows.metrics.weights import weighted_mean
    from flows.probe import _cycle, _shares

    target = AnalyticTarget(DoubleWell(b=-2.0).double())
    x = target.energy.sample(1000, T, generator=torch.Generator().manual_seed(0))[:, 0]
    walkers, log_w = _cycle(
        target, x, T, 3.0, _shares(3.0, 10), HMC(3), torch.Generator().manual_seed(1)
    )
    exact = target.energy.moments(T)
    for k in range(2):
        mean = weighted_mean(walkers.samples.x[:, k], log_w)
        assert abs(mean.value - float(exact.mean[k])) < 4 * mean.se
    moved = (walkers.samples.x - x).norm(dim=-1)
    assert float((moved > 0).double().mean()) > 0.95
    assert torch.allclose(
        walkers.samples.log_p, target.log_prob(target.evaluate(walkers.samples.x), T)
    )


def test_shares_are_geometric_in_temperature() -> None:
    from flows.probe import _shares

    shares = _shares(4.0, 2)
    beta = [s * 1 + (1 - s) / 4 for s in shares]
    assert beta == pytest.approx([0.5, 0.25, 0.5, 1.0])


def test_a_probe_of_few_walkers_says_so() -> None:
    target = AnalyticTarget(Gaussian([0.0] * 40, torch.eye(40).tolist()))
    flow = normal_flow(dim=40)
    result = probe(
        flow, target, weighted(flow, target, 1000), temperature=T, n=20, n_steps=1, hot=50.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert not result.found
    assert "Not conclusive" in result.verdict


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 1}, "Expected n >= 2 and a whole number, got 1"),
        ({"n_steps": 2.5}, "Expected n_steps >= 1 and a whole number, got 2.5"),
        ({"hot": 1.0}, "Expected hot > 1, got 1"),
        ({"factor": math.inf}, "Expected factor > 1, got inf"),
        ({"radius": 0.0}, "Expected radius > 0, got 0"),
        ({"tolerated": 0.0}, "Expected tolerated > 0, got 0"),
    ],
)
def test_bad_arguments(options: dict[str, float], sentence: str) -> None:
    flow, target = normal_flow(), AnalyticTarget(Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]))
    with pytest.raises(FlowInputError, match=sentence):
        probe(
            flow, target, weighted(flow, target, 100), temperature=T,
            generator=torch.Generator().manual_seed(0), **options,
        )  # type: ignore[arg-type]  # fmt: skip


def test_weights_that_rest_on_one_sample_are_refused() -> None:
    flow, target = normal_flow(), AnalyticTarget(Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]))
    samples = weighted(flow, target, 100)
    samples.log_w[3] = 100.0
    with pytest.raises(OverlapError, match=r"at least 10 effective samples for walkers .* got 1 "):
        probe(flow, target, samples, temperature=T, generator=torch.Generator())
    samples.log_w.fill_(-torch.inf)
    with pytest.raises(FlowInputError, match="at least one row above -inf"):
        probe(flow, target, samples, temperature=T, generator=torch.Generator())
