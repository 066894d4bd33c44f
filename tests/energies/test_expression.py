import math

import numpy as np
import openmm
import pytest
import torch
from openmm import unit

from energies.errors import EnergyInputError
from energies.forcefield.expression import Expression
from energies.forcefield.tabulated import spline_matrix

CLOSED_FORMS = [
    ("1 + 2*3", 7.0),
    ("-x^2", -0.49),
    ("(-x)^2", 0.49),
    ("2^-1", 0.5),
    ("2^3^2", 512.0),
    ("2^-2^2", 2.0**-4),
    ("-2*-x", 1.4),
    ("8/4/2", 1.0),
    ("1-2-3", -4.0),
    ("1.5e-3*x", 1.05e-3),
    (".5+2.", 2.5),
    ("x^0.5", math.sqrt(0.7)),
    ("x^-1.5", 0.7**-1.5),
    ("x^y", 0.7**2.5),
    ("x^0", 1.0),
    ("select(step(x-1), 3, 4)", 4.0),
    ("select(x, 3, 4)", 3.0),
    ("step(0)+delta(0)+delta(x)", 2.0),
    ("min(x, y)+10*max(x, y)", 25.7),
    ("min(x, 0.1)+max(0.1, x)", 0.8),
    ("sec(x)*csc(x)*cot(x)", 1 / (math.sin(0.7) ** 2)),
    ("atan2(x, y)+atan(x)+asin(x)+acos(x)", math.atan2(0.7, 2.5) + math.atan(0.7) + math.pi / 2),
    ("sinh(x)+cosh(x)+tanh(x)", math.exp(0.7) + math.tanh(0.7)),
    ("erf(x)+erfc(x)+recip(y)", 1.4),
    ("floor(y)+10*ceil(y)+abs(-x)", 32.7),
    ("square(x)+cube(x)", 0.49 + 0.343),
    ("a*b; a=b+x; b=2*y", 28.5),
    ("exp(log(y)); ", 2.5),
    ("sin(x)^2+cos(x)^2+tan(x)", 1 + math.tan(0.7)),
]


@pytest.mark.parametrize(("text", "expected"), CLOSED_FORMS)
def test_value_on_numbers_and_on_tensors(text: str, expected: float) -> None:
    numbers = {"x": 0.7, "y": 2.5}
    tensors = {k: torch.full((3, 2), v, dtype=torch.float64) for k, v in numbers.items()}

    assert Expression(text)(numbers) == pytest.approx(expected, rel=1e-14)
    value = torch.as_tensor(Expression(text)(tensors), dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(value, torch.full_like(value, expected), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x+", "a value, got the end"),
        ("x $ y", r"got '\$'"),
        ("(x", r"'\)', got 'the end'"),
        ("x y", "the end or ';', got 'y'"),
        ("x; 3=y", "a name after ';', got '3'"),
        ("sine(x)", "got 'sine'"),
        ("max(x)", "2 arguments of max, got 1"),
        ("a; a=b; b=a", "without a cycle"),
    ],
)
def test_malformed_expression_is_named(text: str, message: str) -> None:
    with pytest.raises(EnergyInputError, match=message):
        Expression(text)


def test_definitions_are_evaluated_once() -> None:
    calls = []

    def counted(x: float) -> float:
        calls.append(x)
        return x

    Expression("a+a*b; b=a; a=f(x)", functions={"f": (1, counted)})({"x": 2.0})
    assert calls == [2.0]


