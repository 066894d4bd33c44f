"""Densities of samples in a plane of their coordinates, beside the exact one."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from flows.errors import FlowInputError
from runs.figure_style import SURFACE, as_array, new_figure


def plane_density(
    points: ArrayLike,
    log_w: ArrayLike,
    *,
    reference: ArrayLike,
    names: tuple[str, str],
    bins: int = 100,
) -> Figure:
    """Draw densities in a plane side by side, on one logarithmic colour scale.

    The axes reach as far as the reference, and 5 % further; empty bins are left white.

    Args:
        points: Samples, [n, 2].
        log_w: Their log weights, [n].
        reference: Exact samples, [m, 2].
        names: Names of the two coordinates.
        bins: Number of bins along each.
    """
    xy, exact = as_array(points, "points", ndim=2), as_array(reference, "reference", ndim=2)
    lw = as_array(log_w, "log_w", ndim=1)
    if lw.shape != xy.shape[:1]:
        raise FlowInputError(f"Expected log_w of shape {xy.shape[:1]}, got {lw.shape}.")
    lo, hi = exact.min(0), exact.max(0)
    margin = 0.05 * (hi - lo)
    edges = [np.linspace(a, b, bins + 1) for a, b in zip(lo - margin, hi + margin, strict=True)]
    area = float((edges[0][1] - edges[0][0]) * (edges[1][1] - edges[1][0]))
    w = np.exp(lw - lw.max())
    panels = {
        title: np.histogram2d(*p.T, edges, weights=v)[0] / (v.sum() * area)
        for title, p, v in (
            ("Flow, raw", xy, np.ones(len(xy))),
            ("Flow, reweighted", xy, w),
            ("Exact", exact, np.ones(len(exact))),
        )
    }
    top = float(panels["Exact"].max())
    figure = new_figure(3.2 * len(panels) + 1.0, 3.5)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    for ax, (title, density) in zip(axes, panels.items(), strict=True):
        image = ax.pcolormesh(
            edges[0],
            edges[1],
            np.ma.masked_less_equal(density, 0.0).T,
            cmap=SURFACE.reversed(),
            norm=LogNorm(vmin=1e-4 * top, vmax=top),
            rasterized=True,
        )
        ax.set_title(title)
        ax.set_xlabel(names[0])
    axes[0].set_ylabel(names[1])
    bar = figure.colorbar(image, ax=list(axes), shrink=0.9, pad=0.02, extend="both")
    bar.set_label("density")
    bar.outline.set_visible(False)
    return figure
