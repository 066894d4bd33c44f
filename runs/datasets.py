"""Training points from trajectories of other programs, and from our own simulations."""

from pathlib import Path

import mdtraj

from energies.reference import read_reference
from flows.proposals import Points
from runs.cli import CommandError


class Trajectory(Points):
    """The frames of a trajectory that mdtraj reads.

    Args:
        path: The trajectory.
        topology: A file with the topology, such as a PDB.
        temperature: T of the frames, kelvin, if they are unbiased samples of this very energy;
            without it nothing is known of their density, and losses that need weights refuse them.
        stride: Take every so many frames.

    Raises:
        CommandError: A file is missing or cannot be read.
    """

    def __init__(
        self, path: str, topology: str, *, temperature: float | None = None, stride: int = 1
    ) -> None:
        for name, file in (("path", path), ("topology", topology)):
            if not Path(file).is_file():
                raise CommandError(f"Expected {name} of the trajectory to be a file, got {file}.")
        if stride < 1:
            raise CommandError(f"Expected stride >= 1, got {stride}.")
        try:
            frames = mdtraj.load(path, top=topology, stride=stride)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise CommandError(f"Expected a trajectory at {path}, got: {error}.") from error
        super().__init__({"xyz": frames.xyz}, temperature=temperature, source=path)


class ReferenceFrames(Points):
    """The frames of a reference file, at its lowest temperature.

    Args:
        path: The file, or the name of one that this package ships, such as "aldp.npz".
        temperature: T of the frames, kelvin, if they are unbiased samples of this very energy.

    Raises:
        EnergyInputError: It is missing, damaged, or another kind of file.
    """

    def __init__(self, path: str, *, temperature: float | None = None) -> None:
        super().__init__(
            {"xyz": read_reference(path).xyz.numpy()}, temperature=temperature, source=path
        )
