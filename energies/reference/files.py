"""Small reference files: maps of torsions and a few thousand frames, in less than a megabyte."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from energies.errors import EnergyInputError
from energies.shipped import located

_FORMAT = "boltzflow reference 1"


class Population(NamedTuple):
    """Share of a basin at the temperature aimed at, with its standard error; NaN if unknown."""

    value: float
    se: float


class Reference(NamedTuple):
    """What a reference file holds.

    Example:
        >>> reference = read_reference("aldp.npz")  # doctest: +SKIP
        >>> reference.counts["2"][0].shape, reference.populations["alpha_L"]  # doctest: +SKIP

    Attributes:
        temperatures: kelvin, float64 [K]; the first is the one aimed at.
        counts: Residue -> visits on a (φ, ψ) grid of [-π, π)² at each temperature, the first
            index that of φ, int64 [K, bins, bins]; nothing for a system without φ and ψ.
        density: Residue -> density at the first temperature from the samples of all of them,
            rad⁻², float64 [bins, bins].
        xyz: Frames at the first temperature, nm, float64 [n, N, d]; those of a molecule are
            centred on the origin.
        potential: U of the frames as they were before rounding, kJ/mol, float64 [n].
        diagnostics: As in diagnostics.json: averages with errors, settings, evaluations.
    """

    temperatures: Tensor
    counts: dict[str, Tensor]
    density: dict[str, Tensor]
    xyz: Tensor
    potential: Tensor
    diagnostics: dict[str, Any]

    @property
    def populations(self) -> dict[str, Population]:
        """Basin -> its population, from the samples of all temperatures."""
        found = self.diagnostics["averages"].get("populations", {})
        return {
            name: Population(*(np.nan if p["all"][k] is None else p["all"][k] for k in _FIELDS))
            for name, p in found.items()
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it comes from: system, command, config, versions, lengths, evaluations."""
        return {name: self.diagnostics[name] for name in _PROVENANCE}


_FIELDS = Population._fields
_PROVENANCE = (
    "system", "n_atoms", "n_evals", "n_replicas", "n_chains", "n_steps", "ps_per_replica",
    "origin",
)  # fmt: skip


def pack_reference(reference: Reference) -> dict[str, Any]:
    """Return arrays for `numpy.savez_compressed` that `read_reference` understands.

    Positions become 16-bit integers, in a unit of about 2e-5 nm for a small molecule: an error of
    0.01 kJ/mol in the energy, a fortieth of what 16-bit floating point would give.

    Args:
        reference: To be written.
    """
    xyz = reference.xyz.to(torch.float64)
    unit = float(xyz.abs().max()) / np.iinfo(np.int16).max
    return {
        "format": np.array(_FORMAT),
        "temperatures": reference.temperatures.numpy(),
        "xyz": (xyz / unit).round().to(torch.int16).numpy(),
        "xyz_unit": np.array(unit),
        "potential": reference.potential.numpy(),
        "diagnostics": np.array(json.dumps(reference.diagnostics)),
        **{f"counts_{k}": v.to(torch.int32).numpy() for k, v in reference.counts.items()},
        **{f"density_{k}": v.to(torch.float32).numpy() for k, v in reference.density.items()},
    }


def read_reference(path: Path | str) -> Reference:
    """Read a reference file, nothing but numbers and text.

    Args:
        path: The file, or the name of one that this package ships, such as "aldp.npz".

    Raises:
        EnergyInputError: It is missing, damaged, or another kind of file.
    """
    file = located(path)
    if not file.is_file():
        raise EnergyInputError(f"Expected path to be an existing reference file, got {path}.")
    try:
        reference = _unpack(file)
        _check(reference)
    except Exception as error:  # whatever the damage causes
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise EnergyInputError(
            f"Expected path to be a whole reference file, got {path}: {why}."
        ) from error
    return reference


def _unpack(file: Path) -> Reference:
    # Opened here: a file that numpy finds broken would stay open.
    with file.open("rb") as opened:
        data = np.load(opened, allow_pickle=False)
        if not isinstance(data, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with data:
            arrays = {name: data[name] for name in data.files}
    if str(arrays.get("format")) != _FORMAT:
        raise ValueError(f"arrays {sorted(arrays)} and no format {_FORMAT!r}")
    return Reference(
        torch.from_numpy(arrays["temperatures"]),
        _residues(arrays, "counts_", torch.int64),
        _residues(arrays, "density_", torch.float64),
        torch.from_numpy(arrays["xyz"]).to(torch.float64) * float(arrays["xyz_unit"]),
        torch.from_numpy(arrays["potential"]),
        json.loads(str(arrays["diagnostics"])),
    )


def _residues(arrays: dict[str, Any], prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(array).to(dtype)
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _check(reference: Reference) -> None:
    """Raise ValueError unless the parts belong together; KeyError if one is missing."""
    temperatures, counts, density, xyz, potential, diagnostics = reference
    n_atoms = reference.provenance["n_atoms"]
    if temperatures.tolist() != diagnostics["temperatures"]:
        raise ValueError(f"temperatures {temperatures.tolist()} and others in diagnostics")
    if xyz.ndim != 3 or xyz.shape[1] != n_atoms:
        raise ValueError(f"xyz of shape {list(xyz.shape)} for {n_atoms} atoms")
    if potential.shape != xyz.shape[:1] or not bool(potential.isfinite().all()):
        raise ValueError(f"potential not one finite number for each of {len(xyz)} frames")
    if set(counts) != set(density):
        raise ValueError(f"counts of {sorted(counts)} and density of {sorted(density)}")
    for name, table in counts.items():
        shape = (len(temperatures), *density[name].shape)
        if table.ndim != 3 or table.shape != shape:
            raise ValueError(f"counts of shape {list(table.shape)} for residue {name}")
