"""What all figures share: size, resolution, colours, and how one is written to a file.

Nothing here touches pyplot or a display: a figure is an object, and `save` renders it with Agg.
"""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from flows.errors import FlowInputError
from flows.files import replacing

DPI = 150
RAW = "#0072B2"
REWEIGHTED = "#D55E00"
REFERENCE = "black"
ROUND = (1, 2, 2.5, 5, 10)
"""Multiples of a power of ten that tick marks may be apart."""

SURFACE = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.92, 256)))
"""Without viridis' lightest colours, which in print could not be told from an empty, white bin."""

Array = NDArray[np.float64]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of `width` x `height` inches that keeps its labels apart."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path | str) -> Path:
    """Write `figure` as a PNG at 150 dpi; the file appears only once it is complete.

    Args:
        figure: Any figure made here.
        path: Ends in .png; its folder is made if missing.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise FlowInputError(f"Expected path ending in .png, got {path.name!r}.")
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_figure(str(temporary), dpi=DPI)
    return path


def as_array(values: ArrayLike, name: str, *, ndim: int) -> Array:
    """Return `values` as float64 once they have `ndim` dimensions; `name` is for the message."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise FlowInputError(
            f"Expected {name} with {ndim} dimensions and not empty, got shape {array.shape}."
        )
    return array


def tidy(ax: Axes) -> None:
    """Take away what carries no information."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.title.set_fontsize(10)
