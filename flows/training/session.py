"""The state of a run, all of which a checkpoint holds, and the one step that changes it."""

import logging
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from energies.base import Target
from flows import parallel
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.state import State, Stateful
from flows.training.checkpoint import Checkpoints, load_checkpoint
from flows.training.ema import EMA
from flows.training.randomness import random_state, set_random_state
from flows.training.stage import Stage
from flows.training.window import Window

log = logging.getLogger(__name__)


class Session:
    """A flow on its way through stages; of several processes each has one, all in step.

    Args:
        flow: Trained in place.
        target: The density whose family the stages' paths run through.
        stages: What to do, in order.
        generator: Source of all randomness; of several processes each gets a stream of its own.
        clip_norm: Largest norm of the gradient.
        ema_decay: Decay of the averaged weights.

    Attributes:
        ema: The averaged weights.
        total_steps: Steps done over all stages.
        figure: Stage, aim and value of the figure noted last.
        best: The same of the best checkpoint.
        rollbacks: How many times it went back to an earlier state; each halves the learning rate.
    """

    def __init__(
        self,
        flow: Flow,
        target: Target,
        stages: Sequence[Stage],
        *,
        generator: torch.Generator,
        clip_norm: float,
        ema_decay: float,
    ) -> None:
        self.flow, self.target, self.stages = flow, target, stages
        self.generator, self.clip_norm = parallel.own_stream(generator), clip_norm
        flow.load_state_dict(parallel.at_first(flow.state_dict))
        self._joint_flow = parallel.joint_flow(flow)
        self.parameters = list(flow.parameters())
        self.ema = EMA(flow, ema_decay)
        self.window = Window()
        self.index, self.stage_steps, self.total_steps, self.rollbacks = 0, 0, 0, 0
        self.stage_seconds, self.total_seconds = 0.0, 0.0
        self.figure: list[float] | None = None
        self.best: list[float] | None = None
        self._evals_offset = -parallel.total(target.n_evals)
        self.optimizer = self._new_optimizer()

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.stages[self.index]

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        return self.index >= len(self.stages)

    @property
    def progress(self) -> float:
        """Progress of the current stage, in [0, 1]."""
        return self.stage.progress(self.stage_steps, self.stage_seconds)

    @property
    def n_evals(self) -> int:
        """Energy evaluations spent on this run by all processes, earlier sessions included."""
        return parallel.total(self.target.n_evals) + self._evals_offset

    def step(self) -> None:
        """Do one gradient step, without waiting for the device.

        A gradient that is not finite counts as zero: momentum alone moves the weights.
        """
        stage, progress = self.stage, self.progress
        n = parallel.share(stage.batch_size)
        stage.path.update(progress)
        factor = stage.schedule.factor(progress) * 0.5**self.rollbacks
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        if stage.path.due:
            stage.proposal.renew(self.flow, self.target, stage.path, n, generator=self.generator)
        samples = stage.proposal.draw(
            self.flow,
            self.target,
            stage.path,
            n,
            reparametrised=stage.loss.reparametrised,
            generator=self.generator,
        )
        batch = parallel.joint_batch(samples)
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = stage.loss(self._joint_flow, batch)
        torch.autograd.backward(loss)
        parallel.average_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        lost = ~torch.isfinite(norm)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(lost, 0.0)
        self.optimizer.step()
        self.ema.update()
        stage.proposal.update(self.flow, samples)
        self.window.add(loss, norm, batch)
        self.stage_steps, self.total_steps = self.stage_steps + 1, self.total_steps + 1

    def add_time(self, seconds: float, *, of_stage: bool) -> None:
        """Count wall time for the run, and for the limit of the stage unless it was set-up.

        Of several processes the slowest one's counts, so that a stage ends in all of them at once.
        """
        (seconds,) = parallel.largest(seconds)
        self.total_seconds += seconds
        if of_stage:
            self.stage_seconds += seconds

    def next_stage(self) -> None:
        """Enter the next stage with a new optimizer."""
        self.index, self.stage_steps, self.stage_seconds = self.index + 1, 0, 0.0
        if not self.finished:
            self.optimizer = self._new_optimizer()

    def row(self) -> dict[str, Any]:
        """Return the figures of the steps since the last call."""
        return {
            "step": self.total_steps,
            "stage": self.stage.name,
            "time_s": round(self.total_seconds, 3),
            "temperature": self.stage.path.temperature,
            "lr": self.optimizer.param_groups[0]["lr"],
            "n_evals": self.n_evals,
            "rollbacks": self.rollbacks,
            **self.window.close(),
            **self.stage.path.figures(),
            **self.stage.proposal.figures(),
        }

    def note(self, row: dict[str, Any], name: str) -> None:
        """Take note of a figure of a row, for `is_best`; a minus before its name turns it round.

        Raises:
            FlowInputError: There is no such number.
        """
        figure = row.get(name.removeprefix("-"))
        if not isinstance(figure, int | float):
            numbers = [key for key, value in row.items() if isinstance(value, int | float)]
            raise FlowInputError(
                f"Expected trainer.best to be a figure of the log ({', '.join(numbers)}), "
                f"got {name!r}."
            )
        aim = [float(self.index), self.stage.path.aim]
        self.figure = [*aim, -figure if name.startswith("-") else figure]

    def is_best(self) -> bool:
        """Take the figure noted last; return whether it is the highest so far at its aim.

        Figures at two aims do not compare, such as an ESS when hot and when cold.
        """
        figure, best = self.figure, self.best
        if figure is None or not math.isfinite(figure[2]):
            return False
        if best is not None and best[:2] == figure[:2] and best[2] >= figure[2]:
            return False
        self.best = figure
        return True

    def state_dict(self) -> State:
        """Return all that later steps depend on, and the versions they were computed with.

        The first process has what all of them hold.
        """
        return {
            "dim": self.flow.dim,
            "flow": self.flow.state_dict(),
            "ema": self.ema.module.state_dict(),
            "ema_updates": self.ema.n_updates,
            "optimizer": self.optimizer.state_dict(),
            "window": self.window.rows,
            "n_evals": self.n_evals,
            "parts": {} if self.finished else _states(self.stage),
            "ranks": parallel.collect(self._own_state()),
            "versions": VERSIONS,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load(self, checkpoint: Path) -> None:
        """Go on from `checkpoint`.

        Raises:
            DamagedCheckpointError: It cannot be read; nothing was changed.
            FlowInputError: It belongs to another flow or other stages.
        """
        state = parallel.at_first(lambda: load_checkpoint(checkpoint))
        if state.get("dim") != self.flow.dim:
            raise FlowInputError(
                f"Expected a checkpoint of a flow in {self.flow.dim} dimensions, got one in "
                f"{state.get('dim')} ({checkpoint})."
            )
        try:
            self.flow.load_state_dict(state["flow"])
            self.ema.module.load_state_dict(state["ema"])
        except RuntimeError as error:
            raise FlowInputError(
                f"Expected a checkpoint of the flow configured here, got one with other layers "
                f"({checkpoint})."
            ) from error
        try:
            self._load_rest(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise FlowInputError(
                f"Expected a checkpoint of the stages configured here, got one of others, or of "
                f"another version ({checkpoint}; {type(error).__name__}: {error})."
            ) from error
        if state["versions"] != VERSIONS:
            log.warning(
                "%s was computed with %s, now it is %s: results agree, but not bit for bit.",
                checkpoint, state["versions"], VERSIONS,
            )  # fmt: skip

    def _load_rest(self, state: State) -> None:
        for name in _COUNTERS:
            setattr(self, name, state[name])
        self.ema.n_updates, self.window.rows = state["ema_updates"], state["window"]
        self._evals_offset = state["n_evals"] - parallel.total(self.target.n_evals)
        if not self.finished:
            self.optimizer = self._new_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])
            for name, part in _parts(self.stage).items():
                part.load_state_dict(state["parts"][name], self.flow)
        if len(state["ranks"]) == parallel.n_ranks():
            self._load_own_state(state["ranks"][parallel.rank()])
        else:  # another number of processes: what each had stored is drawn anew
            seed = state["ranks"][0]["seed"]
            self.generator.manual_seed(parallel.seed_of(seed, step=self.total_steps))

    def _own_state(self) -> State:
        """Return what this process alone holds: its random numbers, and points it has stored."""
        return {
            "seed": self.generator.initial_seed(),
            "random": random_state(self.generator),
            "proposal": {} if self.finished else self.stage.proposal.state_dict(),
        }

    def _load_own_state(self, state: State) -> None:
        set_random_state(state["random"], self.generator)
        if not self.finished:
            self.stage.proposal.load_state_dict(state["proposal"], self.flow)

    def roll_back(self, checkpoints: Checkpoints) -> None:
        """Go back to the last regular checkpoint, and on from it with other random numbers.

        Raises:
            FlowInputError: There is none that can be read.
        """
        n, spent, seconds = self.rollbacks + 1, self.n_evals, self.total_seconds
        checkpoints.restore(self.load, checkpoints.regular)
        self.rollbacks, self.total_seconds = n, seconds
        self._evals_offset += spent - self.n_evals  # what was spent remains so
        seeds = torch.randint(2**62, (n,), generator=self.generator, device=self.generator.device)
        self.generator.manual_seed(int(seeds[-1]))

    def _new_optimizer(self) -> Optimizer:
        optimizer = self.stage.optimizer(self.parameters)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer


_COUNTERS = (
    "index", "stage_steps", "total_steps", "stage_seconds", "total_seconds", "rollbacks",
    "figure", "best",
)  # fmt: skip

VERSIONS = {
    "python": platform.python_version(),
    "torch": str(torch.__version__),
    "numpy": np.__version__,
}
"""What the same bits depend on."""


def _parts(stage: Stage) -> dict[str, Stateful]:
    """Those that are the same in all processes."""
    return {"path": stage.path, "loss": stage.loss}


def _states(stage: Stage) -> dict[str, State]:
    return {name: part.state_dict() for name, part in _parts(stage).items()}