@pytest.mark.parametrize(
    "text",
    [
        "k*(r-r0)^2",
        "4*e*((s/r)^12-(s/r)^6); s=0.3; e=k/100",
        "select(step(r-r0), k*(r-r0)^3, -log(r)/r)",
        "k*exp(-square(r/r0))*tanh(r)*cos(3*r)^2 - erfc(r)*sqrt(r)",
        "min(r, r0)*max(k*r, 1)+abs(r-0.4)^1.5+atan(r/r0)",
        "r^-3 + k^(r/r0) - -2*r^2/3",
    ],
)
def test_agrees_with_openmm(text: str) -> None:
    distances = np.random.default_rng(0).uniform(0.1, 1.0, 40)
    force = openmm.CustomBondForce(text)
    force.addGlobalParameter("k", 3.7)
    force.addPerBondParameter("r0")
    force.addBond(0, 1, [0.45])
    system = openmm.System()
    system.addParticle(1.0)
    system.addParticle(1.0)
    system.addForce(force)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    expected, slopes = [], []
    for r in distances:
        context.setPositions([[0.0, 0.0, 0.0], [r, 0.0, 0.0]])
        state = context.getState(energy=True, forces=True)
        expected.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        slopes.append(-state.getForces(asNumpy=True)._value[1, 0])

    r = torch.tensor(distances, requires_grad=True)
    value = Expression(text)({"r": r, "k": 3.7, "r0": 0.45})
    (slope,) = torch.autograd.grad(value.sum(), r)
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(slope.numpy(), slopes, rtol=1e-9, atol=1e-9)


def test_one_division_serves_all_quotients() -> None:
    divisions = []

    class Counted(float):
        def __rtruediv__(self, other: float) -> float:
            divisions.append(other)
            return float(other) / float(self)

    assert Expression("1/r+2/r^2+k/r")({"r": Counted(2.0), "k": 3.0}) == 2.5
    assert divisions == [1.0]


def test_inverse_power_and_its_slope_stay_in_range() -> None:
    r = torch.tensor([0.02], requires_grad=True)
    value = Expression("a/r^12")({"r": r, "a": 1e-10})
    (slope,) = torch.autograd.grad(value, r)
    torch.testing.assert_close(value, torch.tensor([1e-10 * 0.02**-12]))
    torch.testing.assert_close(slope, torch.tensor([-12e-10 * 0.02**-13]))


@pytest.mark.parametrize(("name", "expected"), [("min", [0.0, 1.0]), ("max", [1.0, 0.0])])
def test_extremum_of_equals_and_of_nan(name: str, expected: list[float]) -> None:
    """OpenMM 8.6's forces of min(x, 2*x), min(2*x, x), and the same of max, at x = 0."""
    x, y = torch.ones(2, 1, requires_grad=True)
    slopes = torch.autograd.grad(Expression(f"{name}(x, y)")({"x": x, "y": y}), (x, y))
    assert [slope.item() for slope in slopes] == expected
    for pair in ((torch.nan, 1.0), (1.0, torch.nan)):
        x, y = torch.tensor(pair)
        assert Expression(f"{name}(x, y)")({"x": x, "y": y}).isnan()


@pytest.mark.parametrize("power", ["x^3", "x^2.5", "x^-2", "x^0.5", "x^1"])
def test_power_has_two_derivatives(power: str) -> None:
    x = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v: Expression(power)({"x": v}), (x,))


@pytest.mark.parametrize("periodic", [True, False])
def test_spline_passes_through_knots_with_continuous_slope(periodic: bool) -> None:
    values = np.random.default_rng(1).normal(size=9)
    cubics = spline_matrix(9, periodic=periodic) @ values
    after = np.roll(values, -1) if periodic else values[1:]
    np.testing.assert_allclose(cubics[:, 0], values if periodic else values[:-1])
    np.testing.assert_allclose(cubics.sum(1), after)
    slope_end = cubics @ np.array([0.0, 1.0, 2.0, 3.0])
    curve_end = cubics @ np.array([0.0, 0.0, 2.0, 6.0])
    np.testing.assert_allclose(slope_end[:-1], cubics[1:, 1], atol=1e-12)
    np.testing.assert_allclose(curve_end[:-1], 2 * cubics[1:, 2], atol=1e-12)
    if periodic:
        np.testing.assert_allclose(slope_end[-1], cubics[0, 1], atol=1e-12)
    else:
        np.testing.assert_allclose([cubics[0, 2], curve_end[-1]], 0.0, atol=1e-12)
