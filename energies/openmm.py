"""The reference energy: OpenMM itself, called frame by frame, differentiable once.

Forces come from OpenMM, so there is no second derivative; `energies.forcefield` has one.
"""

import multiprocessing
import weakref
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, ClassVar

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import unit
from torch import Tensor

from energies.base import Energy
from energies.errors import EnergyInputError

Array = NDArray[np.float64]

_ENERGY = unit.kilojoule_per_mole
_FORCE = unit.kilojoule_per_mole / unit.nanometer


class _Serial:
    """One OpenMM Context and the loop over frames."""

    def __init__(self, system: openmm.System, platform: str) -> None:
        # The integrator is never stepped: OpenMM wants one to create a Context.
        self.integrator = openmm.VerletIntegrator(0.001)
        self.context = openmm.Context(
            system, self.integrator, openmm.Platform.getPlatformByName(platform)
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
    serial = _Serial(openmm.XmlSerializer.deserialize(system_xml), platform)
    while True:
        try:
            frames, forces_wanted = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        connection.send(serial.evaluate(frames, forces_wanted))


class _Pool:
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
        """As `_Serial.evaluate`, on all workers at once; frame order is kept.

        Raises:
            RuntimeError: A worker died; the pool is then closed for good.
        """
        if self.broken:
            raise RuntimeError(self.broken)
        # Even an empty batch goes to one worker, so that shapes need no case of their own.
        chunks = np.array_split(frames, max(1, min(len(self.workers), len(frames))))
        replies: list[tuple[Array, Array | None]] = [(np.empty(0), None)] * len(chunks)
        pending: dict[Any, int] = {}
        for k, chunk in enumerate(chunks):
            try:
                self.workers[k][1].send((chunk, forces_wanted))
            except (BrokenPipeError, ConnectionResetError) as error:
                raise self._dead(k) from error
            pending[self.workers[k][1]] = k
        while pending:
            for ready in wait(list(pending)):
                k = pending.pop(ready)
                try:
                    replies[k] = self.workers[k][1].recv()
                except (EOFError, ConnectionResetError) as error:
                    raise self._dead(k) from error
        energies = np.concatenate([energy for energy, _ in replies])
        if not forces_wanted:
            return energies, None
        return energies, np.concatenate([force for _, force in replies if force is not None])

    def _dead(self, k: int) -> RuntimeError:
        process = self.workers[k][0]
        process.join(timeout=1.0)
        # Chunks still under way in other workers would be mistaken for the next call's answers.
        self.broken = (
            f"Expected every OpenMM worker to be alive, got {process.name} (pid {process.pid}) "
            f"dead with exit code {process.exitcode}. Build a new OpenMMEnergy."
        )
        self._finalizer()
        return RuntimeError(self.broken)


def _close(workers: list[tuple[SpawnProcess, Connection]]) -> None:
    for _, connection in workers:
        connection.close()
    for process, _ in workers:
        process.join(timeout=0.5)
        if process.is_alive():
            process.terminate()
            process.join(timeout=1.0)


class _Forces(torch.autograd.Function):
    """Hand out known forces, and raise when somebody asks how they change with xyz."""

    @staticmethod
    def forward(ctx: Any, xyz: Tensor, forces: Tensor) -> Tensor:
        return forces.view_as(forces)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError(
            "Expected at most one derivative of OpenMMEnergy, got a second one. "
            "ForceField.from_openmm(system) can be differentiated twice."
        )


class _Potential(torch.autograd.Function):
    """U(xyz) [B] for xyz [B, N, 3]; the forces are computed with it and kept for backward."""

    @staticmethod
    def forward(ctx: Any, xyz: Tensor, backend: _Serial | _Pool) -> Tensor:
        frames = xyz.detach().to("cpu", torch.float64).numpy()
        energies, forces = backend.evaluate(frames, ctx.needs_input_grad[0])
        if forces is not None:
            ctx.save_for_backward(xyz, torch.from_numpy(forces).to(xyz))
        return torch.from_numpy(energies).to(xyz.device)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        xyz, known = ctx.saved_tensors
        # Without _Forces the second derivative would be a silent zero.
        forces = _Forces.apply(xyz, known)  # type: ignore[no-untyped-call]
        return -forces * grad_output.to(forces)[:, None, None], None


class OpenMMEnergy(Energy):
    """The potential energy as OpenMM computes it.

    Positions of any dtype and device are evaluated in float64 on the host. The forces are asked
    of OpenMM only when `xyz` requires a gradient. There is no second derivative: differentiating
    the gradient raises; `ForceField.from_openmm(system)` can be differentiated twice.

    Example:
        >>> energy = OpenMMEnergy(molecule.system)  # doctest: +SKIP
        >>> energy.potential(torch.as_tensor(molecule.positions))  # doctest: +SKIP

    Args:
        system: The OpenMM System; it is copied, later changes have no effect.
        platform: OpenMM platform. "Reference" is double precision and the oracle; "CPU" is
            single precision, and so is "CUDA" by default.
        n_workers: Number of processes. 1 computes in this process. More give exactly the same
            numbers; since they are spawned, a script must guard its entry point with
            `if __name__ == "__main__"`.

    Raises:
        EnergyInputError: `platform` is not installed, `n_workers` is not positive.
    """

    compilable: ClassVar[bool] = False

    def __init__(
        self, system: openmm.System, *, platform: str = "Reference", n_workers: int = 1
    ) -> None:
        names = [
            openmm.Platform.getPlatform(k).getName()
            for k in range(openmm.Platform.getNumPlatforms())
        ]
        if platform not in names:
            raise EnergyInputError(f"Expected platform to be one of {names}, got {platform!r}.")
        if n_workers < 1:
            raise EnergyInputError(f"Expected n_workers >= 1, got {n_workers}.")
        super().__init__(n_atoms=system.getNumParticles())
        self._backend: _Serial | _Pool = (
            _Serial(system, platform) if n_workers == 1 else _Pool(system, platform, n_workers)
        )

    def _potential(self, xyz: Tensor) -> Tensor:
        frames = xyz.reshape(-1, self.n_atoms, 3)
        energies: Tensor = _Potential.apply(frames, self._backend)  # type: ignore[no-untyped-call]
        return energies.reshape(xyz.shape[:-2])
