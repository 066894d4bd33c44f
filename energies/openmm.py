"""The reference energy: OpenMM itself, called frame by frame, differentiable once.

Forces come from OpenMM, so there is no second derivative; `energies.forcefield` has one.
"""

from typing import ClassVar

import openmm
import torch
from torch import Tensor

from energies.base import Energy
from energies.contexts import Pool, Serial
from energies.errors import EnergyInputError
from energies.known import attach


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
        platform: OpenMM platform. "Reference" is double precision and the oracle; "CPU", on one
            thread a worker, is single precision, and so is "CUDA" where OpenMM was installed
            with it.
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
        self._backend: Serial | Pool = (
            Serial(system, platform) if n_workers == 1 else Pool(system, platform, n_workers)
        )

    def _potential(self, xyz: Tensor) -> Tensor:
        frames = xyz.reshape(-1, self.n_atoms, 3)
        wanted = frames.requires_grad and torch.is_grad_enabled()
        known = frames.detach().to("cpu", torch.float64).numpy()
        found, forces = self._backend.evaluate(known, wanted)
        energies = torch.from_numpy(found).to(xyz.device)
        if forces is not None:
            (energies,) = attach(frames, [energies], [-torch.from_numpy(forces).to(xyz)])
        return energies.reshape(xyz.shape[:-2])
