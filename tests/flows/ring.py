"""A density on a circle and a line with every method that can train on it: small, and exact."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from energies.base import Evaluation, R, Target
from flows.build import spline_flow
from flows.flow import Flow
from flows.losses import (
    L2,
    AlphaDivergence,
    ForwardKL,
    Jeffreys,
    L2Plus,
    LearnedLogZ,
    LogVariance,
    Loss,
    ReverseKL,
    ReverseKLPath,
    RunningMean,
    Sum,
)
from flows.paths import AdaptiveLadder, Constrained, Ladder, Temperature
from flows.paths import Path as Aim
from flows.proposals import (
    AIS,
    HMC,
    SMC,
    Buffer,
    HotAngles,
    HotModel,
    Metropolis,
    Mixture,
    Model,
    Points,
    PrioritisedBuffer,
    Proposal,
)
from flows.training import Stage, Trainer, WarmupCosine
from flows.training.loggers import Logger
from tests.rows import Rows

LINES = {"n_couplings": 2, "hidden": (16,), "n_bins": 5}
ANGLES = {"n_circle_couplings": 2, "circle_hidden": (16,), "circle_bins": 5, "n_frequencies": 2}
SMALL = {**LINES, **ANGLES}


class Ring(Target):
    """U = k (1 - cos φ) + RT₀ (y - sin φ)²/2: an angle and a coordinate that follows it."""

    dim = 2
    periodic = torch.tensor([True, False])

    def __init__(self) -> None:
        self._n_evals = 0
        self.broken = False

    @property
    def n_evals(self) -> int:
        return self._n_evals

    def evaluate(self, x: Tensor) -> Evaluation:
        self._n_evals += len(x)
        angle, y = x.to(torch.float64).unbind(-1)
        u = R * 300 * (2 * (1 - torch.cos(angle)) + 0.5 * (y - torch.sin(angle)) ** 2)
        return Evaluation(u + math.nan if self.broken else u, torch.zeros_like(u))

    log_z = math.log(2 * math.pi * math.sqrt(2 * math.pi)) - 2 + math.log(2.279585302336067)
    """∫ exp(2 cos φ) dφ = 2π I₀(2), with I₀(2) = 2.2795853..."""


def stage(
    loss: Loss | None = None,
    *,
    path: Aim | None = None,
    proposal: Proposal | None = None,
    steps: int = 60,
    name: str = "train",
) -> Stage:
    return Stage(
        name=name,
        path=path or Temperature(end=300.0, start=600.0),
        proposal=proposal or Model(),
        loss=loss or L2Plus(),
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        schedule=WarmupCosine(warmup=0.1, final=0.05),
        steps=steps,
        batch_size=256,
    )


def fit(
    folder: Path,
    stages: list[Stage],
    *,
    target: Ring | None = None,
    logger: Logger | None = None,
    **settings: object,
) -> Flow:
    flow = spline_flow(Ring.periodic, **SMALL, seed=1)
    trainer = Trainer(progress_bar=False, **{"log_every": 10, "checkpoint_every": 7, **settings})
    return trainer.fit(
        flow,
        target or Ring(),
        stages,
        checkpoint=folder / "last.pt",
        logger=logger or Rows(),
        generator=torch.Generator().manual_seed(5),
    )


def fab() -> tuple[Aim, Proposal, Loss]:
    source = AIS(2, alpha=2.0, moves=HMC(2))
    buffer = PrioritisedBuffer(source, size=2048, min_size=512, steps=4)
    return Temperature(300.0), buffer, AlphaDivergence()


def mixed() -> tuple[Aim, Proposal, Loss]:
    parts = {"model": Model(), "hot": HotModel(1.2), "smc": SMC(1, moves=HMC(1))}
    loss = Sum({"l2": L2(centre=LearnedLogZ()), "forward_kl": ForwardKL()})
    return Temperature(300.0, start=400.0), Mixture(parts), loss


def data() -> tuple[Aim, Proposal, Loss]:
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    return Temperature(300.0), Points({"x": x.numpy()}), LogVariance()


METHODS: dict[str, Callable[[], tuple[Aim, Proposal, Loss]]] = {
    "reverse_kl": lambda: (Temperature(300.0), Model(), ReverseKL()),
    "reverse_kl_path": lambda: (Temperature(300.0), Model(), ReverseKLPath()),
    "jeffreys": lambda: (Temperature(300.0), Model(), Jeffreys()),
    "l2_plus": lambda: (Temperature(300.0, start=600.0), Model(), L2Plus()),
    "l2_plus_running": lambda: (Temperature(300.0), Model(), L2Plus(centre=RunningMean())),
    "log_variance": lambda: (Temperature(300.0), HotModel(1.2), LogVariance()),
    "forward_kl_buffer": lambda: (
        Temperature(300.0), Buffer(2048, resample=None, refresh=16), ForwardKL(),
    ),
    "hot_angles": lambda: (Temperature(300.0), HotAngles(), ForwardKL()),
    "ta_bg": lambda: (
        Ladder(300.0, 600.0, rungs=5), Buffer(2048, clip=1e-3), ForwardKL(baseline=0.0),
    ),
    "adaptive": lambda: (AdaptiveLadder(300.0, 900.0, rungs=4, ess=0.7), Model(), L2Plus()),
    "cmt": lambda: (Constrained(300.0, rungs=4), Buffer(2048, resample=None), ForwardKL()),
    "cmt_l2_plus": lambda: (Constrained(300.0, rungs=4), Model(), L2Plus()),
    "chains": lambda: (Temperature(300.0), Metropolis(2), ForwardKL(baseline=0.0)),
    "fab": fab,
    "mixed": mixed,
    "data": data,
}  # fmt: skip


def of(method: str, steps: int, name: str = "train") -> Stage:
    path, proposal, loss = METHODS[method]()
    return stage(loss, path=path, proposal=proposal, steps=steps, name=name)
