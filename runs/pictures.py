"""The pictures of a run folder."""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from flows.metrics.histograms import torsion_histogram, torus_histogram
from flows.training.loggers import read_rows
from flows.types import Samples
from runs.figures import (
    Marginal,
    energy_histogram,
    log_weights,
    ramachandran,
    save,
    torsion_marginals,
)
from runs.folder import RunFolder
from runs.training_figure import training_curves

BINS = 100
_GREEK = {"phi": "φ", "psi": "ψ", "omega": "ω"}


def draw_pictures(
    folder: RunFolder, samples: Samples, angles: Mapping[str, Tensor], temperature: float
) -> None:
    """Draw weighted samples and the training that led to them.

    Args:
        folder: Its `figures/` receives the PNG files.
        samples: Weighted samples, x not needed.
        angles: Backbone torsions by name, radians, each [n].
        temperature: T in kelvin.
    """
    log_w = samples.log_w
    figures: dict[str, Figure] = {}
    for name in [n for n in angles if n.startswith("phi_")]:
        other = name.replace("phi_", "psi_")
        if other in angles:
            pair = torch.stack([angles[name], angles[other]], dim=-1)
            figures[f"ramachandran_{name.removeprefix('phi_')}"] = ramachandran(
                torus_histogram(pair, bins=BINS),
                torus_histogram(pair, log_w, bins=BINS),
                temperature=temperature,
                names=(_symbol(name), _symbol(other)),
            )
    if angles:
        figures["torsions"] = torsion_marginals(
            {
                _symbol(name): Marginal(
                    torsion_histogram(t, bins=BINS), torsion_histogram(t, log_w, bins=BINS)
                )
                for name, t in angles.items()
            }
        )
    finite = torch.isfinite(samples.potential)
    figures["energy"] = energy_histogram(samples.potential[finite], log_w[finite])
    figures["weights"] = log_weights(log_w)
    if folder.log.is_file() and (rows := read_rows(folder.log)):
        figures["training"] = training_curves(rows)
    for name, figure in figures.items():
        save(figure, folder.figures / f"{name}.png")


def _symbol(name: str) -> str:
    """Greek letter and residue number: "phi_2" becomes "φ 2"."""
    kind, _, residue = name.partition("_")
    return f"{_GREEK.get(kind, kind)} {residue}"
