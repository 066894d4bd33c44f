"""OpenMM Contexts in this process or in a pool of them, arrays in and arrays out.

A module of its own because every worker imports it, and none of them needs torch.
"""

import contextlib
import multiprocessing
import time
import weakref
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

Array = NDArray[np.float64]

# One thread a worker and sums in a fixed order: processes are the parallelism here, and a pool
# gives exactly what one process gives.
_PROPERTIES = {
    "CPU": {"Threads": "1", "DeterministicForces": "true"},
    "CUDA": {"DeterministicForces": "true"},
    "HIP": {"DeterministicForces": "true"},
}

_ENERGY = unit.kilojoule_per_mole
_FORCE = unit.kilojoule_per_mole / unit.nanometer


class Serial:
    """One OpenMM Context and the loop over frames."""

    def __init__(self, system: openmm.System, platform: str) -> None:
        # The integrator is never stepped: OpenMM wants one to create a Context.
        self.integrator = openmm.VerletIntegrator(0.001)
        self.context = openmm.Context(
            system,
            self.integrator,
            openmm.Platform.getPlatformByName(platform),
            _PROPERTIES.get(platform, {}),
        )

    def evaluate(self, frames: Array, forces_wanted: bool) -> tuple[Array, Array | None]:
        """Return energies [B] and, if wanted, forces [B, N, 3]; a refused frame is +inf and 0."""
        energies = np.full(len(frames), np.inf)
        forces = np.zeros(frames.shape) if forces_wanted else None
        for b, frame in enumerate(frames):
            if not np.isfinite(frame).all():
                continue
            try:
                self.context.setPositions(frame)
                state = self.context.getState(energy=True, forces=forces_wanted)
                energy = state.getPotentialEnergy().value_in_unit(_ENERGY)
                force = (
                    state.getForces(asNumpy=True).value_in_unit(_FORCE) if forces_wanted else None
                )
            except openmm.OpenMMException:
                continue
            if not np.isfinite(energy) or (force is not None and not np.isfinite(force).all()):
                continue
            energies[b] = energy
            if forces is not None:
                forces[b] = force
        return energies, forces


def _work(connection: Connection, system_xml: str, platform: str) -> None:
    """Answer requests until the other end of the pipe closes."""
    serial = Serial(openmm.XmlSerializer.deserialize(system_xml), platform)
    # The parent is gone, in whatever way, or Ctrl-C reached the whole process group.
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            frames, forces_wanted = connection.recv()
            connection.send(serial.evaluate(frames, forces_wanted))


class Pool:
    """Persistent worker processes, each with its own Context; one message per chunk of frames."""

    def __init__(self, system: openmm.System, platform: str, n_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        xml = openmm.XmlSerializer.serialize(system)
        self.workers: list[tuple[SpawnProcess, Connection]] = []
        self.broken = ""
        for k in range(n_workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, xml, platform), name=f"openmm-worker-{k}", daemon=True
            )
            process.start()
            # Only the worker may hold its end: then its death closes the pipe and is noticed.
            theirs.close()
            self.workers.append((process, ours))
        self._finalizer = weakref.finalize(self, _close, self.workers)

    def evaluate(self, frames: Array, forces_wanted: bool) -> tuple[Array, Array | None]:
        """As `Serial.evaluate`, on all workers at once; frame order is kept.

        Raises:
            RuntimeError: A worker died; the pool is then closed for good.
        """
        if self.broken:
            raise RuntimeError(self.broken)
        # Even an empty batch goes to one worker, so that shapes need no case of their own.
        chunks = np.array_split(frames, max(1, min(len(self.workers), len(frames))))
        try:
            replies = self._ask(chunks, forces_wanted)
        except BaseException:
            # Chunks still under way would be mistaken for the answers to the next call.
            self.broken = self.broken or (
                "Expected the last call of this OpenMMEnergy to have finished, got an "
                "interrupted one. Build a new OpenMMEnergy."
            )
            self._finalizer()
            raise
        energies = np.concatenate([energy for energy, _ in replies])
        if not forces_wanted:
            return energies, None
        return energies, np.concatenate([force for _, force in replies if force is not None])

    def _ask(self, chunks: list[Array], forces_wanted: bool) -> list[tuple[Array, Array | None]]:
        """Send chunk k to worker k; return the answers in the same order."""
        replies: list[tuple[Array, Array | None]] = [(np.empty(0), None)] * len(chunks)
        pending: dict[Any, int] = {}
        for k, chunk in enumerate(chunks):
            try:
                self.workers[k][1].send((chunk, forces_wanted))
            except OSError as error:
                raise self._dead(k) from error
            pending[self.workers[k][1]] = k
        while pending:
            for ready in wait(list(pending)):
                k = pending.pop(ready)
                try:
                    replies[k] = self.workers[k][1].recv()
                except (EOFError, OSError) as error:  # nothing, or half an answer
                    raise self._dead(k) from error
        return replies

    def _dead(self, k: int) -> RuntimeError:
        process = self.workers[k][0]
        process.join(timeout=1.0)  # for its exit code
        self.broken = (
            f"Expected every OpenMM worker to be alive, got {process.name} (pid {process.pid}) "
            f"dead with exit code {process.exitcode}. Build a new OpenMMEnergy."
        )
        return RuntimeError(self.broken)


def _close(workers: list[tuple[SpawnProcess, Connection]]) -> None:
    for _, connection in workers:
        connection.close()
    # Who waits for frames ends by itself; who is at work has nothing to lose.
    deadline = time.monotonic() + 0.5
    for process, _ in workers:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()
