"""Samples as files that other programs open: `samples.xtc` with `topology.pdb`, or one PDB."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import mdtraj
import numpy as np
import openmm.app
from mdtraj.formats import XTCTrajectoryFile
from numpy.typing import NDArray
from torch import Tensor

from energies.errors import EnergyInputError
from flows.files import replacing

Frames = Tensor | NDArray[np.floating]


class TrajectoryFiles(NamedTuple):
    """Where a trajectory was written."""

    xtc: Path
    pdb: Path


def write_trajectory(
    folder: Path | str,
    xyz: Frames | Iterable[Frames],
    topology: openmm.app.Topology,
    *,
    chunk_size: int = 10_000,
) -> TrajectoryFiles:
    """Write `samples.xtc` and `topology.pdb` into `folder`.

    Open them with ``mdtraj.load("samples.xtc", top="topology.pdb")``. XTC keeps positions to
    0.001 nm: take energies from the samples, not from the trajectory. The frames carry no
    periodic box. A file appears under its name only once it is complete.

    Args:
        folder: Where to write; made if missing. Older files of these names are replaced.
        xyz: Positions, nm, [n, N, 3], or an iterable of such pieces, which are written one by
            one so that they never have to be in memory together.
        topology: The N atoms, in the order of `xyz`.
        chunk_size: Frames converted at a time.

    Returns:
        The paths of both files. The PDB holds the first frame.

    Raises:
        EnergyInputError: A wrong shape, a position that is not finite, or no frame at all.
    """
    if chunk_size < 1:
        raise EnergyInputError(f"Expected chunk_size >= 1, got {chunk_size}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = TrajectoryFiles(folder / "samples.xtc", folder / "topology.pdb")
    atoms = mdtraj.Topology.from_openmm(topology)
    n_frames = 0
    with replacing(paths.xtc) as xtc_name, replacing(paths.pdb) as pdb_name:
        with XTCTrajectoryFile(str(xtc_name), "w") as xtc:
            for frames in _chunks(xyz, atoms.n_atoms, chunk_size):
                if n_frames == 0:
                    mdtraj.Trajectory(frames[:1], atoms).save_pdb(str(pdb_name))
                n = len(frames)
                steps = np.arange(n_frames, n_frames + n)
                # No box, said explicitly: XTC always stores one, and mdtraj documents a cube of
                # 1 nm as its default, in which a minimum image would fold the molecule.
                box = np.zeros((n, 3, 3), dtype=np.float32)
                xtc.write(frames, steps.astype(np.float32), steps.astype(np.int32), box)
                n_frames += n
        if n_frames == 0:
            raise EnergyInputError("Expected xyz with at least one frame, got none.")
    return paths


def write_pdb(path: Path, xyz: Frames, topology: openmm.app.Topology) -> None:
    """Write a few structures as the models of one PDB file, whole or not at all.

    Args:
        path: The file; an older one of this name is replaced.
        xyz: Positions, nm, [n, N, 3].
        topology: The N atoms, in the order of `xyz`.

    Raises:
        EnergyInputError: A wrong shape, or a position that is not finite.
    """
    atoms = mdtraj.Topology.from_openmm(topology)
    frames = np.concatenate([*_chunks(xyz, atoms.n_atoms, len(xyz))])
    with replacing(path) as name:
        mdtraj.Trajectory(frames, atoms).save_pdb(str(name))


def _chunks(
    xyz: Frames | Iterable[Frames], n_atoms: int, chunk_size: int
) -> Iterator[NDArray[np.float32]]:
    """Yield frames as float32 [<= chunk_size, N, 3], checked."""
    pieces = (xyz,) if isinstance(xyz, Tensor | np.ndarray) else xyz
    for piece in pieces:
        if piece.ndim != 3 or tuple(piece.shape[1:]) != (n_atoms, 3):
            raise EnergyInputError(
                f"Expected xyz of shape [n, {n_atoms}, 3], got {list(piece.shape)}."
            )
        for start in range(0, len(piece), chunk_size):
            part = piece[start : start + chunk_size]
            if isinstance(part, Tensor):
                part = part.detach().cpu().numpy()
            frames = np.ascontiguousarray(part, dtype=np.float32)
            if not math.isfinite(float(frames.sum())) and not np.isfinite(frames).all():
                bad = np.flatnonzero(~np.isfinite(frames).all(axis=(1, 2)))
                raise EnergyInputError(
                    f"Expected finite xyz, got {len(bad)} frames that are not, "
                    f"the first at row {start + int(bad[0])}."
                )
            yield frames
