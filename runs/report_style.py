"""What all figures of a report share: size, colours, lines that differ without their colours."""

from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from runs.figure_style import RAW, REFERENCE, REWEIGHTED

HEIGHT = 330

LIGHTEST = 0.92
"""Share of a colour scale that is used: its lightest colours look like paper."""


def _scale(name: str) -> list[str]:
    colours: list[str] = sample_colorscale(name, np.linspace(0.0, LIGHTEST, 12).tolist())
    return colours


SURFACE = _scale("Viridis")
SIGNED = _scale("Cividis")


class Line(NamedTuple):
    """How one kind of curve is drawn: colour, dash and width tell the same."""

    colour: str
    dash: str
    width: float
    filled: bool = False


LINES = {
    "raw": Line(RAW, "solid", 1.0, filled=True),
    "reweighted": Line(REWEIGHTED, "solid", 2.2),
    "reference": Line(REFERENCE, "dash", 1.8),
}

CYCLE = (
    Line(RAW, "solid", 2.0),
    Line(REWEIGHTED, "dash", 2.0),
    Line(REFERENCE, "dot", 2.0),
)
"""Lines of curves that have no kind of their own."""

ANGLES = {
    "tickvals": [-np.pi, -np.pi / 2, 0.0, np.pi / 2, np.pi],
    "ticktext": ["−π", "−π/2", "0", "π/2", "π"],
}

_AXIS = {
    "showline": True,
    "linecolor": "#111",
    "ticks": "outside",
    "tickcolor": "#111",
    "gridcolor": "#e4e4e4",
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 6},
}


def new_figure(title: str, *, x: str, y: str, **layout: Any) -> go.Figure:
    """Return an empty figure that fits its column and lets a finger scroll past it.

    Args:
        title: Of the figure.
        x: Title of the horizontal axis, with its unit.
        y: Title of the vertical axis.
        **layout: What differs from the others.
    """
    return go.Figure(
        layout=go.Layout(
            template="none",
            title={"text": title, "font": {"size": 15}, "x": 0.02, "xanchor": "left"},
            font={"family": "system-ui, sans-serif", "size": 13, "color": "#111"},
            height=HEIGHT,
            autosize=True,
            margin={"l": 8, "r": 12, "t": 62, "b": 8},
            paper_bgcolor="white",
            plot_bgcolor="white",
            dragmode=False,
            hovermode="closest",
            legend={
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.01,
                "yanchor": "bottom",
                "font": {"size": 11},
            },
            xaxis={**_AXIS, "title": {"text": x, "standoff": 6}},
            yaxis={**_AXIS, "title": {"text": y, "standoff": 6}},
        )
    ).update_layout(layout)


def curve(x: Any, y: Any, name: str, line: Line, **trace: Any) -> go.Scatter:
    """Return a curve in single precision, which halves the page."""
    return go.Scatter(
        x=np.asarray(x, np.float32),
        y=np.asarray(y, np.float32),
        name=name,
        **{
            "mode": "lines",
            "line": {"color": line.colour, "dash": line.dash, "width": line.width},
            "fill": "tozeroy" if line.filled else None,
            **trace,
        },
    )
