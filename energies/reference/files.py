"""Small reference files: maps of torsions and a few thousand frames, in less than a megabyte."""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from energies.errors import EnergyInputError


class Reference(NamedTuple):
    """What a reference file holds.

    Attributes:
        temperatures: kelvin, float64 [K]; the first is the one aimed at.
        counts: Residue -> visits on a (φ, ψ) grid at each temperature, int64 [K, bins, bins].
        density: Residue -> density at the first temperature from the samples of all of them,
            rad⁻², float64 [bins, bins].
        xyz: Frames at the first temperature, nm, float64 [n, N, 3], centred on the origin.
        diagnostics: As in diagnostics.json: populations with errors, settings, evaluations.
    """

    temperatures: Tensor
    counts: dict[str, Tensor]
    density: dict[str, Tensor]
    xyz: Tensor
    diagnostics: dict[str, Any]


def pack_reference(reference: Reference) -> dict[str, Any]:
    """Return arrays for `numpy.savez_compressed` that `read_reference` understands.

    Positions become 16-bit integers, in a unit of about 2e-5 nm for a small molecule: an error of
    0.01 kJ/mol in the energy, a fortieth of what 16-bit floating point would give.

    Args:
        reference: To be written.
    """
    xyz = reference.xyz.to(torch.float64)
    xyz = xyz - xyz.mean(-2, keepdim=True)
    unit = float(xyz.abs().max()) / np.iinfo(np.int16).max
    return {
        "temperatures": reference.temperatures.numpy(),
        "xyz": (xyz / unit).round().to(torch.int16).numpy(),
        "xyz_unit": np.array(unit),
        "diagnostics": np.array(json.dumps(reference.diagnostics)),
        **{f"counts_{k}": v.to(torch.int32).numpy() for k, v in reference.counts.items()},
        **{f"density_{k}": v.to(torch.float32).numpy() for k, v in reference.density.items()},
    }


def read_reference(path: Path | str) -> Reference:
    """Read a reference file, nothing but numbers and text.

    Args:
        path: The file.

    Raises:
        EnergyInputError: It is missing, cut short, or another kind of file.
    """
    try:
        # Opened here: a file that numpy finds broken would stay open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        xyz = torch.from_numpy(arrays["xyz"]).to(torch.float64) * float(arrays["xyz_unit"])
        return Reference(
            torch.from_numpy(arrays["temperatures"]),
            _residues(arrays, "counts_", torch.int64),
            _residues(arrays, "density_", torch.float64),
            xyz,
            json.loads(str(arrays["diagnostics"])),
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise EnergyInputError(
            f"Expected a reference file at {path}, got one that cannot be read: {error}."
        ) from error


def _residues(arrays: dict[str, Any], prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(array).to(dtype)
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
