"""Flows away from their start, where they are the identity."""

import torch
from torch import Tensor

from flows.flow import Flow


def perturbation(flow: Flow, scale: float, *, seed: int = 1) -> list[Tensor]:
    """Return noise for each parameter that changes what layers make of it by about `scale`."""
    changes = []
    for module in flow.modules():
        for name, parameter in module.named_parameters(recurse=False):
            gain = getattr(module, "gain", 1.0) if name == "bias" else 1.0
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            changes.append(scale / gain * noise)
    return changes


def bent(flow: Flow, scale: float) -> Flow:
    """Add noise to all parameters."""
    with torch.no_grad():
        for parameter, change in zip(flow.parameters(), perturbation(flow, scale), strict=True):
            parameter.add_(change)
    return flow
