"""Errors raised by `energies`: bad input is a `ValueError` whose message names the argument."""


class EnergyInputError(ValueError):
    """An argument is outside what was expected; the message names it and says what was."""


class MoleculeError(EnergyInputError):
    """A molecule cannot be built: unknown residue, missing template, broken structure."""


class UnsupportedForceError(EnergyInputError):
    """An OpenMM force that the torch translation does not know."""


class CoordinateError(EnergyInputError):
    """A molecule for which internal coordinates are not defined."""
