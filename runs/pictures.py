"""The pictures of a run folder."""

import torch
from torch import Tensor

from flows.training.loggers import read_rows
from flows.types import Samples
from runs.figures import energy_histogram, log_weights, save
from runs.folder import RunFolder
from runs.systems import System
from runs.training_figure import training_curves


def draw_pictures(
    folder: RunFolder, system: System, samples: Samples, observed: dict[str, Tensor]
) -> None:
    """Draw weighted samples and the training that led to them.

    Args:
        folder: Its `figures/` receives the PNG files.
        system: What was sampled; it has pictures of its own.
        samples: Weighted samples, x not needed.
        observed: What the system looks at in a sample, by name, each [n].
    """
    log_w = samples.log_w
    figures = system.figures(observed, log_w)
    finite = torch.isfinite(samples.potential)
    figures["energy"] = energy_histogram(samples.potential[finite], log_w[finite])
    figures["weights"] = log_weights(log_w)
    if folder.log.is_file() and (rows := read_rows(folder.log)):
        figures["training"] = training_curves(rows)
    for name, figure in figures.items():
        save(figure, folder.figures / f"{name}.png")
