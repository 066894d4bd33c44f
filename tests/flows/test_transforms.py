"""One list of transforms, one body: every bijection passes the same tests."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from nflows.transforms import Transform
from torch import Tensor

from flows.conditioners import Conditioner, PeriodicFeatures
from flows.errors import FlowInputError
from flows.transforms import (
    PeriodicShift,
    SplineCoupling,
    rational_quadratic,
    rational_quadratic_inverse,
    wrap,
)
from flows.transforms.rational_quadratic import n_parameters

N = 64
BOUND = 4.0
MIXED = torch.tensor([True, False, False, True, False, False, True, False])  # 3 and 5
CIRCLES = torch.ones(5, dtype=torch.bool)
LINES = torch.zeros(5, dtype=torch.bool)


@pytest.fixture(autouse=True)
def _double(_reproducible: None) -> None:
    torch.set_default_dtype(torch.float64)


def coupling(periodic: Tensor, *, residual: bool = False, n_bins: int = 6) -> SplineCoupling:
    mask = torch.arange(len(periodic)) % 2 == 0
    features = PeriodicFeatures(~mask, periodic, squash=BOUND)
    conditioner = partial(Conditioner, features, hidden=(16, 16), residual=residual)
    return SplineCoupling(mask, periodic, conditioner, n_bins=n_bins, tail_bound=BOUND)


def shift(periodic: Tensor) -> PeriodicShift:
    return PeriodicShift(torch.where(periodic, 2.0, 0.0), periodic)


TRANSFORMS = [
    pytest.param(MIXED, coupling, id="coupling-mixed"),
    pytest.param(CIRCLES, coupling, id="coupling-circles"),
    pytest.param(LINES, coupling, id="coupling-lines"),
    pytest.param(MIXED, partial(coupling, residual=True), id="coupling-residual"),
    pytest.param(MIXED, partial(coupling, n_bins=1), id="coupling-one-bin"),
    pytest.param(MIXED, shift, id="shift"),
]
registry = pytest.mark.parametrize(("periodic", "make"), TRANSFORMS)
Make = Callable[[Tensor], Transform]


def randomise(module: torch.nn.Module, scale: float = 1.0) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def points(periodic: Tensor, n: int = N, spread: float = 2.0) -> Tensor:
    """Lines reach outside the splines' domain, circles fill it."""
    angles = math.pi * (2 * torch.rand(n, len(periodic)) - 1)
    return torch.where(periodic, angles, spread * torch.randn(n, len(periodic)))


def distance(a: Tensor, b: Tensor, periodic: Tensor) -> Tensor:
    return wrap(a - b, periodic).abs().max()


@registry
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_round_trip(periodic: Tensor, make: Make, dtype: torch.dtype, atol: float) -> None:
    transform = make(periodic)
    randomise(transform, 0.15)
    transform.to(dtype)
    x = points(periodic).to(dtype)
    z, log_det = transform(x)
    back, log_det_back = transform.inverse(z)
    assert z.dtype == log_det.dtype == dtype
    assert distance(back, x, periodic) < atol
    assert (log_det + log_det_back).abs().max() < 10 * atol
    x, _ = transform.inverse(points(periodic).to(dtype))
    assert ((x >= -math.pi) & (x <= math.pi))[:, periodic].all()


@registry
def test_log_det_is_that_of_the_jacobian(periodic: Tensor, make: Make) -> None:
    transform = make(periodic)
    randomise(transform, 0.15)
    for direction in (transform.forward, transform.inverse):
        for row in points(periodic, 4):
            jacobian = torch.autograd.functional.jacobian(direction, row[None])[0].squeeze()
            _, log_det = direction(row[None])
            expected = torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(log_det[0], expected, rtol=1e-8, atol=1e-8)


@registry
def test_identity_at_initialisation(periodic: Tensor, make: Make) -> None:
    transform = make(periodic)
    x = points(periodic)
    expected = wrap(x + transform.shift, periodic) if make is shift else x
    z, log_det = transform(x)
    assert distance(z, expected, periodic) < 1e-13
    assert log_det.abs().max() < 1e-12
    assert distance(transform.inverse(z)[0], x, periodic) < 1e-13


@registry
def test_gradient_reaches_every_parameter(periodic: Tensor, make: Make) -> None:
    for name in ("forward", "inverse"):
        transform = make(periodic)
        randomise(transform, 0.15)
        x = points(periodic).requires_grad_()
        z, log_det = getattr(transform, name)(x)
        (z.sin().sum() + log_det.sum()).backward()
        assert (x.grad != 0).any(0).all()
        for parameter in transform.parameters():
            assert (parameter.grad != 0).any()


@registry
def test_density_and_map_have_no_seam(periodic: Tensor, make: Make) -> None:
    transform = make(periodic)
    randomise(transform, 0.15)
    for i in periodic.nonzero().squeeze(-1):
        left, right = points(periodic), None
        right = left.clone()
        left[:, i], right[:, i] = -math.pi + 1e-9, math.pi - 1e-9
        for direction in (transform.forward, transform.inverse):
            (z_left, log_left), (z_right, log_right) = direction(left), direction(right)
            assert distance(z_left, z_right, periodic) < 1e-6
            assert (log_left - log_right).abs().max() < 1e-6


