"""The figure of many runs: how a figure of their logs went, one colour a kind of run."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from flows.training.loggers import Row, read_rows
from runs.figure_style import new_figure, tidy
from runs.results import Group

_LOOKS = [*product(("-", (0, (4, 1.5)), (0, (1, 1))), colormaps["tab10"].colors)]


def compared_curves(kinds: Sequence[Group], *, figure: str = "ess") -> Figure | None:
    """Draw a figure of the log against energy evaluations: a panel a system, a line a run.

    Lines of one kind have one colour and one name; no seed is left out or averaged away. The ESS
    of a batch is towards the target of its step, and of a buffer's resampled points it is 1.

    Args:
        kinds: Runs in any state; those without a row of the figure are left out, and of a system
            all kinds after the thirtieth.
        figure: Key of the rows of metrics.jsonl.

    Returns:
        The figure; None where no run has a row of it.
    """
    lines = {
        (kind.system, kind.name): [
            rows for run in kind.runs if (rows := _rows(run.folder / "metrics.jsonl", figure))
        ]
        for kind in kinds
    }
    lines = {kind: runs for kind, runs in lines.items() if runs}
    systems = list(dict.fromkeys(system for system, _ in lines))
    if not systems:
        return None
    drawn = new_figure(7.2, 3.4 * len(systems))
    axes = drawn.subplots(len(systems), 1, squeeze=False)[:, 0]
    for ax, system in zip(axes, systems, strict=True):
        here = [(name, runs) for (of, name), runs in lines.items() if of == system]
        for (style, color), (name, runs) in zip(_LOOKS, here, strict=False):
            for k, rows in enumerate(runs):
                x, y = np.array([(row["n_evals"], row[figure]) for row in rows]).T
                label = f"{name} ({len(runs)})" if k == 0 else None
                ax.plot(x, y, color=color, linestyle=style, linewidth=1.1, label=label)
        ax.set_title(system, loc="left")
        ax.set_ylabel(f"{figure}, of a batch")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        tidy(ax)
    axes[-1].set_xlabel("energy evaluations")
    return drawn


def _rows(path: Path, figure: str) -> list[Row]:
    """Return the rows that have the figure, in a file that need not be there."""
    rows = read_rows(path) if path.is_file() else []
    return [row for row in rows if isinstance(row.get(figure), int | float)]
