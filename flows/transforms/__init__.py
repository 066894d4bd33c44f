"""Bijections: each an `nflows.transforms.Transform`, of static shape, compiled to one graph."""

from flows.transforms.coupling import SplineCoupling, couplings
from flows.transforms.rational_quadratic import rational_quadratic, rational_quadratic_inverse
from flows.transforms.shift import PeriodicShift, wrap

__all__ = [
    "PeriodicShift",
    "SplineCoupling",
    "couplings",
    "rational_quadratic",
    "rational_quadratic_inverse",
    "wrap",
]
