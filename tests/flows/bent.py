"""Flows away from their start, where they are the identity."""

import torch

from flows.flow import Flow


def bent(flow: Flow, scale: float) -> Flow:
    """Add noise of standard deviation `scale` to what layers make of their parameters."""
    with torch.no_grad():
        for module in flow.modules():
            for name, parameter in module.named_parameters(recurse=False):
                gain = getattr(module, "gain", 1.0) if name == "bias" else 1.0
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter.add_(scale / gain * noise)
    return flow
