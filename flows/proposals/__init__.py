"""Proposals: where training points come from. See `flows.proposals.base`."""

from flows.proposals.ais import AIS, SMC
from flows.proposals.base import Proposal
from flows.proposals.buffer import Buffer
from flows.proposals.dataset import Dataset, Points
from flows.proposals.hmc import HMC
from flows.proposals.hot_angles import HotAngles
from flows.proposals.hot_model import HotModel
from flows.proposals.metropolis import Metropolis
from flows.proposals.mixture import Mixture
from flows.proposals.model import Model
from flows.proposals.prioritised_buffer import PrioritisedBuffer

__all__ = [
    "AIS",
    "HMC",
    "SMC",
    "Buffer",
    "Dataset",
    "HotAngles",
    "HotModel",
    "Metropolis",
    "Mixture",
    "Model",
    "Points",
    "PrioritisedBuffer",
    "Proposal",
]
