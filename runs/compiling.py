"""Decide whether a run is compiled, and compile what is worth it."""

import logging
from collections.abc import Sequence

from energies.target import EnergyTarget
from flows.compile import can_compile, check_cache, compile_ahead, compile_flow
from flows.flow import Flow
from flows.parallel import n_ranks
from flows.training import Stage
from flows.transforms import couplings
from runs.cli import CommandError

log = logging.getLogger(__name__)

SAMPLED = 0.25
"""What compiled code gains on a row that is drawn, of what it gains on one that is trained on."""

LEAST = 5e8
"""Rows times outputs of the conditioners from which on compiling pays: measured, docs/speed.md."""


def compile_all(flow: Flow, target: EnergyTarget) -> None:
    """Compile coupling layers, which share one graph, and coordinates with energy, in place."""
    compile_flow(flow)
    target.compile()


def worth_compiling(mode: bool | str, flow: Flow, rows: float) -> bool:
    """Whether to compile for a job of a flow.

    Args:
        mode: True, False, or "auto": where a compiler is found and, on a CPU, `rows` are enough
            to gain more time than compiling takes.
        flow: On the device of the job.
        rows: Points to train on; one that is only drawn counts `SAMPLED`.

    Raises:
        CommandError: `mode` is none of these.
        OSError: It has to be, and there is no folder to do so in.
    """
    if mode == "auto" and not _gains(flow, rows):
        return False
    return wants_compiled(mode)


def start_compiling(flow: Flow, stages: Sequence[Stage]) -> None:
    """Let a second process compile what the first loss asks of the flow, if that can help."""
    alone = flow.base.scale.device.type == "cpu" and n_ranks() == 1  # other cores may be idle
    if alone and stages and not stages[0].loss.reparametrised:
        compile_ahead(flow, flow.rows_at_once or stages[0].batch_size)


def rows_of(stages: Sequence[Stage]) -> int:
    """Points that stages train on."""
    return sum(stage.steps * stage.batch_size for stage in stages)


def _gains(flow: Flow, rows: float) -> bool:
    """Whether `rows` through the flow are enough; says so where they are not."""
    if flow.base.scale.device.type != "cpu":
        return True
    enough = rows * sum(layer.n_outputs for layer in couplings(flow)) >= LEAST
    if not enough:
        log.info("not compiled: %.0e points are too few to pay for it; compile=true does", rows)
    return enough


def wants_compiled(mode: bool | str) -> bool:
    """Whether to compile: True, False, or "auto", which looks for a compiler.

    Raises:
        OSError: It has to be, and there is no folder to do so in.
    """
    check_mode(mode)
    if mode is True:
        check_cache()
    return mode is True or (mode == "auto" and can_compile())


def check_mode(mode: bool | str) -> None:
    """Raise CommandError unless `mode` is one of the three."""
    if mode not in (True, False, "auto"):
        raise CommandError(f"Expected compile to be auto, true or false, got {mode!r}.")
