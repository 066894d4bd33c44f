"""Weighted samples as a run folder keeps them, read without flow or molecule."""

import zipfile
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flows.types import Samples
from runs.cli import CommandError
from runs.folder import RunFolder

_STORED = tuple(f.name for f in fields(Samples) if f.name != "log_p")


class StoredSamples(NamedTuple):
    """What samples.npz holds.

    Attributes:
        samples: Points of the flow weighed towards the target, on the CPU.
        observed: What was looked at in each of them, by name, each float32 [n].
        temperature: T of the weights, kelvin.
    """

    samples: Samples
    observed: dict[str, Tensor]
    temperature: float


def read_samples(folder: RunFolder) -> StoredSamples:
    """Read samples.npz.

    Raises:
        CommandError: It is missing, damaged, or its arrays do not belong together.
    """
    path = folder.samples
    if not path.is_file():
        raise CommandError(
            f"Expected samples.npz in {folder.path}, got none: the run was not evaluated; "
            f"python -m runs.evaluate run={folder.path} does that."
        )
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as data:
            arrays = {name: torch.from_numpy(np.asarray(data[name])) for name in data.files}
        columns = {name: arrays.pop(name) for name in _STORED}
        temperature = float(arrays.pop("temperature"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise CommandError(
            f"Expected whole weighted samples in {path}, got a file that lacks some: "
            f"{' '.join(str(error).split()) or type(error).__name__}."
        ) from error
    n = len(columns["log_w"])
    if columns["x"].ndim != 2 or any(len(v) != n for v in (*columns.values(), *arrays.values())):
        raise CommandError(f"Expected x [n, D] and n of everything else in {path}, got others.")
    log_p = columns["log_w"] + columns["log_q"]
    observed = {name.partition("_")[2]: values for name, values in arrays.items()}
    return StoredSamples(Samples(log_p=log_p, **columns), observed, temperature)
