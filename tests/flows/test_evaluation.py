"""What an evaluation reports of rows without a density, and of points of the target."""

import math

import torch
from torch import Tensor

from energies.analytic import Gaussian
from energies.base import Evaluation, Target
from energies.target import AnalyticTarget
from flows.bases import NormalUniform
from flows.evaluation import draw_weighted, forward_report, weight_report
from flows.flow import Flow
from flows.types import Samples


class HalfLine(Target):
    """A standard normal that exists for x > 0 only, and has no energy beyond x = 1."""

    dim = 1
    periodic = torch.tensor([False])
    n_evals = 0

    def evaluate(self, x: Tensor) -> Evaluation:
        x = x[:, 0].double()
        inside = torch.where(x > 0, 0.0, -torch.inf)
        return Evaluation(torch.where(x < 1, 1.25 * x**2, torch.inf), inside)


def test_rows_outside_the_domain_are_counted_apart_from_rows_without_energy() -> None:
    flow = Flow([], NormalUniform(HalfLine.periodic))
    generator = torch.Generator().manual_seed(0)
    parts = draw_weighted(flow, HalfLine(), 300.0, 4000, chunk=1000, generator=generator)
    samples = Samples.cat(list(parts))
    report = weight_report(samples)
    outside, beyond = (samples.x <= 0).double().mean(), (samples.x >= 1).double().mean()
    assert report["out_of_domain_fraction"] == float(outside)
    assert abs(float(outside) - 0.5) < 6 * 0.5 / 4000**0.5
    assert report["nonfinite_fraction"] == float(outside + beyond)


def test_forward_kl_of_two_gaussians() -> None:
    target = AnalyticTarget(Gaussian([0.5, 0.0], [[1.0, 0.0], [0.0, 1.0]]))
    flow = Flow([], NormalUniform(torch.tensor([False, False]), scale=1.5))
    y = target.energy.sample(20_050, 300.0, generator=torch.Generator().manual_seed(0))
    report = forward_report(
        flow, target, 300.0, target.from_xyz(y), log_z=math.log(2 * math.pi), chunk=1000
    )
    exact = 2 * (math.log(1.5) + 1 / (2 * 1.5**2) - 0.5) + 0.5**2 / (2 * 1.5**2)
    assert abs(report["forward_kl"] - exact) < 6 * report["forward_kl_se"] < 0.05
    assert math.isclose(report["eubo"] - report["forward_kl"], math.log(2 * math.pi))
