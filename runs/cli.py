"""Hydra entry points that answer bad input with one sentence instead of a traceback."""

import difflib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import hydra
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from energies.errors import EnergyInputError
from flows import parallel
from flows.errors import FlowInputError, NonfiniteError, ProcessLostError, TrainingError
from flows.training import InterruptedRunError
from runs import resolvers
from runs.errors import CommandError as CommandError
from runs.trust import trusting

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


resolvers.register()

OUR_ERRORS = (CommandError, EnergyInputError, FlowInputError, ProcessLostError, TrainingError)


class TerminatedError(BaseException):
    """SIGTERM came while nothing was looking out for it; like KeyboardInterrupt, no Exception."""


class Ending(NamedTuple):
    """How a command ended.

    Attributes:
        status: For the shell and schedulers; see README.
        sentence: Why, for the user.
        state: What status.json says of a run that ended so.
    """

    status: int
    sentence: str
    state: Literal["queued", "failed", "nan"] = "failed"


def ending(error: BaseException, config_name: str) -> Ending | None:
    """Return how an exception ends a command; None for one that only a programmer understands.

    Args:
        error: What it ends with.
        config_name: Of the command, to name the keys that it takes.
    """
    match error:
        case InterruptedRunError(number=None):
            return Ending(os.EX_TEMPFAIL, str(error), "queued")
        case InterruptedRunError(number=number):
            return Ending(128 + number, str(error), "queued")
        case KeyboardInterrupt():
            return Ending(128 + signal.SIGINT, "Stopped by Ctrl-C.", "queued")
        case TerminatedError():
            return Ending(128 + signal.SIGTERM, "Stopped by SIGTERM.", "queued")
        case NonfiniteError():
            return Ending(os.EX_SOFTWARE, str(error), "nan")
        case HydraException() | OmegaConfBaseException():
            return Ending(1, _explain(error, config_name))
        case _ if isinstance(error, OUR_ERRORS):
            return Ending(1, str(error))
        case MemoryError() | RuntimeError() if _is_memory(error):
            return Ending(
                os.EX_OSERR,
                f"Expected memory for what was asked, got: {str(error).splitlines()[0]} Smaller "
                "batches need less: trainer.batch_size, chunk, evaluation.chunk.",
            )
        case OSError() | BaseException(__cause__=OSError()):
            refused = error if isinstance(error, OSError) else error.__cause__
            return Ending(os.EX_IOERR, f"Expected files to be read and written, got: {refused}.")
    return None


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "not enough memory" in str(error) or "can't allocate memory" in str(error)
    )


def run_command(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `task` on the config that the command line asks for, and exit.

    What ends it is told in one sentence on standard error, and in the exit status (see `ending`).
    Of several processes the first has Hydra's folder and log; the others write nothing.

    Args:
        task: Receives the composed config.
        config_name: Name of the primary config in `configs/`.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here rather than to Hydra's printer
    logging.raiseExceptions = False  # a log that a full disk does not take is no reason to stop
    failed: list[BaseException] = []
    if parallel.rank() > 0:
        sys.argv += ["hydra.run.dir=.", "hydra/job_logging=disabled"]

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)
    def main(config: DictConfig) -> None:
        try:
            with trusting(config.get("allow")):
                task(config)
        except Exception as error:  # raised again below, past Hydra's own report
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise  # a job; the launcher brings it back, from another process too
            failed.append(error)

    with _terminating(failed):
        try:
            if parallel.n_ranks() > 1 and not {"-m", "--multirun"}.isdisjoint(sys.argv):
                raise CommandError(
                    "Expected no sweep (-m) of several processes, got one; `python -m runs.jobs` "
                    "prints its jobs, each for a torchrun of its own."
                )
            main()
            if failed:
                raise failed[0]
        except BaseException as error:
            if isinstance(error, SystemExit) or (end := ending(error, config_name)) is None:
                raise
            who = f"Process {parallel.rank()}: " if parallel.rank() > 0 else ""
            sys.stderr.write(f"{who}{end.sentence}\n")
            sys.exit(end.status)


_LAST_WORDS = (InterruptedRunError, ProcessLostError)


@contextmanager
def _terminating(failed: Sequence[BaseException]) -> Iterator[None]:
    """Let SIGTERM unwind the command as Ctrl-C does, so that files are closed and locks go.

    Launchers send it twice, and to the others when a process has died: a command that is ending,
    and about to say why, is let finish its sentence.

    Args:
        failed: Not empty once the command has failed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if not failed and not isinstance(sys.exception(), _LAST_WORDS):
            raise TerminatedError

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _explain(error: BaseException, config_name: str) -> str:
    """One sentence for an override that Hydra refused, with the valid names."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OUR_ERRORS):
            return str(cause)
        if match := re.search(r"is not in struct\s+full_key: (\S+)", str(cause)):
            return _unknown_key(match.group(1), config_name)
        if isinstance(cause, TypeError):  # a wrong argument of what `_target_` names
            return f"Expected arguments that the config's _target_ takes, got: {cause}."
        cause = cause.__cause__
    return " ".join(str(error).split())


def _unknown_key(key: str, config_name: str) -> str:
    """Name the keys that stand where `key` was looked for."""
    GlobalHydra.instance().clear()
    choices = [a for a in sys.argv[1:] if (CONFIGS / a.partition("=")[0]).is_dir()]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node = compose(config_name, overrides=choices)
    *parents, leaf = key.split(".")
    for name in parents:
        node = OmegaConf.select(node, name, default=None)
        if not isinstance(node, DictConfig):
            return f"Expected a config key, got {key!r}."
    valid = sorted(str(k) for k in node)
    close = difflib.get_close_matches(leaf, valid, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    where = ".".join(parents) or "the config"
    return f"Expected a key of {where} ({', '.join(valid)}), got {leaf!r}.{hint}"
