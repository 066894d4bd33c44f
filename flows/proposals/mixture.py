"""Points of several proposals in one batch."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from energies.base import Target
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.paths.base import Path
from flows.proposals.base import Proposal
from flows.state import State
from flows.types import Samples, Weights


class Mixture(Proposal):
    """μ = Σ_k c_k μ_k, each part with its own share of every batch.

    Points keep the weight that their own part gives them, exact if all parts know their density;
    if one does not, no weights are given. The first part serves the path.

    Args:
        parts: Proposals by name.
        shares: c_k > 0 by the same names, scaled to sum to 1; equal if not given.
    """

    def __init__(
        self, parts: Mapping[str, Proposal], shares: Mapping[str, float] | None = None
    ) -> None:
        if not parts:
            raise FlowInputError("Expected parts of a mixture, got none.")
        shares = dict.fromkeys(parts, 1.0) if shares is None else dict(shares)
        if shares.keys() != parts.keys() or not all(share > 0 for share in shares.values()):
            raise FlowInputError(
                f"Expected shares > 0 of {list(parts)}, got {shares} for the mixture."
            )
        self.parts = dict(parts)
        self.shares = {k: v / sum(shares.values()) for k, v in shares.items()}
        exact = all(part.gives == Weights.ABSOLUTE for part in parts.values())
        self.gives = Weights.ABSOLUTE if exact else Weights.NONE

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
        """Return n points, the parts one after another."""
        samples = Samples.cat(
            [
                self.parts[name].draw(
                    flow, target, path, size, reparametrised=False, generator=generator
                )
                for name, size in self._sizes(n).items()
            ]
        )
        if self.gives > Weights.NONE:
            return samples
        zero = torch.zeros_like(samples.log_q)
        return replace(samples, log_q=zero, log_w=zero)

    def _sizes(self, n: int) -> dict[str, int]:
        """Return the number of points of each part; rounding is left to the last."""
        sizes, left = {}, n
        for k, (name, share) in enumerate(self.shares.items(), start=1):
            sizes[name] = left if k == len(self.shares) else round(share * n)
            left -= sizes[name]
        if min(sizes.values()) < 1:
            raise FlowInputError(f"Expected a batch with points of each part, got {sizes}.")
        return sizes

    def renew(
        self, flow: Flow, target: Target, path: Path, n: int, *, generator: torch.Generator
    ) -> None:
        """Let the first part serve the path."""
        name, size = next(iter(self._sizes(n).items()))
        self.parts[name].renew(flow, target, path, size, generator=generator)

    def update(self, flow: Flow, samples: Samples) -> None:
        """Pass on to each part its points."""
        start = 0
        for name, size in self._sizes(len(samples)).items():
            self.parts[name].update(flow, samples[start : start + size])
            start += size

    def figures(self) -> dict[str, float]:
        """Return those of the parts, under their names."""
        return {
            f"{name}_{k}": v
            for name, part in self.parts.items()
            for k, v in part.figures().items()
        }

    def state_dict(self) -> State:
        """Return the states of the parts."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name], flow)
