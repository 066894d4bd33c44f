"""Figures of a report, from arrays to Plotly: surfaces, densities, weights, structures.

Curves differ in dash and fill as well as in colour; surfaces use scales whose lightness alone
carries the order: dark is low.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from energies.base import R
from runs.report_style import ANGLES, CYCLE, LINES, SIGNED, SURFACE, curve, new_figure
from runs.systems.base import Axis, Structure

Array = NDArray[np.float64]


def density_map(
    points: Array, edges: Sequence[Array], log_w: Array | None = None
) -> tuple[Array, Array]:
    """Return the density of weighted points on a grid and its relative standard error.

    Args:
        points: [n, 2].
        edges: Of the bins along each column.
        log_w: Log weights, [n]; all equal if None. A row of -inf is not counted.

    Returns:
        Density over all points, in the grid or not, and √(Σ w²) / Σ w of each bin, NaN in an
        empty one; both [bins, bins].
    """
    w = np.ones(len(points)) if log_w is None else np.exp(log_w - log_w.max())
    first, second = (
        np.histogram2d(points[:, 0], points[:, 1], list(edges), weights=v)[0] for v in (w, w * w)
    )
    area = np.multiply.outer(np.diff(edges[0]), np.diff(edges[1]))
    with np.errstate(invalid="ignore"):
        error = np.sqrt(second) / first
    return first / (w.sum() * area), error


def free_energy(density: Array, *, temperature: float) -> Array:
    """Return -RT log p above its minimum, kJ/mol, NaN where p = 0."""
    with np.errstate(divide="ignore"):
        surface = -R * temperature * np.log(np.where(density > 0, density, math.nan))
    return np.asarray(surface - np.nanmin(surface), dtype=np.float64)


def heatmap(
    values: Array,
    edges: Sequence[Array],
    axes: tuple[Axis, Axis],
    *,
    title: str,
    unit: str,
    top: float,
    signed: bool = False,
) -> go.Figure:
    """Draw numbers on a grid; NaN is left white.

    Args:
        values: [bins, bins], first index horizontal.
        edges: Of the bins.
        axes: What lies along them.
        title: Of the figure.
        unit: Title of the colour scale.
        top: Its upper end; its lower one is 0.
        signed: The scale runs from -top instead.
    """
    middle = [0.5 * (e[1:] + e[:-1]) for e in edges]
    figure = new_figure(title, x=axes[0].label, y=axes[1].label)
    figure.add_trace(
        go.Heatmap(
            x=middle[0].astype(np.float32),
            y=middle[1].astype(np.float32),
            z=values.T.astype(np.float32),
            zmin=-top if signed else 0.0,
            zmax=top,
            colorscale=SIGNED if signed else SURFACE,
            colorbar={"title": {"text": unit, "side": "right"}, "thickness": 12, "len": 1.0},
            hoverongaps=False,
            hovertemplate="%{x:.2f}, %{y:.2f}: %{z:.2f}<extra></extra>",
        )
    )
    _ticks(figure, axes)
    return figure.update_layout(
        xaxis={"showgrid": False, "range": [edges[0][0], edges[0][-1]]},
        yaxis={"showgrid": False, "range": [edges[1][0], edges[1][-1]]},
        height=350,
        margin={"t": 40},
    )


def densities(
    edges: Array, curves: Mapping[str, ArrayLike], axis: Axis, *, title: str, unit: str
) -> go.Figure:
    """Draw densities on equal bins, one line for each kind: raw, reweighted, reference.

    Args:
        edges: Of the bins.
        curves: Kind -> density, [bins].
        axis: What lies along them.
        title: Of the figure.
        unit: Of the density.
    """
    figure = new_figure(title, x=axis.label, y=f"density ({unit})")
    middle = 0.5 * (edges[1:] + edges[:-1])
    for kind, density in curves.items():
        figure.add_trace(curve(middle, density, kind, LINES[kind], line_shape="hvh"))
    _ticks(figure, (axis,))
    return figure.update_xaxes(range=[edges[0], edges[-1]]).update_yaxes(rangemode="tozero")


def line_density(values: ArrayLike, edges: Array, log_w: Array | None = None) -> Array:
    """Return the density over all values, whether they fall between the edges or not."""
    v = np.asarray(values, dtype=np.float64)
    w = np.ones(len(v)) if log_w is None else np.exp(log_w - log_w.max())
    counts, _ = np.histogram(v, edges, weights=w)
    return np.asarray(counts / (w.sum() * np.diff(edges)), dtype=np.float64)


def log_weights(log_w: Array, *, bins: int = 80) -> go.Figure:
    """Draw how many samples have a log weight, and how much of all weight they carry.

    Args:
        log_w: Log weights, [n]; some > -inf.
        bins: Number of bins.
    """
    lw = log_w[log_w > -math.inf]
    centred = lw - lw.max() - math.log(np.exp(lw - lw.max()).sum() / len(log_w))
    lo, hi = float(np.quantile(centred, 5e-3)), float(centred.max())
    edges = np.linspace(lo, hi if hi > lo else lo + 1.0, bins + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    figure = new_figure(
        "Log weights", x="log w − log mean w (nats)", y="density (nat⁻¹)", yaxis_type="log"
    )
    lowest, highest = 0.5 / (len(lw) * (edges[1] - edges[0])), 0.0  # from half a sample on
    for (name, weights), line in zip(
        {"samples": None, "weight they carry": centred}.items(), CYCLE, strict=False
    ):
        density = line_density(centred, edges, weights)
        highest = max(highest, float(density.max()))
        density = np.maximum(density, 0.1 * lowest)  # a logarithm: empty bins end below the axis
        figure.add_trace(curve(middle, density, name, line, line_shape="hvh"))
    return figure.update_yaxes(range=[math.log10(lowest), math.log10(3 * highest)])


def ess_curve(n: Sequence[int], ess: Sequence[float]) -> go.Figure:
    """Draw ESS / N against the number of samples it was computed from.

    Args:
        n: Numbers of samples.
        ess: ESS / N at each.
    """
    figure = new_figure(
        "Effective sample size", x="number of samples N", y="ESS / N (%)", xaxis_type="log"
    )
    percent = 100 * np.asarray(ess)
    figure.add_trace(curve(n, percent, "ESS / N", CYCLE[0], mode="lines+markers"))
    return figure.update_yaxes(range=[0, 102])


def structures(shown: Mapping[str, Structure]) -> go.Figure:
    """Draw structures as balls and sticks in one scene, one at a time, chosen by buttons.

    One scene for all of them, because browsers keep few WebGL scenes alive on a page.

    Args:
        shown: Name -> structure; the first one is seen first.
    """
    figure = new_figure("", x="", y="")
    owner: list[str] = []
    for name, structure in shown.items():
        traces = _traces(structure)
        figure.add_traces([t.update(visible=name == next(iter(shown))) for t in traces])
        owner += [name] * len(traces)
    buttons = [
        {"label": name, "method": "restyle", "args": [{"visible": [o == name for o in owner]}]}
        for name in shown
    ]
    axis = {"title": {"text": ""}, "visible": False}
    return figure.update_layout(
        height=430,
        margin={"t": 50, "l": 0, "r": 0, "b": 0},
        scene={"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "data",
               "dragmode": "orbit"},
        legend={"y": 0.0},
        updatemenus=[{"type": "dropdown", "buttons": buttons, "x": 0.02, "xanchor": "left",
                      "y": 1.0, "yanchor": "bottom", "direction": "down"}],
    )  # fmt: skip


class _Ball(NamedTuple):
    """How an element is drawn: its symbol tells it without its colour."""

    colour: str
    size: int
    symbol: str = "circle"


_BALLS = {
    "H": _Ball("#e0e0e0", 5),
    "C": _Ball("#444444", 9),
    "N": _Ball("#0072B2", 9, "diamond"),
    "O": _Ball("#D55E00", 9, "square"),
    "S": _Ball("#F0E442", 11, "diamond"),
    "P": _Ball("#CC79A7", 11, "square"),
}


def _traces(structure: Structure) -> list[go.Scatter3d]:
    """Bonds in one trace, atoms in one of each element."""
    xyz = 10 * structure.xyz
    gap = np.full(3, math.nan)
    ends = np.array([p for i, j in structure.bonds for p in (xyz[i], xyz[j], gap)]).reshape(-1, 3)
    traces = [
        go.Scatter3d(
            x=ends[:, 0], y=ends[:, 1], z=ends[:, 2], mode="lines", hoverinfo="skip",
            line={"color": "#888888", "width": 7}, showlegend=False,
        )
    ]  # fmt: skip
    for element in sorted(set(structure.elements)):
        rows = [k for k, e in enumerate(structure.elements) if e == element]
        ball = _BALLS.get(element, _Ball("#56B4E9", 10))
        traces.append(
            go.Scatter3d(
                x=xyz[rows, 0], y=xyz[rows, 1], z=xyz[rows, 2], name=element, mode="markers",
                customdata=[structure.labels[k] for k in rows],
                hovertemplate="%{customdata}<extra></extra>",
                marker={
                    "color": ball.colour, "size": ball.size, "symbol": ball.symbol,
                    "line": {"color": "#111", "width": 1},
                },
            )
        )  # fmt: skip
    return traces


def _ticks(figure: go.Figure, axes: Sequence[Axis]) -> None:
    """Mark multiples of π / 2 along an axis that goes round a circle."""
    for update, axis in zip((figure.update_xaxes, figure.update_yaxes), axes, strict=False):
        marks: dict[str, Any] = ANGLES if axis.bounds is not None else {}
        update(**marks)
