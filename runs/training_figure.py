"""The figure of a training run: loss, ESS and temperature, from the rows the logger wrote."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from flows.errors import FlowInputError
from runs.figure_style import RAW, REWEIGHTED, ROUND, Array, new_figure, tidy

_HORIZONTAL = {
    "step": "gradient steps",
    "time_s": "wall time (s)",
    "n_evals": "energy evaluations",
}


def training_curves(rows: Sequence[Mapping[str, Any]], *, against: str = "step") -> Figure:
    """Draw loss, ESS and temperature of a training run, one panel each, stages marked.

    Args:
        rows: Metrics rows as logged. Keys drawn: loss, ess, ess_clip*, temperature (kelvin) and
            stage; a key that a row lacks leaves a gap, one that no row has leaves out its panel.
        against: Key of the horizontal axis, "step", "time_s" or "n_evals".
    """
    if against not in _HORIZONTAL:
        raise FlowInputError(f"Expected against one of {list(_HORIZONTAL)}, got {against!r}.")
    rows = [row for row in rows if row.get(against) is not None]
    x = _column(rows, against)
    series = {"loss": ["loss"], "ESS / N (%)": [], "T (K)": ["temperature"]}
    series["ESS / N (%)"] = sorted({k for row in rows for k in row if k.startswith("ess")})
    panels = {
        label: {key: y for key in keys if np.isfinite(y := _column(rows, key)).any()}
        for label, keys in series.items()
    }
    panels = {label: curves for label, curves in panels.items() if curves}
    if not panels:
        raise FlowInputError(
            f"Expected rows with {against!r} and one of loss, ess, temperature, got none."
        )
    heights = [1.0 if label == "T (K)" else 2.0 for label in panels]
    figure = new_figure(6.4, 1.05 * sum(heights) + 0.9)
    axes = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for ax, (label, curves) in zip(axes, panels.items(), strict=True):
        for i, (key, y) in enumerate(curves.items()):
            y = 100 * y if key.startswith("ess") else y
            _curve(ax, x, y, color=(RAW, REWEIGHTED, "0.4")[i % 3], dashed=i > 0, label=key)
        if len(curves) > 1:
            ax.legend(frameon=False, fontsize=8, loc="best")
        if label == "ESS / N (%)":
            ax.set_ylim(0.0, 102.0)
        ax.set_ylabel(label)
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
        tidy(ax)
    _mark_stages(list(axes), x, [row.get("stage") for row in rows])
    axes[-1].set_xlabel(_HORIZONTAL[against])
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.align_ylabels(axes)
    time, evals = _column(rows, "time_s"), _column(rows, "n_evals")
    totals = [f"{np.nanmax(time):,.0f} s"] if np.isfinite(time).any() else []
    totals += [f"{np.nanmax(evals):,.0f} energy evaluations"] if np.isfinite(evals).any() else []
    figure.suptitle(", ".join(totals), fontsize=9, color="0.3", x=0.98, ha="right")
    return figure


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> Array:
    """Return one key of all rows, NaN where it is missing."""
    values = [row.get(key) for row in rows]
    return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)


def _curve(ax: Axes, x: Array, y: Array, *, color: str, dashed: bool, label: str) -> None:
    """Draw y, and where there are many rows its running median over the faint single values."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    style: Any = (0, (4, 1.5)) if dashed else "-"
    window = len(y) // 60
    if label == "loss" and len(y) > 1:
        small, large = np.quantile(np.abs(y), [0.05, 0.95])
        if 0 < 100 * small < large:  # losses of different kinds, or a steep start
            if y.min() > 0:
                ax.set_yscale("log")
            else:
                ax.set_yscale("symlog", linthresh=small)
    if window >= 5 and label == "loss":
        ax.plot(x, y, color=color, alpha=0.25, linewidth=0.6)
        lo, hi = np.quantile(y, [0.002, 0.98])  # one spike must not flatten all the rest
        if hi > lo and ax.get_yscale() == "linear":
            ax.set_ylim(lo - 0.06 * (hi - lo), hi + 0.06 * (hi - lo))
        y = np.median(np.lib.stride_tricks.sliding_window_view(y, window), axis=1)
        x = x[window // 2 :][: len(y)]
    marker = "o" if len(y) <= 40 and label.startswith("ess") else None
    ax.plot(x, y, color=color, linestyle=style, linewidth=1.4, label=label, marker=marker, ms=3)


def _mark_stages(axes: Sequence[Axes], x: Array, stages: Sequence[Any]) -> None:
    """Draw a line where the stage changes, and name it where there is room."""
    known = [(xi, str(stage)) for xi, stage in zip(x, stages, strict=True) if stage is not None]
    starts = [k for i, k in enumerate(known) if i == 0 or k[1] != known[i - 1][1]]
    if len(starts) < 2:
        return
    room = 0.12 * (max(x) - min(x))
    labelled = -math.inf
    for start, name in starts:
        for ax in axes:
            ax.axvline(start, color="0.6", linewidth=0.7, linestyle=":")
        if start - labelled >= room:
            axes[0].annotate(
                name,
                (start, 1.0),
                (2, 2),
                xycoords=axes[0].get_xaxis_transform(),
                textcoords="offset points",
                fontsize=8,
                color="0.3",
            )
            labelled = start
