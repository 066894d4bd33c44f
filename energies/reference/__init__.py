"""Ground truth: parallel tempering on any energy, what it says, and how far to believe it."""

from energies.reference.diagnostics import (
    ChainMean,
    chain_mean,
    configurational_temperature,
    torus_counts,
)
from energies.reference.files import Population, Reference, pack_reference, read_reference
from energies.reference.langevin import Langevin, Phase, masses_from_openmm, repartition
from energies.reference.mbar import free_energies, log_weights
from energies.reference.session import Plan, ReferenceSession
from energies.reference.tempering import ParallelTempering, geometric_ladder

__all__ = [
    "ChainMean",
    "Langevin",
    "ParallelTempering",
    "Phase",
    "Plan",
    "Population",
    "Reference",
    "ReferenceSession",
    "chain_mean",
    "configurational_temperature",
    "free_energies",
    "geometric_ladder",
    "log_weights",
    "masses_from_openmm",
    "pack_reference",
    "read_reference",
    "repartition",
    "torus_counts",
]
