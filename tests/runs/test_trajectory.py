"""Trajectories are read back with mdtraj."""

import resource
from pathlib import Path

import mdtraj
import numpy as np
import openmm.app
import pytest
import torch

from energies.errors import EnergyInputError
from runs.trajectory import write_trajectory

XTC_PRECISION = 0.5e-3 + 1e-6


def glycine() -> openmm.app.Topology:
    """N, CA and C of one residue."""
    topology = openmm.app.Topology()
    residue = topology.addResidue("GLY", topology.addChain())
    for name, symbol in (("N", "N"), ("CA", "C"), ("C", "C")):
        topology.addAtom(name, openmm.app.Element.getBySymbol(symbol), residue)
    atoms = list(topology.atoms())
    topology.addBond(atoms[0], atoms[1])
    topology.addBond(atoms[1], atoms[2])
    return topology


def frames(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_round_trip_through_mdtraj(tmp_path: Path) -> None:
    xyz = frames(25)
    files = write_trajectory(tmp_path / "new", xyz, glycine(), chunk_size=10)
    assert (files.frames.name, files.pdb.name) == ("samples.xtc", "topology.pdb")
    loaded = mdtraj.load(str(files.frames), top=str(files.pdb))
    np.testing.assert_allclose(loaded.xyz, xyz.numpy(), atol=XTC_PRECISION)
    assert [a.name for a in loaded.topology.atoms] == ["N", "CA", "C"]
    assert loaded.topology.residue(0).name == "GLY"
    np.testing.assert_array_equal(loaded.time, np.arange(25))
    first = mdtraj.load(str(files.pdb))
    np.testing.assert_allclose(first.xyz[0], xyz[0].numpy(), atol=XTC_PRECISION)


@pytest.mark.parametrize("file_format", ["dcd", "h5"])
def test_other_formats_keep_single_precision(file_format: str, tmp_path: Path) -> None:
    if file_format == "h5":
        pytest.importorskip("tables", reason="HDF5 needs PyTables, which is optional")
    xyz = frames(25)
    files = write_trajectory(tmp_path, xyz, glycine(), chunk_size=10, file_format=file_format)
    assert files.frames.name == f"samples.{file_format}"
    loaded = mdtraj.load(str(files.frames), top=str(files.pdb))
    np.testing.assert_allclose(loaded.xyz, xyz.numpy(), atol=1e-6)
    assert loaded.unitcell_lengths is None


def test_formats_that_cannot_be_written_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnergyInputError, match="format out of xtc, dcd, h5, got 'pdb'"):
        write_trajectory(tmp_path, frames(2), glycine(), file_format="pdb")
    monkeypatch.setattr("runs.trajectory.find_spec", lambda name: None)
    with pytest.raises(EnergyInputError, match="Expected the package tables for trajectories in"):
        write_trajectory(tmp_path, frames(2), glycine(), file_format="h5")
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_periodic_box(tmp_path: Path) -> None:
    """A box of 1 nm would fold distances above 0.5 nm."""
    xyz = torch.zeros(1, 3, 3)
    xyz[0, 2, 0] = 0.8
    files = write_trajectory(tmp_path, xyz, glycine())
    loaded = mdtraj.load(str(files.frames), top=str(files.pdb))
    assert loaded.unitcell_lengths is None
    assert mdtraj.compute_distances(loaded, [[0, 2]])[0, 0] == pytest.approx(0.8, abs=1e-3)


def test_pieces_give_the_same_file_as_the_whole(tmp_path: Path) -> None:
    xyz = frames(23)
    whole = write_trajectory(tmp_path / "a", xyz, glycine())
    pieces = write_trajectory(
        tmp_path / "b", (p.numpy() for p in xyz.split(5)), glycine(), chunk_size=2
    )
    assert pieces.frames.read_bytes() == whole.frames.read_bytes()
    assert pieces.pdb.read_bytes() == whole.pdb.read_bytes()


def test_older_files_are_replaced(tmp_path: Path) -> None:
    write_trajectory(tmp_path, frames(9), glycine())
    files = write_trajectory(tmp_path, frames(4), glycine())
    assert mdtraj.load(str(files.frames), top=str(files.pdb)).n_frames == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.xtc", "topology.pdb"]


def test_failure_leaves_the_older_files(tmp_path: Path) -> None:
    files = write_trajectory(tmp_path, frames(4), glycine())
    before = files.frames.read_bytes(), files.pdb.read_bytes()
    bad = frames(30)
    bad[17, 1, 2] = torch.nan
    with pytest.raises(EnergyInputError, match="got 1 frames that are not, the first at row 17"):
        write_trajectory(tmp_path, bad, glycine(), chunk_size=5)
    assert (files.frames.read_bytes(), files.pdb.read_bytes()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.xtc", "topology.pdb"]


@pytest.mark.parametrize("file_format", ["xtc", "dcd"])
def test_disk_full_leaves_nothing(file_format: str, tmp_path: Path) -> None:
    """Wherever it strikes, up to the last bytes, which are written while closing."""
    whole = write_trajectory(tmp_path / "a", frames(3000), glycine(), file_format=file_format)
    size = whole.frames.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (2_000, size // 2, size - 4):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="cannot be written whole; is the disk full"):
                write_trajectory(tmp_path / "b", frames(3000), glycine(), file_format=file_format)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list((tmp_path / "b").iterdir()) == []


def test_bad_arguments_raise(tmp_path: Path) -> None:
    with pytest.raises(EnergyInputError, match=r"Expected xyz of shape \[n, 3, 3\], got \[2, 4"):
        write_trajectory(tmp_path, torch.zeros(2, 4, 3), glycine())
    with pytest.raises(EnergyInputError, match="Expected xyz with at least one frame"):
        write_trajectory(tmp_path, torch.zeros(0, 3, 3), glycine())
    with pytest.raises(EnergyInputError, match="Expected chunk_size >= 1, got 0"):
        write_trajectory(tmp_path, frames(2), glycine(), chunk_size=0)
    assert list(tmp_path.iterdir()) == []
