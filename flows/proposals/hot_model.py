"""The flow's samples from noise of a wider spread."""

import torch

from energies.base import Target
from flows.bases import NormalUniform
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.paths.base import Path
from flows.proposals.base import Proposal
from flows.types import Samples


class HotModel(Proposal):
    """Points of the flow from noise at a higher temperature, with their exact density.

        μ(x) = p_τ(T(x)) |det ∂T/∂x|,   p_τ(z) ∝ p(z)^{1/τ}: normal noise of width σ √τ

    The noise of angles is uniform at any temperature; `HotAngles` heats them. In d normal
    coordinates the log weights of q towards itself have a variance near d (τ - 1)² / 2: τ must
    come closer to 1 as d grows.

    Args:
        temperature: τ >= 1, that of the noise in units of its own.
    """

    independent = True

    def __init__(self, temperature: float = 1.2) -> None:
        if not temperature >= 1:
            raise FlowInputError(f"Expected temperature >= 1 of hot_model, got {temperature}.")
        self.temperature = temperature
        self._wide: NormalUniform | None = None

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
        """Return n points of the wider density."""
        if self._wide is None:  # once: reading the scale waits for the device
            scale = float(flow.base.scale) * self.temperature**0.5
            self._wide = NormalUniform(flow.periodic, scale=scale).to(flow.base.scale)
        with torch.no_grad():
            z = self._wide.draw(n, generator=generator)
            return path.evaluate(target, *flow.from_noise(z, self._wide.log_prob(z)))
