"""One stage of a training run: a path, a proposal, a loss, and for how long."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.optim import Optimizer

from flows.errors import FlowInputError
from flows.losses.base import Loss
from flows.paths.base import Path
from flows.proposals.base import Proposal
from flows.training.schedule import Schedule
from flows.types import Weights


class Stage:
    """What is minimised, on which points, towards which target, in how many steps.

    Progress s is the larger of steps done over `steps` and time spent over `max_time`: on a
    machine that is slower than planned, path and learning rate still reach their end in time.

    Args:
        name: Shown in logs.
        path: Which target is aimed at.
        proposal: Where points come from.
        loss: What is minimised on them.
        optimizer: Called with the parameters; `torch.optim.*` with all else bound.
        schedule: Factor on the learning rate over the stage.
        steps: Gradient steps, at least 1.
        batch_size: Points a step, at least 2.
        max_time: Seconds after its first step, which may have to compile, at which the stage ends
            in any case; None for no limit.

    Raises:
        FlowInputError: A number is out of range, or the loss needs what the proposal cannot give.
    """

    def __init__(
        self,
        *,
        name: str,
        path: Path,
        proposal: Proposal,
        loss: Loss,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        schedule: Schedule,
        steps: int,
        batch_size: int,
        max_time: float | None = None,
    ) -> None:
        if steps < 1:
            raise FlowInputError(f"Expected steps >= 1 in stage {name!r}, got {steps}.")
        if batch_size < 2:
            raise FlowInputError(f"Expected batch_size >= 2 in stage {name!r}, got {batch_size}.")
        if max_time is not None and not max_time > 0:
            raise FlowInputError(f"Expected max_time > 0 s in stage {name!r}, got {max_time}.")
        if steps < path.rungs:
            raise FlowInputError(
                f"Expected steps >= {path.rungs}, the rungs of the path, in stage {name!r}, "
                f"got {steps}."
            )
        check_combination(name, loss, proposal)
        self.name, self.path, self.proposal, self.loss = name, path, proposal, loss
        self.optimizer, self.schedule = optimizer, schedule
        self.steps, self.batch_size, self.max_time = steps, batch_size, max_time

    def progress(self, step: int, seconds: float) -> float:
        """Return s in [0, 1] after `step` steps and `seconds` of this stage."""
        by_time = 0.0 if self.max_time is None else seconds / self.max_time
        return min(max(step / self.steps, by_time), 1.0)


def check_combination(stage: str, loss: Loss, proposal: Proposal) -> None:
    """Raise FlowInputError unless the proposal gives what the loss needs."""
    got = f"in stage {stage!r}, got {type(proposal).__name__}"
    if loss.reparametrised and not proposal.can_reparametrise:
        raise FlowInputError(
            f"Expected a proposal that gives reparametrised points for loss "
            f"{type(loss).__name__} {got}. Valid are proposal=model with any loss; or any "
            "proposal with a loss that takes points from anywhere: l2, l2_plus, log_variance, "
            "forward_kl, alpha_divergence and sums of them."
        )
    if proposal.gives < loss.needs:
        kinds = {Weights.RELATIVE: "weights", Weights.ABSOLUTE: "weights with their scale"}
        raise FlowInputError(
            f"Expected a proposal that gives {kinds[loss.needs]} for loss {type(loss).__name__} "
            f"{got}, which does not know its density well enough. Valid are proposal=model, "
            "hot_model, buffer, prioritised_buffer, ais, smc, mixtures of these, data with log_q "
            "(or, where the scale does not matter, hot_angles, or data with log_w or a "
            "temperature); or any proposal with l2, l2_plus, log_variance, or forward_kl with "
            "baseline=0."
        )
