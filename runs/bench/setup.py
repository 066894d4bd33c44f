"""What all parts of the bench share: the config on one device, and how things are timed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flows.flow import Flow
from flows.losses import ReverseKL
from flows.losses.base import Loss
from flows.paths import Temperature
from flows.proposals import Model, Proposal
from flows.training import Stage
from flows.training.session import Session
from runs.bench.contenders import Architecture
from runs.bench.timing import Figure, Task, in_turns
from runs.building import build_system
from runs.compiling import wants_compiled
from runs.systems import System


@dataclass(frozen=True)
class Setup:
    """The config on a device.

    Attributes:
        config: Composed from `configs/bench.yaml`.
        device: Where things run.
    """

    config: DictConfig
    device: torch.device

    @property
    def compiled(self) -> bool:
        """Whether what a run compiles is compiled."""
        return wants_compiled(self.config.trainer.compile)

    @property
    def batch_size(self) -> int:
        """Points of a step."""
        return int(self.config.trainer.batch_size)

    @property
    def flows(self) -> dict[str, Mapping[str, Any]]:
        """Sizes of the flows that are compared with peers, arguments of `spline_flow`."""
        return {str(name): {**node} for name, node in self.config.flows.items()}

    def architecture(self, name: str) -> Architecture:
        """Return one of `flows` as all packages build it."""
        sizes = self.flows[name]
        return Architecture(
            sizes["n_couplings"], (*sizes["hidden"],), self.config.dim, sizes["n_bins"]
        )

    def times(self, tasks: Mapping[str, Task]) -> dict[str, list[float]]:
        """Return seconds a call of each task, one number a round."""
        return in_turns(
            tasks, rounds=self.config.rounds, device=self.device, least=self.config.turn
        )

    def system(self, name: str) -> System:
        """Build one of the systems."""
        parts = {"system": self.config.systems[name], "energy": self.config.energy}
        config = OmegaConf.create(parts)
        return build_system(config, device=self.device)

    def flow(self, system: System, sizes: Mapping[str, Any]) -> Flow:
        """Build the configured flow for a system, with some arguments changed."""
        flow: Flow = instantiate(self.config.flow)(system.target.periodic, **sizes)
        return flow.to(self.device)

    def session(
        self,
        flow: Flow,
        system: System,
        *,
        target: Any = None,
        proposal: Proposal | None = None,
        loss: Loss | None = None,
        batch_size: int | None = None,
    ) -> Session:
        """Return the training of a flow, whose `step` is that of a run.

        Args:
            flow: Trained in place.
            system: What it is trained on.
            target: In place of the system's.
            proposal: The flow's own samples if None.
            loss: The reverse KL if None.
            batch_size: The configured one if None.
        """
        config = self.config
        stage = Stage(
            name="bench",
            path=Temperature(system.temperature),
            proposal=proposal or Model(),
            loss=loss or ReverseKL(),
            optimizer=instantiate(config.optimizer),
            schedule=instantiate(config.schedule),
            steps=config.trainer.max_steps,
            batch_size=batch_size or self.batch_size,
        )
        return Session(
            flow,
            target or system.target,
            [stage],
            generator=torch.Generator().manual_seed(config.seed),
            clip_norm=config.trainer.clip_norm,
            ema_decay=config.trainer.ema_decay,
        )


def milliseconds(seconds: list[float]) -> Figure:
    """Return times in ms."""
    return Figure.of([1e3 * s for s in seconds])
