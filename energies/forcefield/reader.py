"""Reading numbers out of OpenMM force objects."""

from typing import Any

from energies.errors import UnsupportedForceError


def plain(value: Any) -> float:
    """Return a number, stripped of its unit (nm, kJ/mol, rad, e) if it has one."""
    if hasattr(value, "value_in_unit_system"):
        # Only a System has Quantities, so OpenMM is loaded already whenever this runs.
        from openmm import unit

        value = value.value_in_unit_system(unit.md_unit_system)
    return float(value)


def global_parameters(force: Any) -> dict[str, float]:
    """Return the global parameters of a custom force at their default values."""
    return {
        force.getGlobalParameterName(k): float(force.getGlobalParameterDefaultValue(k))
        for k in range(force.getNumGlobalParameters())
    }


def unsupported(force: Any, reason: str) -> UnsupportedForceError:
    """Return the error that names a force and says what to do instead."""
    return UnsupportedForceError(
        f"Expected forces that the torch force field knows, got {force.getName()} "
        f"({type(force).__name__}): {reason.rstrip('.')}. "
        "Use the OpenMM energy instead (energy=openmm)."
    )


def reject_periodic(force: Any) -> None:
    """Raise UnsupportedForceError if the force applies periodic boundary conditions."""
    if force.usesPeriodicBoundaryConditions():
        raise unsupported(force, "periodic boundary conditions are not translated")


def reject_cutoff(force: Any) -> None:
    """Raise UnsupportedForceError if a nonbonded force has a cutoff."""
    if force.getNonbondedMethod() != force.NoCutoff:
        raise unsupported(force, "only nonbondedMethod=NoCutoff is translated, no cutoffs or PME")
