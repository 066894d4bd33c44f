"""A job that imports no torch and writes what a training run writes; max_steps says how it ends.

`main` is the sweep of such jobs, with the config of `runs.train`.
"""

import os
import signal
import sys
import time
from pathlib import Path

from flows.files import locked
from runs.status import LOCK, Status, write_status
from runs.sweeps import Swept

DONE, FAILS, DIES, WAITS, BAD_INPUT = 5, 13, 14, 15, 16


def job(overrides: list[str]) -> None:
    given = dict(override.split("=", 1) for override in overrides)
    assert given["hydra.mode"] == "RUN"
    folder, steps = Path(given["hydra.run.dir"].strip('"')), int(given["trainer.max_steps"])
    if steps == BAD_INPUT:
        sys.exit("Expected something else.")
    with locked(folder / LOCK):
        write_status(folder, Status("running"))
        with (folder / "starts").open("a") as file:
            file.write(f"{os.environ.get('OMP_NUM_THREADS')}\n")
        if steps == FAILS:
            why = "Expected a loss that is finite, got nan."
            write_status(folder, Status("failed", error=why, exit_status=1))
            sys.exit(why)
        first = not (folder / "again").exists()
        (folder / "again").touch()
        if steps == DIES and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if steps == WAITS and first:
            wait_for_a_signal(folder)
        write_status(folder, Status("done", step=steps))


def wait_for_a_signal(folder: Path) -> None:
    came: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: came.append(number))
    (folder / "waiting").touch()
    deadline = time.monotonic() + 120
    while not came and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # a signal that came twice would be seen
    why = f"Stopped by {[signal.Signals(number).name for number in came]}."
    write_status(folder, Status("queued", step=7, error=why, exit_status=130))
    sys.exit(130)


def main() -> None:
    from runs.cli import run_command

    run_command(Swept(None, "tests.runs.small_job"), "train")


if __name__ == "__main__":
    job(sys.argv[1:])
