"""Curves of a training run: everything that its log has numbers of, one figure each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from runs.report_style import CYCLE, curve, new_figure

_LABELS = {
    "loss": "loss (nats)",
    "temperature": "temperature (K)",
    "log_z": "log Z (nats)",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "nonfinite_fraction": "share of samples without a density",
}
_COUNTERS = ("step", "time_s", "n_evals")


def training_curves(rows: Sequence[Mapping[str, Any]]) -> tuple[list[go.Figure], dict[str, float]]:
    """Draw what changes in the rows of a log against the gradient steps, stages marked.

    Args:
        rows: Of metrics.jsonl: step, stage, and numbers by name. ESS of all kinds share a figure.

    Returns:
        The figures, and the names and values of what never changed.
    """
    rows = [row for row in rows if row.get("step") is not None]
    names = {k for row in rows for k, v in row.items() if isinstance(v, int | float)}
    columns = {k: _column(rows, k) for k in sorted(names - set(_COUNTERS), key=_order)}
    columns = {k: y for k, y in columns.items() if np.isfinite(y).any()}
    still = {k: float(np.nanmax(y)) for k, y in columns.items() if np.nanmax(y) == np.nanmin(y)}
    panels: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, y in columns.items():
        if name in still:
            continue
        percent = name == "ess" or name.startswith("ess_")
        label = "ESS / N of a batch (%)" if percent else _LABELS.get(name, name)
        panels.setdefault(label, {})[name] = 100 * y if percent else y
    step = _column(rows, "step")
    figures = []
    for label, curves in panels.items():
        figure = new_figure(label.partition(" (")[0], x="gradient steps", y=label)
        for k, (name, y) in enumerate(curves.items()):
            markers = "lines+markers" if len(y) <= 60 else "lines"
            figure.add_trace(curve(step, y, name, CYCLE[k % len(CYCLE)], mode=markers))
        figure.update_layout(showlegend=len(curves) > 1)
        figure.update_yaxes(range=_range(np.concatenate([*curves.values()])))
        _mark_stages(figure, step, [row.get("stage") for row in rows])
        figures.append(figure)
    return figures, still


def _order(name: str) -> tuple[int, str]:
    known = list(_LABELS)
    return (known.index(name) if name in known else len(known), name)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    values = [row.get(key) for row in rows]
    return np.array([v if isinstance(v, int | float) else math.nan for v in values], np.float64)


def _range(y: NDArray[np.float64]) -> list[float] | None:
    """Where most values lie, if a few would flatten all the rest."""
    known = y[np.isfinite(y)]
    lo, hi = np.quantile(known, [0.02, 0.98])
    if hi <= lo or known.max() - known.min() < 5 * (hi - lo):
        return None
    return [float(lo - 0.1 * (hi - lo)), float(hi + 0.1 * (hi - lo))]


def _mark_stages(figure: go.Figure, step: NDArray[np.float64], stages: Sequence[Any]) -> None:
    """Draw a dotted line where a stage begins, with its name."""
    starts = [
        (float(step[k]), str(stage))
        for k, stage in enumerate(stages)
        if stage is not None and (k == 0 or stage != stages[k - 1])
    ]
    for start, name in starts if len(starts) > 1 else []:
        figure.add_vline(
            x=start, line={"color": "#888", "dash": "dot", "width": 1},
            annotation={"text": name, "font": {"size": 11}, "xanchor": "left", "yanchor": "top",
                        "bgcolor": "rgba(255,255,255,0.7)"},
        )  # fmt: skip
