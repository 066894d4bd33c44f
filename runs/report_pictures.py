"""Sections of a report that draw samples: surfaces, marginals, energies, weights, structures."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray
from torch import Tensor

from energies.base import R
from energies.reference import Reference
from flows.metrics.boxes import in_box
from runs.building import build_system
from runs.comparison import load_reference
from runs.free_energy import REST, boxes
from runs.page import Figures, Part, Words
from runs.report_figures import (
    densities,
    density_map,
    ess_curve,
    free_energy,
    heatmap,
    line_density,
    log_weights,
    structures,
)
from runs.report_training import training_curves
from runs.run_files import RunFiles
from runs.samples import StoredSamples, check_belongs
from runs.systems.base import Axis, System

Array = NDArray[np.float64]

BINS = 100
CEILING = 40.0
"""Top of the scale of surfaces, kJ/mol."""

FEW = 0.5
"""Relative standard error of a bin from which on a difference is noise and left white."""


class View:
    """Samples of a run, what they are samples of, and what to hold them against.

    The system and the reference are made when a picture asks for them.

    Args:
        run: The files of a run.
        reference_path: A file of `runs.reference`, if any.
    """

    def __init__(self, run: RunFiles, reference_path: str | None) -> None:
        self.run, self.reference_path = run, reference_path

    @cached_property
    def stored(self) -> StoredSamples:
        """Weighted samples, which a picture needs."""
        assert self.run.samples is not None
        return self.run.samples

    @cached_property
    def system(self) -> System:
        """What was sampled.

        Raises:
            CommandError: The samples are not of what the config says.
        """
        system = build_system(self.run.config, device=torch.device("cpu"))
        check_belongs(self.stored, system)
        return system

    @cached_property
    def reference(self) -> Reference | None:
        """Ground truth, if any.

        Raises:
            CommandError: It is that of another system.
        """
        path = self.reference_path
        return None if path is None else load_reference(path, self.system)

    @property
    def log_w(self) -> Array:
        """Log weights of the samples, [n]."""
        return self.stored.samples.log_w.numpy()

    @cached_property
    def measured(self) -> dict[str, Array]:
        """What the system observes in the frames of the reference, by name."""
        if self.reference is None:
            return {}
        columns = self.system.measure(self.reference.xyz.float()).unbind(-1)
        return {name: c.numpy() for name, c in zip(self.system.observed, columns, strict=True)}

    def edges(self, name: str, bins: int = BINS) -> Array:
        """Return bins along one of what is observed: a period, or where nearly all of it is."""
        bounds = self.system.axis(name).bounds
        if bounds is None:
            y = self.stored.observed[name].numpy()
            bounds = tuple(np.quantile(y[np.isfinite(y)], [0.0005, 0.9995]))
        lo, hi = bounds
        return np.linspace(lo, hi if hi > lo else lo + 1.0, bins + 1)


def surfaces(view: View) -> list[Part]:
    """Draw -RT log p over the planes of the system, with errors and differences."""
    parts: list[Part] = []
    for name, pair in view.system.planes.items():
        edges = [view.edges(k) for k in pair]
        axes = (view.system.axis(pair[0]), view.system.axis(pair[1]))
        parts.append(Figures([*_surfaces(view, name, pair, edges, axes)]))
    remark = Words(
        "Each surface counts from its own minimum; empty bins are white. Error: one standard "
        "error of the reweighted surface, from the weights in each bin. Difference: "
        "reweighted less reference, light where the flow's free energy is too high; bins "
        f"known to less than {FEW:.0%} are white.",
        remark=True,
    )
    return [*parts, remark] if parts else []


def _surfaces(
    view: View, name: str, pair: tuple[str, str], edges: list[Array], axes: tuple[Axis, Axis]
) -> Iterator[go.Figure]:
    RT = R * view.system.temperature
    points = np.stack([view.stored.observed[k].numpy() for k in pair], axis=-1)
    raw, _ = density_map(points, edges)
    reweighted, error = density_map(points, edges, view.log_w)
    shown = {"Raw": raw, "Reweighted": reweighted}
    reference = view.reference
    if reference is not None:
        exact = reference.density.get(name)
        if exact is not None and exact.shape == raw.shape:
            shown["Reference"] = exact.numpy()
        else:
            measured = np.stack([view.measured[k] for k in pair], axis=-1)
            shown["Reference"] = density_map(measured, edges)[0]
    found = {k: free_energy(p, temperature=view.system.temperature) for k, p in shown.items()}
    top = min(max(float(np.nanmax(f)) for f in found.values()), CEILING)
    for title, surface in found.items():
        unit = "−RT ln p (kJ/mol)"
        yield heatmap(surface, edges, axes, title=title, unit=unit, top=top)
    yield heatmap(RT * error, edges, axes, title="Error", unit="standard error (kJ/mol)", top=RT)
    exact_density = shown.get("Reference", np.zeros_like(raw))
    known = (reweighted > 0) & (exact_density > 0) & (error < FEW)
    if known.any():
        ratio = np.divide(exact_density, reweighted, out=np.ones_like(raw), where=known)
        difference = np.where(known, RT * np.log(ratio), np.nan)
        yield heatmap(
            difference, edges, axes,
            title="Difference", unit="flow − reference (kJ/mol)", top=2 * RT, signed=True,
        )  # fmt: skip


def marginals(view: View) -> list[Part]:
    """Draw the density of everything observed."""
    measured = view.measured
    figures = []
    for name in view.system.observed:
        y, edges, axis = (
            view.stored.observed[name].numpy(),
            view.edges(name),
            view.system.axis(name),
        )
        curves = {
            "raw": line_density(y, edges),
            "reweighted": line_density(y, edges, view.log_w),
        }
        if name in measured:
            curves["reference"] = line_density(measured[name], edges)
        title, _, unit = axis.label.partition(" (")
        inverse = f"{unit.rstrip(')')}⁻¹" if unit else "1"
        figures.append(densities(edges, curves, axis, title=title, unit=inverse))
    return [Figures(figures)]


def energies_and_weights(view: View) -> list[Part]:
    """Draw energies, log weights, and ESS against N if the evaluation has it."""
    u = view.stored.samples.potential.numpy()
    finite = np.isfinite(u)
    exact = None if view.reference is None else view.reference.potential.numpy()
    kept = u[finite] if exact is None else np.concatenate([u[finite], exact])
    lo, hi = np.quantile(kept, [0.0, 0.995])
    edges = np.linspace(lo, hi if hi > lo else lo + 1.0, 101)
    curves = {
        "raw": line_density(u[finite], edges),
        "reweighted": line_density(u[finite], edges, view.log_w[finite]),
    }
    if exact is not None:
        curves["reference"] = line_density(exact, edges)
    axis = Axis("potential energy U (kJ/mol)")
    figures = [
        densities(edges, curves, axis, title="Energy", unit="mol/kJ"),
        log_weights(view.log_w),
    ]
    if curve := (view.run.metrics or {}).get("ess_curve"):
        figures.append(ess_curve(curve["n"], curve["ess"]))
    beyond = float(np.mean(~(u <= edges[-1])))
    return [
        Figures(figures),
        Words(
            f"From the {len(u)} samples that were kept, {beyond:.2%} of them beyond the right "
            "edge of the energies. Where the weight ends at the last of the samples, or ESS / N "
            "falls with N, a tail was not seen.",
            remark=True,
        ),
    ]


def training(run: RunFiles) -> list[Part]:
    """Draw what the log of training has numbers of."""
    assert run.rows is not None
    figures, still = training_curves(run.rows)
    last = run.rows[-1]
    cost = ", ".join(
        f"{last[key]:,} {unit}"
        for key, unit in (("step", "gradient steps"), ("n_evals", "energy evaluations"),
                          ("time_s", "s"))
        if key in last
    )  # fmt: skip
    constant = ", ".join(f"{name} {value:g}" for name, value in still.items())
    said = f"{cost}." + (f" Never changed: {constant}." if constant else "")
    return [Words(said), Figures(figures)]


def representatives(view: View) -> list[Part]:
    """Draw the heaviest sample of each basin, and of what lies in none."""
    log_w = view.stored.samples.log_w
    basins = boxes(view.run.config.system.get("basins"))
    inside = {name: in_box(view.stored.observed, box) for name, box in basins.items()}
    rest = ~torch.stack([*inside.values()]).any(0) if inside else torch.ones_like(log_w).bool()
    rows = {name: _heaviest(log_w, mask) for name, mask in {REST: rest, **inside}.items()}
    seen = {name: row for name, row in rows.items() if row is not None}
    shown = view.system.structures(view.stored.samples.x[[*seen.values()]])
    if not shown:
        return []
    empty = [name for name, row in rows.items() if row is None]
    parts: list[Part] = [Figures([structures(dict(zip(seen, shown, strict=True)))])]
    if empty:
        parts.append(Words(f"No sample lies in {', '.join(empty)}."))
    return parts


def _heaviest(log_w: Tensor, mask: Tensor) -> int | None:
    weights = torch.where(mask, log_w, -torch.inf)
    row = int(weights.argmax())
    return row if weights[row] > -torch.inf else None
