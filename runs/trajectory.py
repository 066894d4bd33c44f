"""Samples as files other programs open: `samples.xtc` (dcd, h5) with `topology.pdb`, one PDB."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import mdtraj
import numpy as np
import openmm.app
from mdtraj.formats import DCDTrajectoryFile, HDF5TrajectoryFile, XTCTrajectoryFile
from numpy.typing import NDArray
from torch import Tensor

from energies.errors import EnergyInputError
from flows.files import replacing

Frames = Tensor | NDArray[np.floating]


class TrajectoryFiles(NamedTuple):
    """Where a trajectory was written."""

    frames: Path
    pdb: Path


def _write_xtc(file: Any, frames: NDArray[np.float32], start: int) -> None:
    # No box, said explicitly: XTC always stores one, and mdtraj documents a cube of 1 nm as its
    # default, in which a minimum image would fold the molecule.
    n = len(frames)
    steps = np.arange(start, start + n)
    box = np.zeros((n, 3, 3), dtype=np.float32)
    file.write(frames, steps.astype(np.float32), steps.astype(np.int32), box)


def _write_dcd(file: Any, frames: NDArray[np.float32], start: int) -> None:
    file.write(10 * frames)  # DCD is in Å


def _open_h5(name: str, atoms: mdtraj.Topology) -> Any:
    file = HDF5TrajectoryFile(name, "w")
    file.topology = atoms
    return file


def _write_h5(file: Any, frames: NDArray[np.float32], start: int) -> None:
    file.write(frames, time=np.arange(start, start + len(frames), dtype=np.float32))


class _Format(NamedTuple):
    open: Callable[[str, mdtraj.Topology], Any]
    write: Callable[[Any, NDArray[np.float32], int], None]


FORMATS = {
    "xtc": _Format(lambda name, atoms: XTCTrajectoryFile(name, "w"), _write_xtc),
    "dcd": _Format(lambda name, atoms: DCDTrajectoryFile(name, "w"), _write_dcd),
    "h5": _Format(_open_h5, _write_h5),
}
"""How frames are written: XTC keeps 0.001 nm, DCD and HDF5 all of single precision."""


def check_format(name: str) -> None:
    """Raise EnergyInputError unless trajectories of this format can be written."""
    if name not in FORMATS:
        raise EnergyInputError(
            f"Expected a trajectory format out of {', '.join(FORMATS)}, got {name!r}."
        )
    if name == "h5" and find_spec("tables") is None:
        raise EnergyInputError(
            "Expected the package tables for trajectories in HDF5, got none: "
            "`pip install tables`, or choose xtc or dcd."
        )


def write_trajectory(
    folder: Path | str,
    xyz: Frames | Iterable[Frames],
    topology: openmm.app.Topology,
    *,
    chunk_size: int = 10_000,
    file_format: str = "xtc",
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
        file_format: One of `FORMATS`; also the suffix of the name.

    Returns:
        The paths of both files. The PDB holds the first frame.

    Raises:
        EnergyInputError: A wrong shape, a position that is not finite, no frame at all, or a
            format that cannot be written.
        OSError: The disk does not take it all.
    """
    check_format(file_format)
    if chunk_size < 1:
        raise EnergyInputError(f"Expected chunk_size >= 1, got {chunk_size}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = TrajectoryFiles(folder / f"samples.{file_format}", folder / "topology.pdb")
    atoms = mdtraj.Topology.from_openmm(topology)
    style = FORMATS[file_format]
    n_frames = 0
    with replacing(paths.frames) as name, replacing(paths.pdb) as pdb_name:
        with style.open(str(name), atoms) as file:
            for frames in _chunks(xyz, atoms.n_atoms, chunk_size):
                if n_frames == 0:
                    mdtraj.Trajectory(frames[:1], atoms).save_pdb(str(pdb_name))
                with _as_os_error(paths.frames):
                    style.write(file, frames, n_frames)
                n_frames += len(frames)
        if n_frames == 0:
            raise EnergyInputError("Expected xyz with at least one frame, got none.")
        with _as_os_error(paths.frames), mdtraj.open(str(name)) as file:
            file.seek(n_frames - 1)  # what was lost while closing is missed by no writer
            if len(file.read(1)[0]) != 1:
                raise EOFError
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


@contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """Give one name to what the formats raise when a disk is full: whatever their libraries do."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{path.name} cannot be written whole; is the disk full?") from error


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
