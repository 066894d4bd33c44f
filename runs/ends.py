"""Points of two ends of a free energy difference, and what every estimator makes of them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from energies.base import R
from flows.errors import OverlapError
from flows.evaluation import draw_weighted
from flows.flow import Flow
from flows.metrics.free_energies import bar, mbar, perturbation
from flows.metrics.weights import Estimate, known
from flows.types import Samples
from runs.building import build_system
from runs.cli import CommandError
from runs.folder import RunFolder
from runs.systems import System
from runs.weights import load_flow

CHUNK = 1024


class Crossed(NamedTuple):
    """Points of both ends' flows, drawn apart, with all four densities over positions.

    Attributes:
        log_q: Log densities of the flows of start and end, [2, n + m].
        log_p: Unnormalised ones of start and end, [2, n + m].
        n: How many points, the first ones, are the start's.
    """

    log_q: Tensor
    log_p: Tensor
    n: int


class Points(NamedTuple):
    """Log weights that the estimators ask for.

    Attributes:
        temperatures: Of start and end, kelvin.
        start: Of the start's points towards the start, towards the end as they are, and towards
            the end in the end's own coordinates, [n] each.
        paired: Of what either end's own flow makes of a common noise, [n] each; None without a
            flow of the end.
        crossed: None without a flow of the end.
    """

    temperatures: tuple[float, float]
    start: tuple[Tensor, Tensor, Tensor]
    paired: tuple[Tensor, Tensor] | None = None
    crossed: Crossed | None = None


def between_ends(points: Points) -> dict[str, Any]:
    """Return the reduced free energy difference by every method, or why it refused.

    Raises:
        CommandError: All of them refused.
    """
    own, as_they_are, mapped = points.start
    methods: dict[str, Callable[[], Estimate]] = {
        "reweighting": lambda: perturbation(own, as_they_are),
        "mapped_coordinates": lambda: perturbation(own, mapped),
    }
    if points.paired is not None:
        methods["mapped_flows"] = partial(perturbation, *points.paired)
    if points.crossed is not None:
        (q_start, q_end), (p_start, p_end), n = points.crossed
        first, last = slice(None, n), slice(n, None)
        back = known((p_start - q_end)[last]), known((p_end - q_end)[last])
        methods |= {
            "reweighting_back": partial(perturbation, *back),
            "bar": partial(
                bar,
                (p_start - p_end)[first],
                (p_end - p_start)[last],
                log_w_start=known((p_start - q_start)[first]),
                log_w_end=back[1],
                generator=torch.Generator().manual_seed(0),
            ),
            "mbar": partial(
                mbar, points.crossed.log_q, (n, len(q_start) - n), points.crossed.log_p
            ),
        }
    found: dict[str, Any] = {}
    for name, method in methods.items():
        try:
            found[name] = method()._asdict()
        except OverlapError as error:
            found[name] = {"refused": str(error)}
    if all("refused" in answer for answer in found.values()):
        reasons = " ".join(f"{name}: {answer['refused']}" for name, answer in found.items())
        raise CommandError(f"Expected ends that overlap, got a refusal by each method. {reasons}")
    return {"temperatures": list(points.temperatures), "reduced": found}


def gather(
    run: RunFolder,
    samples: Samples,
    end_config: DictConfig,
    end_run: RunFolder | None,
    *,
    seed: int,
    device: torch.device,
) -> Points:
    """Evaluate the points of a run, and those of another where there is one, at both ends.

    Args:
        run: The start.
        samples: Its stored samples.
        end_config: Has the system of the end.
        end_run: The run that trained a flow for it, if there is one.
        seed: Of points that are drawn.
        device: Where everything is computed.

    Raises:
        CommandError: The ends do not have the same coordinates, or a checkpoint is another's.
    """
    start, end = (build_system(c, device=device) for c in (run.config, end_config))
    if start.meaning != end.meaning:
        raise CommandError(
            f"Expected two ends with the same coordinates, got {start.name} with "
            f"{len(start.meaning)} and {end.name} with {len(end.meaning)}, whose atoms, bonds or "
            "symmetric groups differ."
        )
    # Rows outside the domain of the start have weight zero, and no positions.
    inside = samples.log_jac > -math.inf
    at_end = torch.full_like(samples.log_w, -math.inf)
    xyz = _xyz(start, samples.x[inside].to(device))
    at_end[inside] = _log_p(end, xyz).cpu() + (samples.log_jac - samples.log_q)[inside]
    in_its_own = torch.cat(
        [_target_log_p(end, x.to(device)).cpu() for x in samples.x.split(CHUNK)]
    )
    weights = samples.log_w, known(at_end), known(in_its_own - samples.log_q)
    temperatures = start.temperature, end.temperature
    if end_run is None:
        return Points(temperatures, weights)

    flows = [
        load_flow(folder, system).to(device) for folder, system in ((run, start), (end_run, end))
    ]
    # The same noise for both; apart from that of the stored samples, on which the rest is based.
    drawn = [
        _drawn(flow, system, len(samples), seed)
        for flow, system in zip(flows, (start, end), strict=True)
    ]
    paired = drawn[0].log_w.cpu(), drawn[1].log_w.cpu()
    kept = drawn[1].log_jac > -math.inf
    both = torch.cat([xyz, _xyz(end, drawn[1].x[kept])])
    log_q = [_log_q(flow, s, both) for flow, s in zip(flows, (start, end), strict=True)]
    log_p = [_log_p(system, both) for system in (start, end)]
    crossed = Crossed(torch.stack(log_q).cpu(), torch.stack(log_p).cpu(), len(xyz))
    return Points(temperatures, weights, paired, crossed)


def _xyz(system: System, x: Tensor) -> Tensor:
    """Positions of flow coordinates [n, D]."""
    return torch.cat([system.target.coordinates.to_xyz(part)[0] for part in x.split(CHUNK)])


@torch.no_grad()
def _log_p(system: System, xyz: Tensor) -> Tensor:
    """-U/RT of positions [n, N, d]."""
    potential = [system.target.energy.potential(part) for part in xyz.split(CHUNK)]
    return -torch.cat(potential) / (R * system.temperature)


@torch.no_grad()
def _target_log_p(system: System, x: Tensor) -> Tensor:
    """Return log p̃ over flow coordinates, of points [n, D] of any flow."""
    target = system.target
    return target.log_prob(target.evaluate(x), system.temperature)


@torch.no_grad()
def _log_q(flow: Flow, system: System, xyz: Tensor) -> Tensor:
    """Log density of a flow over positions [n, N, d]; -inf outside its domain."""
    parts = []
    for part in xyz.split(CHUNK):
        x, log_det = system.target.coordinates.from_xyz(part)
        inside = log_det > -math.inf
        log_q = flow.log_prob(torch.where(inside[:, None], x, 0.0))
        parts.append(torch.where(inside, log_q + log_det, -math.inf))
    return torch.cat(parts)


def _drawn(flow: Flow, system: System, n: int, seed: int) -> Samples:
    """Weighted points of a flow."""
    generator = torch.Generator().manual_seed(seed + 2_000_003)
    parts = draw_weighted(
        flow, system.target, system.temperature, n, chunk=CHUNK, generator=generator
    )
    return Samples.cat(list(parts))
