"""The training loop: stages of steps, with logs and checkpoints in between."""

import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import torch
from tqdm import tqdm

from energies.base import Target
from flows.errors import FlowInputError, TrainingError
from flows.flow import Flow
from flows.training.loggers import Logger
from flows.training.session import Session
from flows.training.signals import stop_on_signal
from flows.training.stage import Stage
from flows.types import Weights


class InterruptedRunError(TrainingError):
    """Training was asked to stop (Ctrl-C, SIGTERM); the message says where it can go on."""


class Trainer:
    """Carries a flow through its stages.

    Args:
        clip_norm: Largest norm of the gradient; a longer one is shortened.
        ema_decay: Decay of the averaged weights, which are the result.
        log_every: Steps between rows in the log.
        checkpoint_every: Steps between checkpoints.
        max_nonfinite: Largest share of points without a finite weight over the steps between
            two rows; more of them stop the run.
        min_samples: Smallest effective number of samples in a batch, mean of the steps between
            two rows, for a loss that weighs its points; fewer stop the run. 1 never does.
        progress_bar: Whether to show one.

    Raises:
        FlowInputError: A number is out of range.
    """

    def __init__(
        self,
        *,
        clip_norm: float = 20.0,
        ema_decay: float = 0.999,
        log_every: int = 50,
        checkpoint_every: int = 1000,
        max_nonfinite: float = 0.5,
        min_samples: float = 1.2,
        progress_bar: bool = True,
    ) -> None:
        for name, value in (("log_every", log_every), ("checkpoint_every", checkpoint_every)):
            if value < 1:
                raise FlowInputError(f"Expected trainer.{name} >= 1, got {value}.")
        if not clip_norm > 0:
            raise FlowInputError(f"Expected trainer.clip_norm > 0, got {clip_norm}.")
        if not 0 <= ema_decay < 1:
            raise FlowInputError(f"Expected trainer.ema_decay in [0, 1), got {ema_decay}.")
        if not 0 < max_nonfinite <= 1:
            raise FlowInputError(f"Expected trainer.max_nonfinite in (0, 1], got {max_nonfinite}.")
        if not min_samples >= 1:
            raise FlowInputError(f"Expected trainer.min_samples >= 1, got {min_samples}.")
        self.min_samples = min_samples
        self.clip_norm, self.ema_decay = clip_norm, ema_decay
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.max_nonfinite, self.progress_bar = max_nonfinite, progress_bar

    def fit(
        self,
        flow: Flow,
        target: Target,
        stages: Sequence[Stage],
        *,
        checkpoint: Path,
        logger: Logger,
        generator: torch.Generator,
    ) -> Flow:
        """Train `flow` in place and return its averaged weights.

        Args:
            flow: The flow to train.
            target: The density whose family the stages' paths run through.
            stages: Run one after another, each with its own optimizer.
            checkpoint: File to keep the state in; training goes on from it if it exists.
            logger: Receives a row every `log_every` steps.
            generator: Source of all randomness of the run.

        Raises:
            FlowInputError: No stages; or a checkpoint of another flow.
            TrainingError: Too many points have no finite weight, or one has all the weight; the
                checkpoint was written.
            InterruptedRunError: The process was asked to stop; the checkpoint was written.
        """
        if not stages:
            raise FlowInputError("Expected at least one stage, got none.")
        session = Session(
            flow, target, stages, generator=generator, clip_norm=self.clip_norm,
            ema_decay=self.ema_decay,
        )  # fmt: skip
        if checkpoint.exists():
            session.load(checkpoint)
        bar: tqdm[Any] = tqdm(
            total=sum(stage.steps for stage in stages),
            initial=session.total_steps,
            unit="step",
            smoothing=0.05,
            disable=None if self.progress_bar else True,  # None: off where there is no terminal
        )
        with bar, stop_on_signal() as stop:
            while not session.finished:
                self._run_stage(session, checkpoint, logger, bar, stop)
                session.next_stage()
        session.save(checkpoint)
        return session.ema.module

    def _run_stage(
        self, session: Session, checkpoint: Path, logger: Logger, bar: "tqdm[Any]", stop: Event
    ) -> None:
        clock = time.monotonic()
        while session.progress < 1.0:
            starting = session.stage_steps == 0  # compiles: not the stage's time
            try:
                session.step()
            except TrainingError as error:
                raise self._stopped(str(error), session, checkpoint) from error
            now = time.monotonic()
            session.add_time(now - clock, of_stage=not starting)
            clock = now
            bar.update()
            if session.total_steps % self.log_every == 0:
                row = self._row(session, checkpoint)
                logger.log(row)
                bar.set_postfix_str(
                    f"{row['stage']} {row['temperature']:.0f} K, loss {row['loss']:.3f}, "
                    f"ESS {row['ess']:.1%}, {row['n_evals']:.2e} energies"
                )
                self._check(row, session, checkpoint)
            if session.total_steps % self.checkpoint_every == 0:
                session.save(checkpoint)
            if stop.is_set():
                session.save(checkpoint)
                raise InterruptedRunError(
                    f"Stopped at step {session.total_steps}; the checkpoint is {checkpoint}."
                )

    def _check(self, row: dict[str, Any], session: Session, checkpoint: Path) -> None:
        lost = max(row["nonfinite_fraction"], row["skipped"] / self.log_every)
        if lost > self.max_nonfinite:
            raise self._stopped(
                f"Expected at most {self.max_nonfinite:.0%} of points and gradients without a "
                f"finite value, got {lost:.0%}. A lower learning rate or a hotter start may help.",
                session,
                checkpoint,
            )
        size = row["ess"] * session.stage.batch_size
        if session.stage.loss.needs > Weights.NONE and size < self.min_samples:
            raise self._stopped(
                f"Expected an effective number of samples in a batch of at least "
                f"{self.min_samples}, got {size:.2f}: the weights that {row['stage']} learns from "
                "rest on one point. A hotter start or a longer stage before may help.",
                session,
                checkpoint,
            )

    def _row(self, session: Session, checkpoint: Path) -> dict[str, Any]:
        try:
            return session.row()
        except TrainingError as error:
            raise self._stopped(str(error), session, checkpoint) from error

    def _stopped(self, why: str, session: Session, checkpoint: Path) -> TrainingError:
        """Save, and return the error that says so."""
        session.save(checkpoint)
        return TrainingError(
            f"{why} Stopped after step {session.total_steps}; the checkpoint is {checkpoint}."
        )
