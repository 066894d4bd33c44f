"""Processes that are killed at a moment drawn at random, as by a power cut."""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable


def fork(task: Callable[[], object]) -> int:
    """Start `task` in a process of its own, which shares what is imported; return its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            task()
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:  # noqa: BLE001  # nothing may come back into the test
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def wait(pid: int) -> int:
    """Return the exit status of a process, that of a shell: 128 + n for signal n."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def kill_after(pid: int, seconds: float) -> bool:
    """Kill -9 after so much of the process's own CPU time; False if it had ended before."""
    ticks = os.sysconf("SC_CLK_TCK")
    while True:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            _, _, rest = file.read().rpartition(")")
        state, *figures = rest.split()
        if state == "Z":
            return False
        if (int(figures[10]) + int(figures[11])) / ticks >= seconds:
            os.kill(pid, signal.SIGKILL)
            return True
        time.sleep(0.002)


def killed_often(
    task: Callable[[], object], n: int, *, seconds: float, seed: int, started: float = 0.0
) -> int:
    """Start `task` again and again, kill it `n` times, then let it end; return how often it was.

    Args:
        task: Goes on where it was stopped.
        n: Number of kills.
        seconds: CPU time after which it is killed, at most; drawn evenly.
        seed: Of the moments.
        started: CPU time that it takes to start, before which nobody kills it.
    """
    moments = random.Random(seed)
    kills = 0
    while kills < n:
        pid = fork(task)
        was_killed = kill_after(pid, started + moments.uniform(0.0, seconds))
        status = wait(pid)
        if not was_killed:
            assert status == 0
            return kills
        kills += 1
    assert wait(fork(task)) == 0
    return kills
