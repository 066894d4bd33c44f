"""Flows away from their start, where they are the identity."""

import torch

from flows.flow import Flow


def bent(flow: Flow, scale: float) -> Flow:
    """Add noise of standard deviation `scale` to what layers make of their parameters."""
    with torch.no_grad():
        for module in flow.modules():
            for parameter in module.parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter.add_(scale / getattr(module, "gain", 1.0) * noise)
    return flow
