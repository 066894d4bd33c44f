"""What a proposal is: where the training points come from (the measure μ)."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from energies.base import Target
from flows.flow import Flow
from flows.paths.base import Path
from flows.types import Samples


class Proposal(ABC):
    """Draws the points of a training step; the only caller of the energy.

    Attributes:
        can_reparametrise: Whether points can carry the gradient of the flow that drew them.
    """

    can_reparametrise: ClassVar[bool] = False

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
            n: Batch size.
            reparametrised: Whether the loss needs x = f_θ(z) with gradient.
            generator: Source of randomness.
        """
