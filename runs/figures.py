"""Figures of an evaluation and of a training run, from arrays to `matplotlib.figure.Figure`.

Raw and reweighted differ in line style and fill as well as in colour, so that print in black and
white keeps them apart; surfaces use viridis, whose lightness alone carries the order.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from energies.base import R
from flows.errors import FlowInputError
from flows.metrics import ess_curve
from runs.figure_style import (
    RAW,
    REFERENCE,
    REWEIGHTED,
    ROUND,
    SURFACE,
    Array,
    as_array,
    new_figure,
    save,
    tidy,
)
from runs.training_figure import training_curves

__all__ = [
    "Marginal",
    "energy_histogram",
    "free_energy_surface",
    "log_weights",
    "ramachandran",
    "save",
    "torsion_marginals",
    "training_curves",
]

_PI_TICKS = (-math.pi, -math.pi / 2, 0.0, math.pi / 2, math.pi)
_PI_LABELS = ("−π", "−π/2", "0", "π/2", "π")


class Marginal(NamedTuple):
    """Densities of one torsion on equal bins of [-π, π), rad⁻¹, each [bins]; None is left out."""

    raw: ArrayLike
    reweighted: ArrayLike | None = None
    reference: ArrayLike | None = None


def ramachandran(
    raw: ArrayLike,
    reweighted: ArrayLike | None = None,
    *,
    temperature: float,
    reference: ArrayLike | None = None,
    names: tuple[str, str] = ("φ", "ψ"),
    ceiling: float = 40.0,
) -> Figure:
    """Draw free-energy surfaces -RT log p of two torsions side by side, on one colour scale.

    Each surface counts from its own minimum. Empty bins are left white.

    Args:
        raw: Density of the samples on [-π, π)², rad⁻², [bins, bins], first index horizontal.
        reweighted: The same with importance weights.
        temperature: T in kelvin.
        reference: The same from simulation.
        names: Symbols of the two torsions.
        ceiling: Top of the colour scale, kJ/mol; lowered to what occurs.
    """
    panels = {"Flow, raw": raw, "Flow, reweighted": reweighted, "Reference": reference}
    surfaces = {
        title: free_energy_surface(density, temperature=temperature)
        for title, density in panels.items()
        if density is not None
    }
    top = max(float(s.max()) for s in surfaces.values())
    figure = new_figure(3.2 * len(surfaces) + 1.0, 3.5)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.08)
    axes = figure.subplots(1, len(surfaces), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (title, surface) in zip(axes, surfaces.items(), strict=True):
        image = ax.imshow(
            surface.T,
            origin="lower",
            extent=(-math.pi, math.pi, -math.pi, math.pi),
            cmap=SURFACE,
            vmin=0.0,
            vmax=max(min(top, ceiling), 1e-9),
            interpolation="nearest",
        )
        ax.set_title(title)
        ax.set_xlabel(f"{names[0]} (rad)")
        ax.set_xticks(_PI_TICKS, _PI_LABELS)
        ax.set_yticks(_PI_TICKS, _PI_LABELS)
    axes[0].set_ylabel(f"{names[1]} (rad)")
    bar = figure.colorbar(
        image, ax=axes, shrink=0.9, pad=0.02, extend="max" if top > ceiling else "neither"
    )
    bar.set_label("−RT ln p (kJ/mol)")
    bar.outline.set_visible(False)
    return figure


def free_energy_surface(density: ArrayLike, *, temperature: float) -> Any:
    """Return -RT log p above its minimum, kJ/mol, masked where p = 0.

    Args:
        density: Density on equal bins, [bins, bins].
        temperature: T in kelvin.
    """
    p = np.ma.masked_less_equal(as_array(density, "density", ndim=2), 0.0)
    if p.count() == 0:
        raise FlowInputError("Expected density with at least one bin above 0, got none.")
    surface = -R * temperature * np.ma.log(p)
    return surface - surface.min()


def torsion_marginals(marginals: Mapping[str, Marginal], *, columns: int = 3) -> Figure:
    """Draw the density of every torsion, raw and reweighted, in one grid.

    Args:
        marginals: Label of the torsion -> its densities.
        columns: Most panels in a row.
    """
    if not marginals:
        raise FlowInputError("Expected marginals of at least one torsion, got none.")
    n_columns = min(columns, len(marginals))
    n_rows = math.ceil(len(marginals) / n_columns)
    figure = new_figure(2.7 * n_columns + 0.4, 1.9 * n_rows + 0.75)
    axes = figure.subplots(n_rows, n_columns, sharex=True, squeeze=False).ravel()
    for ax, (label, marginal) in zip(axes, marginals.items(), strict=False):
        raw = as_array(marginal.raw, f"marginals[{label!r}].raw", ndim=1)
        edges = np.linspace(-math.pi, math.pi, len(raw) + 1)
        _density_lines(ax, edges, raw, marginal.reweighted, marginal.reference)
        ax.set_title(label)
        ax.set_xlim(-math.pi, math.pi)
        ax.set_ylim(bottom=0.0)
        ax.set_xticks(_PI_TICKS, _PI_LABELS)
        ax.yaxis.set_major_locator(MaxNLocator(3, steps=ROUND))
    for ax in axes[len(marginals) :]:
        ax.set_visible(False)
    for column in range(n_columns):
        lowest = axes[max(range(column, len(marginals), n_columns))]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel("angle (rad)")
    for ax in axes[::n_columns]:
        ax.set_ylabel("density (rad⁻¹)")
    _legend_above(figure, axes[0])
    return figure


def energy_histogram(
    potential: ArrayLike,
    log_w: ArrayLike | None = None,
    *,
    reference: ArrayLike | None = None,
    bins: int = 120,
    tail: float = 0.005,
) -> Figure:
    """Draw the distribution of the potential energy, raw, reweighted and of a reference.

    Args:
        potential: U of the samples, kJ/mol, [n]; rows that are not finite are left out.
        log_w: Log weights, [n].
        reference: U of reference samples, kJ/mol, [m].
        bins: Number of bins.
        tail: Share of the raw samples cut off at high energy; the axis says so.
    """
    u = as_array(potential, "potential", ndim=1)
    kept = np.isfinite(u)
    if not kept.any():
        raise FlowInputError("Expected potential with at least one finite row, got none.")
    shown = [np.quantile(u[kept], [0.0, 1.0 - tail])]
    ref = None if reference is None else as_array(reference, "reference", ndim=1)
    if ref is not None:
        shown.append(np.quantile(ref, [0.0, 0.9999]))
    lo, hi = float(np.min(shown)), float(np.max(shown))
    edges = np.linspace(lo, hi if hi > lo else lo + 1.0, bins + 1)
    reweighted = None
    if log_w is not None:
        w = as_array(log_w, "log_w", ndim=1)
        if w.shape != u.shape:
            raise FlowInputError(f"Expected log_w of shape {u.shape}, got {w.shape}.")
        reweighted = _histogram(u[kept], edges, np.exp(w[kept] - w[kept].max()))
    figure = new_figure(5.2, 3.4)
    ax = figure.add_subplot()
    _density_lines(
        ax,
        edges,
        _histogram(u[kept], edges),
        reweighted,
        None if ref is None else _histogram(ref, edges),
    )
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("potential energy U (kJ/mol)")
    ax.set_ylabel("density (mol/kJ)")
    beyond = 1.0 - np.count_nonzero(u <= edges[-1]) / len(u)
    if beyond > 0:
        ax.annotate(
            f"{100 * beyond:.2g} % of raw\nlie beyond →",
            (0.985, 0.05),
            xycoords="axes fraction",
            ha="right",
            fontsize=8,
            color="0.3",
        )
    ax.legend(frameon=False, loc="upper right")
    return figure


def log_weights(log_w: ArrayLike, *, bins: int = 100) -> Figure:
    """Draw the log weights beside ESS against N.

    Left: how many samples have a weight, and how much of the total weight they carry; where the
    second curve ends at the right edge of the first, the tail has not been seen. Right: ESS / N
    over disjoint blocks of N samples; falling with N says the same.

    Args:
        log_w: Log weights in the order drawn, [n], n >= 20; -inf counts as a weight of zero.
        bins: Number of bins on the left.
    """
    lw = as_array(log_w, "log_w", ndim=1)
    positive = lw[lw > -np.inf]
    if len(lw) < 20 or len(positive) == 0:
        raise FlowInputError(f"Expected log_w with at least 20 rows, some > -inf, got {len(lw)}.")
    w = np.exp(positive - positive.max())
    centred = positive - positive.max() - math.log(w.sum() / len(lw))
    lo, hi = float(np.quantile(centred, 1e-4)), float(centred.max())
    edges = np.linspace(lo, hi if hi > lo else lo + 1.0, bins + 1)
    sizes = np.unique(
        np.geomspace(10, len(lw), 4 * math.ceil(math.log10(len(lw))) + 1).astype(int)
    )
    curve = ess_curve(torch.from_numpy(lw), sizes.tolist())
    figure = new_figure(8.2, 3.4)
    left, right = figure.subplots(1, 2)
    carried = _histogram(centred, edges, w)
    carried[carried == 0] = math.nan  # an empty bin has no place on a logarithmic axis
    _density_lines(left, edges, _histogram(centred, edges), carried, None)
    left.set_yscale("log")
    left.set_xlim(edges[0], edges[-1])
    left.set_xlabel("log w − log mean w (nats)")
    left.set_ylabel("density (nat⁻¹)")
    handles, _ = left.get_legend_handles_labels()
    left.legend(handles, ["samples", "weight they carry"], frameon=False, fontsize=8)
    mean, std = 100 * curve.mean.numpy(), 100 * np.nan_to_num(curve.std.numpy())
    right.fill_between(sizes, mean - std, mean + std, color=RAW, alpha=0.25, linewidth=0)
    right.plot(sizes, mean, color=RAW, marker="o", markersize=3.5, linewidth=1.2)
    right.annotate(
        f"{mean[-1]:.3g} % at N = {len(lw):,}",
        (0.97, 0.06),
        xycoords="axes fraction",
        ha="right",
        fontsize=9,
    )
    right.set_xscale("log")
    right.set_ylim(0.0, 102.0)
    right.set_xlabel("number of samples N")
    right.set_ylabel("ESS / N (%)")
    tidy(right)
    return figure


def _histogram(values: Array, edges: Array, weights: Array | None = None) -> Array:
    """Return the density over all values, whether they fall between the edges or not."""
    counts, _ = np.histogram(values, edges, weights=weights)
    total = len(values) if weights is None else weights.sum()
    return np.asarray(counts / (total * np.diff(edges)), dtype=np.float64)


def _density_lines(
    ax: Axes,
    edges: Array,
    raw: ArrayLike,
    reweighted: ArrayLike | None,
    reference: ArrayLike | None,
) -> None:
    """Draw up to three densities: raw filled, reweighted a line, reference dashed on top."""
    ax.stairs(np.asarray(raw), edges, fill=True, color=RAW, alpha=0.30, label="raw")
    centres = 0.5 * (edges[1:] + edges[:-1])
    if reweighted is not None:
        ax.plot(centres, np.asarray(reweighted), color=REWEIGHTED, lw=1.4, label="reweighted")
    if reference is not None:
        dashes = (0, (2.5, 1.5))
        ax.plot(
            centres, np.asarray(reference), color=REFERENCE, ls=dashes, lw=1.2, label="reference"
        )
    tidy(ax)


def _legend_above(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9
    )
