"""Weighted samples on disk: what `samples.npz` holds, read without flow, molecule or OpenMM."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energies.base import R
from flows.metrics.weights import known
from flows.types import Samples
from runs.cli import CommandError
from runs.folder import write_arrays

if TYPE_CHECKING:
    from runs.systems import System

_COLUMNS = ("log_q", "potential", "log_jac", "log_w")
_TOLERANCE = 0.5
"""Most that an energy computed again may be off, kJ/mol: float32, and rounded positions."""


class StoredSamples(NamedTuple):
    """Weighted samples of a run.

    Attributes:
        samples: x in flow coordinates, [n, D], with densities; log_q may lack a constant.
        temperature: T that log_w weighs towards, kelvin.
        observed: What the system looks at, by name, each [n].
        kind: What that is: "torsion" for angles in radians, or "y".
        source: The file.
    """

    samples: Samples
    temperature: float
    observed: dict[str, Tensor]
    kind: str
    source: Path

    def log_weights(self, temperature: float, potential: Tensor | None = None) -> Tensor:
        """Return log weights towards another temperature or energy, float64 [n].

            log w = -U'/(RT') + log_jac - log_q,   -inf where that is no number

        Args:
            temperature: T', kelvin.
            potential: U' of the samples, kJ/mol, [n]; their own U if None.
        """
        u = self.samples.potential if potential is None else potential
        return known(self.samples.log_jac - self.samples.log_q - u / (R * temperature))


def write_samples(
    path: Path, samples: Samples, observed: dict[str, Tensor], *, kind: str, temperature: float
) -> None:
    """Write samples whole or not at all.

    Args:
        path: The file.
        samples: Weighted samples.
        observed: What the system looks at, by name, each [n].
        kind: What that is; the arrays are called `<kind>_<name>`.
        temperature: T that log_w weighs towards, kelvin.
    """
    write_arrays(
        path,
        x=samples.x.numpy(),
        **{name: getattr(samples, name).numpy() for name in _COLUMNS},
        temperature=np.array(temperature),
        **{f"{kind}_{name}": values.numpy() for name, values in observed.items()},
    )


def read_samples(path: Path | str) -> StoredSamples:
    """Read a `samples.npz`.

    Args:
        path: The file.

    Raises:
        CommandError: It is missing, cut short, or not such a file.
    """
    file = Path(path)
    if not file.is_file():
        raise CommandError(
            f"Expected weighted samples at {file}, got no such file; "
            "python -m runs.evaluate run=<folder> writes it."
        )
    try:
        arrays = _read(file)
        stored = _unpack(arrays, file)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise CommandError(f"Expected whole weighted samples at {file}, got: {why}.") from error
    return stored


def _read(file: Path) -> dict[str, NDArray[Any]]:
    # Opened here: a file that numpy finds broken would stay open.
    with file.open("rb") as opened:
        data = np.load(opened, allow_pickle=False)
        if not isinstance(data, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with data:
            return {name: data[name] for name in data.files}


def _unpack(arrays: dict[str, NDArray[Any]], file: Path) -> StoredSamples:
    if missing := {"x", "temperature", *_COLUMNS} - set(arrays):
        raise ValueError(f"no {' and no '.join(sorted(missing))}")
    x, temperature = torch.from_numpy(arrays.pop("x")), float(arrays.pop("temperature"))
    columns = {k: torch.from_numpy(v).to(torch.float64) for k, v in arrays.items()}
    if x.ndim != 2 or len(x) == 0 or not temperature > 0:
        raise ValueError(f"x of shape {list(x.shape)} at {temperature} kelvin")
    for name, column in columns.items():
        if column.shape != x.shape[:1]:
            raise ValueError(f"{name} of shape {list(column.shape)} for {len(x)} samples")
    log_q, potential, log_jac, log_w = (columns.pop(name) for name in _COLUMNS)
    samples = Samples(x, log_q, log_w + log_q, log_w, potential, log_jac)
    kind = next(iter(columns), "").partition("_")[0]
    observed = {name.removeprefix(f"{kind}_"): column for name, column in columns.items()}
    stored = StoredSamples(samples, temperature, observed, kind, file)
    again = stored.log_weights(temperature)
    if not torch.allclose(again, known(log_w), rtol=1e-6, atol=1e-3):
        raise ValueError("log_w that do not follow from potential, log_jac and log_q")
    return stored


def check_belongs(stored: StoredSamples, system: "System") -> None:
    """Compute some energies again: samples of another molecule or force field show themselves.

    Raises:
        CommandError: The samples are not those of `system`.
    """
    samples, dim = stored.samples, system.target.dim
    if samples.x.shape[1] != dim:
        raise CommandError(
            f"Expected samples of {system.name} with {dim} coordinates in {stored.source}, "
            f"got {samples.x.shape[1]}: those of another system."
        )
    # Low energies: those of clashes are too steep to compare.
    some = samples[known(samples.log_w).topk(min(len(samples), 64)).indices]
    with torch.no_grad():
        again = system.target.evaluate(some.x.to(system.target.periodic.device)).potential.cpu()
    check_energies(again, some.potential, f"samples of {system.name} in {stored.source}")


def check_energies(again: Tensor, given: Tensor, what: str) -> None:
    """Compare energies that should be the same, kJ/mol, [n].

    Raises:
        CommandError: They are not, in the median.
    """
    off = float((again - given).abs().nan_to_num(torch.inf, torch.inf).median())
    if not off < _TOLERANCE:
        raise CommandError(
            f"Expected {what}, got frames whose energies are {off:.3g} kJ/mol off those recorded "
            "with them: another molecule, order of atoms or force field."
        )
