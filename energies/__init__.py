"""What is sampled: molecules, potentials, coordinates. Knows no flow; imports no OpenMM."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from energies.describing import describe

__all__ = ["describe"]


def __getattr__(name: str) -> Any:
    # Found on first use: who needs only `energies.base` loads no force field.
    if name == "describe":
        from energies.describing import describe

        return describe
    raise AttributeError(f"module 'energies' has no attribute {name!r}")