@registry
def test_does_not_depend_on_turns(periodic: Tensor, make: Make) -> None:
    transform = make(periodic)
    randomise(transform, 0.15)
    x = points(periodic)
    _, log_det = transform(x)
    _, turned = transform(x + 2 * math.pi * periodic)
    torch.testing.assert_close(turned, log_det, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_extreme_parameters_and_points_stay_finite(scale: float) -> None:
    for dtype in (torch.float32, torch.float64):
        periodic = MIXED
        D = len(periodic)
        bound = torch.where(periodic, math.pi, BOUND).to(dtype)
        params = (scale * torch.randn(n_parameters(8), D, N)).to(dtype).requires_grad_()
        x = torch.where(periodic[:, None], points(periodic).T, 1e6 * torch.randn(D, N)).to(dtype)
        x.requires_grad_()
        for spline in (rational_quadratic, rational_quadratic_inverse):
            y, log_slope = spline(x, params, bound, periodic)
            grads = torch.autograd.grad(log_slope.sum() + (y / 1e6).sum(), (x, params))
            assert all(t.isfinite().all() for t in (y, log_slope, *grads))
            assert log_slope.abs().max() < 30


def spline_arguments(n_bins: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    bound = torch.where(MIXED, math.pi, torch.linspace(1.0, 5.0, len(MIXED)))
    return torch.randn(n_parameters(n_bins), len(MIXED), 7), bound, MIXED


@pytest.mark.parametrize("spline", [rational_quadratic, rational_quadratic_inverse])
def test_hand_written_derivatives(spline: Callable[..., tuple[Tensor, Tensor]]) -> None:
    params, bound, periodic = spline_arguments(n_bins=3)
    x = points(periodic, 7, spread=4.0).T.contiguous().requires_grad_()
    params.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: spline(a, b, bound, periodic), (x, params))


def test_tails_are_straight_and_join_smoothly() -> None:
    params, bound, periodic = spline_arguments()
    edge = bound[:, None].expand(-1, 7)
    lines = ~periodic
    for sign in (-1, 1):
        for spline in (rational_quadratic, rational_quadratic_inverse):
            at = partial(spline, params=params, bound=bound, periodic=periodic)
            inner, log_inner = at(sign * edge * (1 - 1e-10))
            outer, log_outer = at(sign * edge * (1 + 1e-10))
            torch.testing.assert_close(inner[lines], outer[lines], rtol=0, atol=1e-6)
            torch.testing.assert_close(log_inner[lines], log_outer[lines], rtol=0, atol=1e-5)
            far, log_far = at(sign * edge + sign * 1e6)
            expected = sign * (edge + 1e6 * torch.exp(log_outer))
            torch.testing.assert_close(far[lines], expected[lines], rtol=1e-12, atol=0)
            torch.testing.assert_close(log_far[lines], log_outer[lines], rtol=1e-12, atol=1e-12)


def test_circles_share_their_boundary_slope() -> None:
    params, bound, periodic = spline_arguments()
    edge = bound[:, None].expand(-1, 7)
    (_, low), (_, high) = (rational_quadratic(s * edge, params, bound, periodic) for s in (-1, 1))
    torch.testing.assert_close(low[periodic], high[periodic], rtol=0, atol=1e-10)
    assert ((low - high)[~periodic].abs() > 1e-3).any()


def test_spline_takes_a_hand_computed_value() -> None:
    # Two bins on [-1, 1], equal widths, heights 1 : 3 up to the least bin, unit knot slopes.
    params = torch.zeros(n_parameters(2), 1, 1)
    params[3] = math.log(3.0)
    no = torch.zeros(1, dtype=torch.bool)
    y, log_slope = rational_quadratic(torch.tensor([[-0.5]]), params, torch.ones(1), no)
    height = 2 * (1e-4 + 0.9998 * 0.25)
    # At the middle of a bin with slopes d: rise 1/2, slope (s/D)² M, D = s/2 + d/2 = M.
    torch.testing.assert_close(y, torch.tensor([[-1 + height / 2]]))
    slope = height**2 / (height / 2 + 0.5)
    torch.testing.assert_close(log_slope, torch.tensor([[math.log(slope)]]))


def test_conditioner_sees_only_what_is_visible() -> None:
    visible = torch.arange(len(MIXED)) % 2 == 1
    conditioner = Conditioner(PeriodicFeatures(visible, MIXED), 3, hidden=(8,))
    randomise(conditioner)
    x = points(MIXED).T.requires_grad_()
    conditioner(x).sum().backward()
    assert (x.grad[~visible] == 0).all()
    assert (x.grad[visible] != 0).any(1).all()


def test_wrap_keeps_what_is_in_range() -> None:
    x = torch.tensor([-math.pi, -1e-12, 0.0, 3.0, math.pi, 7.0])
    yes = torch.ones(6, dtype=torch.bool)
    expected = torch.tensor([-math.pi, -1e-12, 0.0, 3.0, -math.pi, 7.0 - 2 * math.pi])
    assert torch.equal(wrap(x, yes), expected)
    assert torch.equal(wrap(x, ~yes), x)


def test_bad_arguments_are_named() -> None:
    mask = torch.tensor([True, False])
    with pytest.raises(FlowInputError, match="Expected mask and periodic of one shape"):
        SplineCoupling(mask, MIXED, lambda n: torch.nn.Identity())
    with pytest.raises(FlowInputError, match="Expected mask to select"):
        SplineCoupling(~mask & mask, mask, lambda n: torch.nn.Identity())
    with pytest.raises(FlowInputError, match="n_bins"):
        SplineCoupling(mask, mask, lambda n: torch.nn.Identity(), n_bins=10_000)
    with pytest.raises(FlowInputError, match="Expected shift to be zero"):
        PeriodicShift(torch.ones(2), mask)
    with pytest.raises(FlowInputError, match="n_frequencies"):
        PeriodicFeatures(mask, mask, n_frequencies=0)
