"""Decide whether a run is compiled, and compile what is worth it."""

from energies.target import EnergyTarget
from flows.compile import can_compile, check_cache, compile_ahead, compile_flow
from flows.flow import Flow
from flows.parallel import n_ranks
from flows.training import Stage
from runs.cli import CommandError


def compile_all(flow: Flow, target: EnergyTarget, mode: bool | str) -> bool:
    """Compile coupling layers, coordinates and energy in place.

    Args:
        flow: Its couplings share one graph.
        target: Coordinates and energy become one graph.
        mode: True, False, or "auto": where a compiler is found.

    Returns:
        Whether it was done.
    """
    if not wants_compiled(mode):
        return False
    compile_flow(flow)
    target.compile()
    return True


def start_compiling(flow: Flow, stage: Stage) -> None:
    """Let a second process compile what the loss of a stage asks of the flow, if that can help."""
    alone = flow.base.scale.device.type == "cpu" and n_ranks() == 1  # other cores may be idle
    if alone and not stage.loss.reparametrised:
        compile_ahead(flow, stage.batch_size)


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
