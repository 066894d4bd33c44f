"""What a proposal is: where the training points come from (the measure μ)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from energies.base import Target
from flows import parallel
from flows.flow import Flow
from flows.paths.base import Path
from flows.state import Stateful
from flows.types import Samples, Weights


class Proposal(Stateful, ABC):
    """Draws the points of a training step; the only caller of the energy.

    Attributes:
        can_reparametrise: Whether points can carry the gradient of the flow that drew them.
        gives: What is known of the density that drew the points.
        independent: Whether points are drawn independently of each other, so that the effective
            size of their weights is that of independent samples.
    """

    can_reparametrise: bool = False
    gives: Weights = Weights.ABSOLUTE
    independent: bool = False

    @abstractmethod
    def draw(
        self,
        flow: Flow,
        target: Target,
        path: Path,
        n: int,
        *,
        reparametrised: bool,
        generator: torch.Generator,
    ) -> Samples:
        """Return n points weighed towards the path's current aim.

        Args:
            flow: The flow in training.
            target: The density whose family the path runs through.
            path: Tells the current aim.
            n: Batch size, of several processes the share of one.
            reparametrised: Whether the loss needs x = f_θ(z) with gradient.
            generator: Source of randomness.
        """

    def renew(
        self, flow: Flow, target: Target, path: Path, n: int, *, generator: torch.Generator
    ) -> None:
        """Give the path samples of the flow as it is now, from which it takes its next aim.

        Called before `draw` when the path is due, with the same arguments.
        """
        samples = flow_samples(flow, target, path, path.n_samples, chunk=n, generator=generator)
        path.advance(flow, target, samples)

    def update(self, flow: Flow, samples: Samples) -> None:
        """Take note of the flow after a step on `samples`, the points last drawn."""

    def figures(self) -> dict[str, float]:
        """Return what to log, once a row; the device may be waited for."""
        return {}


@torch.no_grad()
def flow_chunks(
    flow: Flow, target: Target, path: Path, n: int, *, chunk: int, generator: torch.Generator
) -> Iterator[Samples]:
    """Yield n samples of the flow as it is now, weighed towards the path's current aim.

    Of several processes each draws its share, and gets all of them.

    Args:
        flow: The flow.
        target: The density whose family the path runs through.
        path: Tells the current aim.
        n: Number of samples; the last chunk is drawn whole, for its static shape, and cut.
        chunk: Rows at a time in a process.
        generator: Source of randomness.
    """
    for left in range(n, 0, -chunk * parallel.n_ranks()):
        points = flow.sample_and_log_prob(chunk, generator=generator)
        yield parallel.joint_batch(path.evaluate(target, *points))[:left]


def flow_samples(
    flow: Flow, target: Target, path: Path, n: int, *, chunk: int, generator: torch.Generator
) -> Samples:
    """Return n samples of the flow in one piece; arguments as of `flow_chunks`."""
    return Samples.cat(list(flow_chunks(flow, target, path, n, chunk=chunk, generator=generator)))


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal numbers of a tensor's shape, drawn where the generator lives."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)


def uniform(n: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Return n uniform numbers of [0, 1), float64, drawn where the generator lives."""
    u = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    return u.to(device)


def systematic(w: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Return n rows with probabilities w, [m]: row i floor(n w_i) or ceil(n w_i) times, in order.

    Nothing waits for the device, unlike in `flows.metrics.weights.resample`, which checks w.
    """
    level = (torch.arange(n, device=w.device) + uniform(1, w.device, generator)) / n
    cdf = w.cumsum(0)
    return torch.searchsorted(cdf, level * cdf[-1], right=True).clamp_max(len(w) - 1)
