"""The training loop: stages of steps, with logs and checkpoints in between."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from energies.base import Target
from flows import parallel
from flows.errors import FlowInputError, NonfiniteError, TrainingError
from flows.flow import Flow
from flows.progress import Progress
from flows.training.checkpoint import Checkpoints
from flows.training.loggers import Logger
from flows.training.session import Session
from flows.training.signals import Stop, stop_on_signal
from flows.training.stage import Stage
from flows.types import Weights

log = logging.getLogger(__name__)


class Trainer:
    """Carries a flow through its stages.

    Args:
        clip_norm: Largest norm of the gradient; a longer one is shortened.
        ema_decay: Decay of the averaged weights, which are the result.
        log_every: Steps between rows in the log.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of them are kept.
        best: Figure of the log whose highest value marks the checkpoint that is kept as best.pt,
            with a minus for its lowest; at one aim of the path, in the row before.
        max_time: Seconds after which a session ends with a checkpoint; None for no limit.
        max_nonfinite: Largest share of points without a finite weight over the steps between
            two rows; more of them roll the run back.
        max_rollbacks: How many times it goes back to the last checkpoint, each time with half the
            learning rate and other random numbers, before it stops.
        min_samples: Smallest effective number of samples in a batch, mean of the steps between
            two rows, for a loss that weighs its points; fewer stop the run. 1 never does.
        progress_bar: Whether to show one; where there is no terminal, lines in the log.

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
        keep_checkpoints: int = 2,
        best: str = "ess",
        max_time: float | None = None,
        max_nonfinite: float = 0.5,
        max_rollbacks: int = 3,
        min_samples: float = 1.2,
        progress_bar: bool = True,
    ) -> None:
        for name, value, least in (
            ("log_every", log_every, 1),
            ("checkpoint_every", checkpoint_every, 1),
            ("keep_checkpoints", keep_checkpoints, 1),
            ("max_rollbacks", max_rollbacks, 0),
            ("min_samples", min_samples, 1),
        ):
            if not value >= least:
                raise FlowInputError(f"Expected trainer.{name} >= {least}, got {value}.")
        if max_time is not None and not max_time > 0:
            raise FlowInputError(f"Expected trainer.max_time > 0 s, got {max_time}.")
        if not clip_norm > 0:
            raise FlowInputError(f"Expected trainer.clip_norm > 0, got {clip_norm}.")
        if not 0 <= ema_decay < 1:
            raise FlowInputError(f"Expected trainer.ema_decay in [0, 1), got {ema_decay}.")
        if not 0 < max_nonfinite <= 1:
            raise FlowInputError(f"Expected trainer.max_nonfinite in (0, 1], got {max_nonfinite}.")
        self.clip_norm, self.ema_decay = clip_norm, ema_decay
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.keep_checkpoints, self.best, self.max_time = keep_checkpoints, best, max_time
        self.max_nonfinite, self.max_rollbacks = max_nonfinite, max_rollbacks
        self.min_samples, self.progress_bar = min_samples, progress_bar

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
            checkpoint: File to keep the state in, others beside it (see `Checkpoints`); training
                goes on from the newest that is whole.
            logger: Receives a row every `log_every` steps.
            generator: Source of all randomness of the run.

        Raises:
            FlowInputError: No stages; or a checkpoint of another flow.
            NonfiniteError: Too many points have no finite weight, also after roll-backs; the
                checkpoint was written.
            TrainingError: One point has all the weight; the checkpoint was written. Or the disk
                does not take it; the one before is whole.
            InterruptedRunError: The process was asked to stop, or time is up; the checkpoint was
                written.
        """
        if not stages:
            raise FlowInputError("Expected at least one stage, got none.")
        session = Session(
            flow, target, stages, generator=generator, clip_norm=self.clip_norm,
            ema_decay=self.ema_decay,
        )  # fmt: skip
        checkpoints = Checkpoints(checkpoint, keep=self.keep_checkpoints)
        if checkpoints.restore(session.load):
            log.info("going on after step %d", session.total_steps)
        else:
            self._save(session, checkpoints, regular=True)
        logger.rewind(session.total_steps)
        if not session.finished:
            self._run(session, checkpoints, logger)
        return session.ema.module

    def _run(self, session: Session, checkpoints: Checkpoints, logger: Logger) -> None:
        shown = Progress(
            sum(stage.steps for stage in session.stages), unit="step", name="train",
            initial=session.total_steps, shown=self.progress_bar and parallel.rank() == 0,
        )  # fmt: skip
        with shown, stop_on_signal(self.max_time) as stop:
            while not session.finished:
                self._run_stage(session, checkpoints, logger, shown, stop)
                session.next_stage()
        self._save(session, checkpoints)

    def _run_stage(
        self,
        session: Session,
        checkpoints: Checkpoints,
        logger: Logger,
        shown: Progress,
        stop: Stop,
    ) -> None:
        clock = time.monotonic()
        while session.progress < 1.0:
            starting = session.stage_steps == 0  # compiles: not the stage's time
            try:
                session.step()
                now = time.monotonic()
                session.add_time(now - clock, of_stage=not starting)
                clock = now
                if session.total_steps % self.log_every == 0:
                    row = session.row()
                    logger.log(row)
                    session.note(row, self.best)
                    shown.say(
                        f"{row['stage']} {row['temperature']:.0f} K, loss {row['loss']:.3f}, "
                        f"ESS {row['ess']:.1%}, {row['n_evals']:.2e} energies"
                    )
                    self._check(row, session)
                if session.total_steps % self.checkpoint_every == 0:
                    self._save(session, checkpoints, regular=True)
            except NonfiniteError as error:
                if session.rollbacks == self.max_rollbacks:
                    raise self._stopped(error, session, checkpoints) from error
                session.roll_back(checkpoints)
                logger.rewind(session.total_steps)
                log.warning(
                    "%s Going on after step %d, at half the learning rate: roll-back %d of %d.",
                    error, session.total_steps, session.rollbacks, self.max_rollbacks,
                )  # fmt: skip
            except TrainingError as error:
                raise self._stopped(error, session, checkpoints) from error
            shown.reach(session.total_steps)
            if stop.asked:
                self._save(session, checkpoints)
                raise stop.error(
                    f"after step {session.total_steps}; the checkpoint is {checkpoints.last}"
                )

    def _check(self, row: dict[str, Any], session: Session) -> None:
        lost = max(row["nonfinite_fraction"], row["skipped"] / self.log_every)
        if lost > self.max_nonfinite:
            raise NonfiniteError(
                f"Expected at most {self.max_nonfinite:.0%} of points and gradients without a "
                f"finite value up to step {row['step']}, got {lost:.0%}. A lower learning rate or "
                "a hotter start may help."
            )
        size = row["ess"] * session.stage.batch_size
        if session.stage.loss.needs > Weights.NONE and size < self.min_samples:
            raise TrainingError(
                f"Expected an effective number of samples in a batch of at least "
                f"{self.min_samples}, got {size:.2f}: the weights that {row['stage']} learns from "
                "rest on one point. A hotter start or a longer stage before may help."
            )

    def _save(self, session: Session, checkpoints: Checkpoints, *, regular: bool = False) -> None:
        best = regular and session.is_best()
        step = session.total_steps
        state = session.state_dict()
        try:
            parallel.at_first(
                lambda: checkpoints.save(state, step=step if regular else None, best=best)
            )
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} while the checkpoint after step {step} was written; the one "
                "before it is whole",
                str(checkpoints.last),
            ) from error

    def _stopped(
        self, why: TrainingError, session: Session, checkpoints: Checkpoints
    ) -> TrainingError:
        """Save, and return the error that says so."""
        self._save(session, checkpoints)
        where = f"after step {session.total_steps}; the checkpoint is {checkpoints.last}"
        return type(why)(f"{why} Stopped {where}.")
