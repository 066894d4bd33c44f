"""Exact results against brute force: sums over fine grids, and samples in standard errors."""

import math

import pytest
import torch
from torch import Tensor

from energies.affine import AffineCoordinates
from energies.analytic import AnalyticEnergy, DoubleWell, Gaussian, GaussianMixture, ManyWell
from energies.base import R
from energies.errors import EnergyInputError
from energies.target import AnalyticTarget, EnergyTarget

COVARIANCE = [[2.0, 0.6], [0.6, 0.5]]
# Energy, half width of a square that holds all of its density, temperatures in kelvin.
PLANAR = {
    "gaussian": (Gaussian([1.0, -2.0], COVARIANCE), 20.0, (300.0, 700.0)),
    "mixture": (GaussianMixture(), 60.0, (300.0,)),
    "double well": (DoubleWell(), 12.0, (300.0, 700.0, 150.0)),
    "one well": (DoubleWell(a=0.3, b=1.0, c=0.2), 12.0, (300.0,)),
}
CASES = [(name, t) for name, (_, _, temperatures) in PLANAR.items() for t in temperatures]
SPATIAL = {
    "gaussian": Gaussian([0.5], [[4.0]]),
    "mixture": GaussianMixture(n_modes=7, n_dims=3, seed=5),
    "many well": ManyWell(n_wells=4),
}


def grid(half_width: float, n: int = 301) -> tuple[Tensor, float]:
    """Points of a square, [n², 1, 2], and the area that each stands for."""
    line = torch.linspace(-half_width, half_width, n, dtype=torch.float64)
    return torch.cartesian_prod(line, line)[:, None, :], float(line[1] - line[0]) ** 2


@pytest.mark.parametrize(("name", "temperature"), CASES)
def test_log_z_and_moments_are_those_of_the_energy(name: str, temperature: float) -> None:
    energy, half_width, _ = PLANAR[name]
    y, area = grid(half_width)
    log_p = -energy.potential(y) / (R * temperature)
    log_z = float(torch.logsumexp(log_p, 0)) + math.log(area)
    assert energy.log_z(temperature) == pytest.approx(log_z, abs=1e-9)
    p, y = torch.softmax(log_p, 0), y[:, 0]
    mean = p @ y
    covariance = (y - mean).T @ (p[:, None] * (y - mean))
    moments = energy.moments(temperature)
    torch.testing.assert_close(moments.mean, mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(moments.covariance, covariance, rtol=1e-8, atol=1e-8)


def test_many_well_is_a_product_and_has_the_published_constant() -> None:
    one, many = DoubleWell(), ManyWell()
    assert (many.n_atoms, many.n_dims) == (16, 2)
    assert many.log_z(450.0) == pytest.approx(16 * one.log_z(450.0), rel=1e-12)
    # FAB (arXiv 2208.01893) integrates the quartic factor to 11784.50927.
    published = math.log(11784.50927) + 0.5 * math.log(2 * math.pi)
    assert one.log_z(300.0) == pytest.approx(published, abs=1e-8)
    y = torch.randn(5, 16, 2, dtype=torch.float64)
    wells = torch.stack([one.potential(y[:, k : k + 1]) for k in range(16)]).sum(0)
    torch.testing.assert_close(many.potential(y), wells)
    at = many.potential(torch.tensor([[[1.0, 2.0]] + 15 * [[0.0, 0.0]]]))
    assert float(at) == pytest.approx(R * 300.0 * (-0.5 - 6.0 + 1.0 + 2.0), rel=1e-12)


def test_mixture_is_the_usual_one() -> None:
    mixture = GaussianMixture()
    # The first four numbers of torch.manual_seed(0); torch.rand(40, 2).
    expected = torch.tensor([[-0.2995, 21.4577], [-32.9218, -29.4376]], dtype=torch.float64)
    torch.testing.assert_close(mixture.means[:2], expected, rtol=0, atol=1e-4)
    assert mixture.means.shape == (40, 2)
    assert mixture.means.abs().max() <= 40
    assert mixture.std == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(1.0))))
    assert torch.equal(GaussianMixture().means, mixture.means)
    assert not torch.equal(GaussianMixture(seed=1).means, mixture.means)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    GaussianMixture()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "temperature"),
    [(name, 300.0) for name in SPATIAL] + [("gaussian", 500.0), ("many well", 500.0)],
)
def test_samples_have_the_exact_moments(name: str, temperature: float) -> None:
    """Within 5.5 standard errors, some 50 numbers in all."""
    energy, n = SPATIAL[name], 40_000
    y = energy.sample(n, temperature, generator=torch.Generator().manual_seed(1))
    again = energy.sample(n, temperature, generator=torch.Generator().manual_seed(1))
    assert torch.equal(y, again)
    assert y.shape == (n, energy.n_atoms, energy.n_dims)
    moments, flat = energy.moments(temperature), y.flatten(1)
    se = (torch.diagonal(moments.covariance) / n).sqrt()
    assert ((flat.mean(0) - moments.mean).abs() < 5.5 * se).all()
    away = flat - moments.mean
    products = away[:, :, None] * away[:, None, :]
    error = products.std(0) / math.sqrt(n)
    assert ((products.mean(0) - moments.covariance).abs() < 5.5 * error).all()


def test_sampler_of_the_wells_weighs_both_sides_rightly() -> None:
    well, n = DoubleWell(), 200_000
    d = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    p = torch.softmax(0.5 * d + 6 * d**2 - d**4, 0)
    deeper = float(p[d > 0].sum())
    y = well.sample(n, 300.0, generator=torch.Generator().manual_seed(0))[:, 0, 0]
    found = float((y > 0).double().mean())
    assert abs(found - deeper) < 5 * math.sqrt(deeper * (1 - deeper) / n)


