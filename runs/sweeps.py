"""Jobs of a sweep: each a process of its own, started where it is missing, by any launcher.

A job is the command `python -m runs.train <overrides> hydra.run.dir=<folder>`, whether
Hydra's basic launcher, joblib or submitit starts it here, or a job array of a scheduler the line
that `python -m runs.jobs` printed. So a job that dies takes no other with it, memory and compiled
code of one do not pile up for the next, and whoever starts them needs no torch.
"""

import ctypes
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runs import resolvers
from runs.errors import CommandError
from runs.results import leaves, of_run, read_leaves
from runs.status import Status, read_status, write_status

log = logging.getLogger(__name__)

resolvers.register()  # launchers import this module to name the folder of a job


class Swept:
    """A task that runs here when asked for once, and in a process for each job of a sweep.

    Args:
        task: Receives the composed config.
        module: What `python -m` runs for it.
    """

    def __init__(self, task: Callable[[DictConfig], Any] | None, module: str) -> None:
        self.task, self.module = task, module

    def __call__(self, config: DictConfig) -> None:
        """Run it."""
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            run_job(self.module, config)
        elif self.task is not None:
            self.task(config)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the task behind, and torch with it, where a launcher sends this elsewhere."""
        return Swept, (None, self.module)


def run_job(module: str, config: DictConfig) -> None:
    """Run the current job of a sweep unless it is done.

    A job that was interrupted or killed goes on from its checkpoint; one that failed starts anew.

    Args:
        module: What `python -m` runs.
        config: Of the job.

    Raises:
        CommandError: It failed, was stopped, runs elsewhere, or is done with another config.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    before = read_status(folder)
    if not wanted(folder, config):
        log.info("done before: %s", folder)
        return
    if before is not None and _failed_by_itself(before):
        log.info("failed before, starting anew: %s", folder)
        _empty(folder)
    status = _run(job_command(module))
    if status == 0:
        return
    after = read_status(folder)
    if status > 0 and (after is None or after == before):  # it ended before it could say why
        why = f"It ended with exit status {status} before it trained; its words are in the log."
        after = write_status(folder, Status("failed", error=why, exit_status=status))
    why = (after and after.error) or f"exit status {status}"
    raise CommandError(
        f"{folder}: {why}\n`python -m runs.summary {_shown(Path(HydraConfig.get().sweep.dir))}` "
        "lists all jobs. The same command starts again what is missing or failed."
    )


def wanted(folder: Path, config: DictConfig) -> bool:
    """Return whether a job has yet to be run.

    Args:
        folder: Of the job.
        config: Of the job.

    Raises:
        CommandError: It runs elsewhere, or it is done or begun with another config.
    """
    status = read_status(folder)
    if status is None or _failed_by_itself(status):
        return True
    if status.state == "running":
        raise CommandError(f"Expected a job that does not run already, got {folder}.")
    if differing := _differing(folder / "config.yaml", config):
        raise CommandError(
            f"Expected the job in {folder} to be configured as when it was started, got another "
            f"{', '.join(differing)}. Another hydra.sweep.dir=<folder> keeps both."
        )
    return status.state != "done"


def job_command(module: str) -> list[str]:
    """Return the command that runs the current job of a sweep, wherever it is started."""
    hydra = HydraConfig.get()
    folder = os.path.join(hydra.sweep.dir, hydra.sweep.subdir)
    into = ["hydra.mode=RUN", f"hydra.run.dir={_quoted(folder)}"]
    return [sys.executable, "-m", module, *hydra.overrides.task, *into]


def print_job(module: str, config: DictConfig) -> None:
    """Print the command of the current job unless it is done."""
    if wanted(Path(HydraConfig.get().runtime.output_dir), config):
        sys.stdout.write(f"{shlex.join(job_command(module))}\n")


class Queue(Callback):
    """Puts down every job of a sweep as queued before the first one starts."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Write status.json of the jobs that have none."""
        sweep = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        if not isinstance(sweep, dict) or "job_folder" not in sweep["subdir"]:
            return  # the user's own names, which only a job knows
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        asked = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
        overrides = parser.parse_overrides([*asked, *config.hydra.overrides.task])
        for batch in BasicSweeper.split_arguments(overrides, None):
            for job in batch:
                folder = Path(config.hydra.sweep.dir) / resolvers.job_folder(job)
                if read_status(folder) is None:
                    write_status(folder, Status("queued"))


def _failed_by_itself(status: Status) -> bool:
    """Whether it ended with an error, rather than by a signal that let it say nothing."""
    return status.state in ("failed", "nan") and status.exit_status is not None


def _differing(file: Path, config: DictConfig) -> list[str]:
    """Return up to three keys whose values differ between a stored config and this one."""
    if not file.is_file():
        return []
    then = of_run(read_leaves(file))
    now = of_run(leaves(OmegaConf.to_container(config, resolve=True)))
    keys = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k))
    if now["start"] is not None:  # which brings its own flow
        keys = [k for k in keys if not k.startswith("flow.")]
    return keys[:3]


def _empty(folder: Path) -> None:
    """Remove what a failed attempt left, but for its log, which the next one goes on with."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != ".log":
            path.unlink()


def _run(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit status; signals reach it once, then us."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_stop_when_orphaned
    )
    with _passing_signals_to(process) as came:
        status = process.wait()
    for number in came:
        signal.raise_signal(number)
    return status


def _stop_when_orphaned() -> None:
    """Ask the system, in the new process, for SIGTERM once the process that started it is gone.

    A sweep that is killed has no time to tell its jobs. Elsewhere than on Linux they go on.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # found before the fork


@contextmanager
def _passing_signals_to(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Tell a process to stop when we are told; yields the signals that came.

    The process is in a group of its own, so that Ctrl-C in a terminal reaches it through here
    alone: a second signal would be taken for impatience. SIGUSR1 and SIGUSR2 are what schedulers
    send ahead of a time limit. What is ignored, as SIGINT is behind `nohup`, stays so.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in heard}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _quoted(text: str) -> str:
    """Return text as a string of Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _shown(path: Path) -> str:
    return shlex.quote(str(path))
