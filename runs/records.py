"""The records of a reference simulation: what was observed, by chain and in the order of time."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from energies.reference import Reference
from flows.metrics.tica import slow_coordinates, slow_distance, slow_floor
from runs.cli import CommandError
from runs.systems import System

LAG = 1.0
"""Time between the two observations that are compared, ps; a quarter of the chains if shorter."""


class Records(NamedTuple):
    """What chains of a reference saw at the lowest temperature.

    Attributes:
        observed: [S, C, K]: S times, C chains, K as the system observes.
        interval: Time from one row to the next, ps.
    """

    observed: Tensor
    interval: float


def find_records(path: str | None, reference_path: str) -> Path | None:
    """Return where the records of a reference are: named, or else beside it; None if nowhere."""
    if path is not None:
        return Path(path)
    beside = Path(reference_path).with_name("records.npz")
    return beside if beside.is_file() else None


def read_records(path: Path, reference: Reference, system: System) -> Records:
    """Read a `records.npz` of `runs.reference`.

    Args:
        path: The file.
        reference: Made by the same simulation: it knows the time between rows.
        system: What was simulated.

    Raises:
        CommandError: It is missing, damaged, or of another simulation.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as data:
            temperatures, names = data["temperatures"].tolist(), data["observed_names"].tolist()
            observed = torch.from_numpy(data["observed"])
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise CommandError(
            f"Expected records to be a records.npz of runs.reference, got {path}: {why}."
        ) from error
    for what, mine, theirs in (
        ("observed", list(system.observed), names),
        ("temperatures", reference.temperatures.tolist(), temperatures),
    ):
        if mine != theirs:
            raise CommandError(
                f"Expected the records of the reference of {system.name} with {what} {mine}, "
                f"got {theirs} in {path}."
            )
    d = reference.diagnostics
    return Records(observed[:, 0], d["plan"]["block"] * d["time_step"])


def slow_report(
    records: Records, angles: Tensor, log_w: Tensor, *, most: int, generator: torch.Generator
) -> dict[str, Any]:
    """Return W_2 between samples and reference along what moves slowest in the reference.

    Args:
        records: Torsions of the reference.
        angles: Torsions of the samples, radians, [n, K].
        log_w: Their log weights, [n].
        most: Points of either side that are compared.
        generator: Of the bootstrap.

    Returns:
        "w2_raw" and "w2_reweighted" with intervals and "w2_floor", in standard deviations of the
        coordinate; its "timescale_ps" under exchange, and the lag.
    """
    chains = records.observed
    lag = max(1, min(len(chains) // 4, round(LAG / records.interval)))
    slow = slow_coordinates(chains, lag=lag)
    rows = chains[:: -(-chains.shape[0] * chains.shape[1] // most)]
    found: dict[str, Any] = {
        "lag_ps": lag * records.interval,
        "timescale_ps": float(slow.timescales[0]) * records.interval,
    }
    for kind, weights in (("raw", None), ("reweighted", log_w[:most])):
        (p,) = slow_distance(slow, angles[:most], rows, log_w=weights, generator=generator)
        found[f"w2_{kind}"] = p._asdict()
    return found | {"w2_floor": slow_floor(slow, chains)[0]}