@pytest.mark.parametrize("name", PLANAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_target_integrates_to_z_at_its_scale(name: str, dtype: torch.dtype) -> None:
    energy, half_width, temperatures = PLANAR[name]
    target = AnalyticTarget(energy, centre=0.7, scale=2.5)
    x, area = grid(half_width / 2.5, 201)
    x = x[:, 0].to(dtype)
    before = target.n_evals
    e = target.evaluate(x)
    assert target.n_evals - before == len(x)
    assert e.potential.dtype == e.log_jac.dtype == torch.float64
    for temperature in temperatures:
        log_z = torch.logsumexp(target.log_prob(e, temperature), 0) + math.log(area)
        assert float(log_z) == pytest.approx(energy.log_z(temperature), abs=1e-4)


def test_affine_coordinates_there_and_back() -> None:
    affine = AffineCoordinates(3, 2, centre=1.0, scale=4.0)
    x = torch.randn(7, 5, 6, dtype=torch.float64)
    y, log_det = affine.to_xyz(x)
    back, log_det_back = affine.from_xyz(y)
    assert y.shape == (7, 5, 3, 2)
    torch.testing.assert_close(back, x)
    jacobian = torch.autograd.functional.jacobian(lambda v: affine.to_xyz(v)[0].flatten(), x[0, 0])
    torch.testing.assert_close(log_det[0, 0], torch.linalg.slogdet(jacobian).logabsdet)
    assert torch.equal(log_det, -log_det_back)
    assert affine.periodic.tolist() == [False] * 6


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e35])
@pytest.mark.parametrize("name", PLANAR)
def test_bad_frame_is_infinite_and_alone(name: str, bad: float) -> None:
    energy = PLANAR[name][0]
    alone = torch.randn(3, 1, 2, requires_grad=True)
    y = alone.detach().clone()
    y[1, 0, 1] = bad
    y.requires_grad_()
    u, expected = energy.potential(y), energy.potential(alone)
    assert float(u[1].detach()) == math.inf
    assert torch.equal(u[[0, 2]], expected[[0, 2]])
    u[[0, 2]].sum().backward()
    expected[[0, 2]].sum().backward()
    assert torch.equal(y.grad, alone.grad)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianMixture(n_modes=0), "Expected n_modes > 0, got 0"),
        (lambda: GaussianMixture(std=-1.0), "Expected std > 0, got -1.0"),
        (lambda: ManyWell(n_wells=0), "Expected n_wells >= 1, got 0"),
        (lambda: DoubleWell(c=0.0), "Expected c > 0, which confines the well, got 0.0"),
        (lambda: DoubleWell(temperature=0.0), "Expected temperature > 0 kelvin, got 0.0"),
        (lambda: DoubleWell().log_z(-1.0), "Expected temperature > 0 kelvin, got -1.0"),
        (lambda: GaussianMixture().log_z(600.0), "Expected temperature = 300.0 K, .* got 600.0"),
        (lambda: Gaussian([0.0], COVARIANCE), r"covariance of shape \[D, D\], got \[1\]"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (lambda: AnalyticTarget(DoubleWell(), scale=0.0), "Expected scale > 0, got 0.0"),
        (lambda: DoubleWell().potential(torch.zeros(4, 2)), r"xyz of shape \[..., 1, 2\]"),
        (lambda: AffineCoordinates(1, 2).from_xyz(torch.zeros(2)), r"shape \[..., 1, 2\]"),
        (
            lambda: EnergyTarget(ManyWell(), AffineCoordinates(3, 2)),
            "Expected an energy of 3 atoms as in coordinates, got one of 16",
        ),
    ],
)
def test_bad_arguments_are_named(build: object, message: str) -> None:
    with pytest.raises(EnergyInputError, match=message):
        build()  # type: ignore[operator]


def test_every_density_is_an_energy() -> None:
    for energy in [*SPATIAL.values(), *(e for e, _, _ in PLANAR.values())]:
        assert isinstance(energy, AnalyticEnergy)
        y = energy.sample(10, 300.0, generator=torch.Generator().manual_seed(0))
        reduced = energy.reduced(y)
        torch.testing.assert_close(energy.potential(y), R * 300.0 * reduced)


def test_exact_samples_fall_into_basins_as_often_as_they_should() -> None:
    n = 40_000
    generator = torch.Generator().manual_seed(3)
    mixture, well = GaussianMixture(), ManyWell(n_wells=3)
    in_modes = mixture.basins(mixture.sample(n, 300.0, generator=generator))
    # Nearest means are those drawn from but for modes that overlap: two pairs lie within 5 s.
    assert in_modes.shape == (n, 40)
    assert (in_modes.sum(-1) == 1).all()
    assert (in_modes.double().mean(0) - 1 / 40).abs().max() < 0.006
    sides = well.basins(well.sample(n, 300.0, generator=generator)).double().mean(0)
    d = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    log_p = -well.reduced(torch.stack([d, torch.zeros_like(d)], -1)[:, None, :])
    left = float(torch.softmax(log_p, 0)[d < 0].sum())
    error = math.sqrt(left * (1 - left) / n)
    assert (sides[:3] - left).abs().max() < 6 * error
    torch.testing.assert_close(sides[:3] + sides[3:], torch.ones(3, dtype=torch.float64))
    assert Gaussian([0.0], [[1.0]]).basins(torch.zeros(5, 1, 1)).shape == (5, 0)
