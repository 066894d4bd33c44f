"""An OpenMM System translated into one batched, compiled, twice differentiable torch module."""

from energies.forcefield.module import ForceField

__all__ = ["ForceField"]
