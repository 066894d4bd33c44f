"""Proposals: where training points come from. See `flows.proposals.base`."""

from flows.proposals.base import Proposal
from flows.proposals.model import Model

__all__ = ["Model", "Proposal"]
