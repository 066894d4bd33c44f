"""Densities in closed form: what a method is held against before it meets a molecule.

Each is an `Energy` made from the reduced potential u(y) of the literature,

    U(y) = R T₀ u(y),    p(y) ∝ exp(-U(y) / RT) = exp(-u(y) T₀/T)

with T₀ its `temperature`. At T₀ the density is the one of the literature, above it a flatter one:
paths in temperature run as they do on a molecule. y stands where a molecule has its positions,
shape [..., N, n_dims], and has no unit. Exact results are functions of T like everything else.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from energies.base import Energy, R
from energies.errors import EnergyInputError

_LARGEST = 1e30
"""Beyond it a frame counts as one that cannot be evaluated: fourth powers stay in range."""

_MODE_STD = math.log1p(math.e)
"""softplus(1), the width of a mode in the usual mixture benchmark."""


class Moments(NamedTuple):
    """Mean [D] and covariance [D, D] of the flattened y, D = N n_dims, float64."""

    mean: Tensor
    covariance: Tensor


class AnalyticEnergy(Energy):
    """An energy whose density is known: its log Z, its moments, and exact samples of it.

    Args:
        n_atoms: N, number of independent or joint particles.
        n_dims: Dimensions of each.
        temperature: T₀, kelvin: where U/RT is the reduced potential of the literature.

    Raises:
        EnergyInputError: `temperature` is not positive.
    """

    compilable: ClassVar[bool] = False  # cheap beside any flow

    def __init__(self, n_atoms: int, n_dims: int, *, temperature: float) -> None:
        super().__init__(n_atoms, n_dims)
        if not temperature > 0:
            raise EnergyInputError(f"Expected temperature > 0 kelvin, got {temperature}.")
        self.temperature = temperature

    @abstractmethod
    def reduced(self, y: Tensor) -> Tensor:
        """Return u(y), [...], for y of shape [..., N, n_dims], float64."""

    @abstractmethod
    def log_z(self, temperature: float) -> float:
        """Return log ∫ exp(-U(y)/RT) dy at T in kelvin."""

    @abstractmethod
    def moments(self, temperature: float) -> Moments:
        """Return the mean and covariance of y at T in kelvin."""

    @abstractmethod
    def sample(self, n: int, temperature: float, *, generator: torch.Generator) -> Tensor:
        """Draw n independent y at T in kelvin, float64 [n, N, n_dims]."""

    def basins(self, y: Tensor) -> Tensor:
        """Return which of K basins y is in, bool [..., K]; a density without barriers has none."""
        return torch.ones((*y.shape[:-2], 0), dtype=torch.bool, device=y.device)

    def _potential(self, xyz: Tensor) -> Tensor:
        y = xyz.to(torch.float64)
        sound = (y.abs() < _LARGEST).all(-1).all(-1)  # False for NaN too
        u = self.reduced(torch.where(sound[..., None, None], y, 0.0))
        return torch.where(sound, R * self.temperature * u, math.inf)

    def _sharpness(self, temperature: float) -> float:
        """Return T₀/T, what multiplies u at T."""
        if not temperature > 0:
            raise EnergyInputError(f"Expected temperature > 0 kelvin, got {temperature}.")
        return self.temperature / temperature


def _normal(n: int, n_dims: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers [n, n_dims], drawn where the generator lives."""
    options: Any = {"generator": generator, "device": generator.device, "dtype": torch.float64}
    return torch.randn(n, n_dims, **options)


class Gaussian(AnalyticEnergy):
    """u(y) = (y - m)ᵀ Σ⁻¹ (y - m) / 2, one particle in D dimensions.

    Args:
        mean: m, [D].
        covariance: Σ at T₀, [D, D].
        temperature: T₀, kelvin.

    Raises:
        EnergyInputError: The covariance is not a positive definite matrix of the mean's size.
    """

    centre: Tensor
    factor: Tensor
    whiten: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        covariance: Sequence[Sequence[float]],
        *,
        temperature: float = 300.0,
    ) -> None:
        centre = torch.tensor(mean, dtype=torch.float64)
        sigma = torch.tensor(covariance, dtype=torch.float64)
        if centre.ndim != 1 or sigma.shape != (len(centre), len(centre)):
            raise EnergyInputError(
                f"Expected mean of shape [D] and covariance of shape [D, D], "
                f"got {list(centre.shape)} and {list(sigma.shape)}."
            )
        factor, failed = torch.linalg.cholesky_ex(sigma)
        if int(failed) or not torch.equal(sigma, sigma.T):
            raise EnergyInputError("Expected covariance symmetric and positive definite, got not.")
        super().__init__(1, len(centre), temperature=temperature)
        self.register_buffer("centre", centre)
        self.register_buffer("factor", factor)
        self.register_buffer("whiten", torch.linalg.inv(factor))

    def reduced(self, y: Tensor) -> Tensor:
        """Return |L⁻¹ (y - m)|² / 2, with Σ = L Lᵀ."""
        z = (y[..., 0, :] - self.centre.to(y)) @ self.whiten.to(y).T
        return 0.5 * z.square().sum(-1)

    def log_z(self, temperature: float) -> float:
        """Return D/2 log(2π T/T₀) + log det Σ / 2."""
        half_log_det = torch.diagonal(self.factor.double()).log().sum()
        turn = 2 * math.pi / self._sharpness(temperature)
        return float(half_log_det) + 0.5 * self.n_dims * math.log(turn)

    def moments(self, temperature: float) -> Moments:
        """Return m and Σ T/T₀."""
        factor = self.factor.double()
        return Moments(self.centre.double(), factor @ factor.T / self._sharpness(temperature))

    def sample(self, n: int, temperature: float, *, generator: torch.Generator) -> Tensor:
        """Draw m + L z √(T/T₀)."""
        z = _normal(n, self.n_dims, generator).to(self.centre.device)
        y = self.centre + z @ self.factor.double().T / math.sqrt(self._sharpness(temperature))
        return y[:, None, :]


class GaussianMixture(AnalyticEnergy):
    r"""Equal round modes at random places: u(y) = -log (1/K) Σ_k N(y; μ_k, s² I).

    With its defaults and seed 0 it is the 40-mode mixture of FAB (arXiv 2208.01893): the means are
    the first K n_dims numbers of torch's CPU generator, scaled to [-40, 40]. Exact results exist
    at T₀ alone: a power of a mixture is no mixture.

    Args:
        n_modes: K.
        n_dims: Dimensions of y.
        half_width: The means are uniform in [-half_width, half_width]^n_dims.
        std: s.
        seed: Of the means.
        temperature: T₀, kelvin.

    Raises:
        EnergyInputError: An argument is not positive.
    """

    means: Tensor

    def __init__(
        self,
        *,
        n_modes: int = 40,
        n_dims: int = 2,
        half_width: float = 40.0,
        std: float = _MODE_STD,
        seed: int = 0,
        temperature: float = 300.0,
    ) -> None:
        given = {"n_modes": n_modes, "n_dims": n_dims, "half_width": half_width, "std": std}
        for name, value in given.items():
            if not value > 0:
                raise EnergyInputError(f"Expected {name} > 0, got {value}.")
        super().__init__(1, n_dims, temperature=temperature)
        # float32 is part of the definition: float64 would draw other numbers.
        generator = torch.Generator().manual_seed(seed)
        unit = torch.rand(n_modes, n_dims, generator=generator, dtype=torch.float32)
        self.register_buffer("means", ((unit - 0.5) * 2 * half_width).to(torch.float64))
        self.std = std

    def reduced(self, y: Tensor) -> Tensor:
        """Return -log of the normalised density."""
        squares = (y - self.means.to(y)).square().sum(-1)  # y is [..., 1, n_dims]
        log_k = math.log(len(self.means))
        log_norm = 0.5 * self.n_dims * math.log(2 * math.pi * self.std**2)
        return log_norm + log_k - torch.logsumexp(-0.5 * squares / self.std**2, dim=-1)

    def log_z(self, temperature: float) -> float:
        """Return 0: the mixture is normalised.

        Raises:
            EnergyInputError: Not at T₀.
        """
        self._check(temperature)
        return 0.0

    def moments(self, temperature: float) -> Moments:
        """Return the mean of the means, and their covariance plus s² I.

        Raises:
            EnergyInputError: Not at T₀.
        """
        self._check(temperature)
        means = self.means.double()
        spread = torch.cov(means.T, correction=0).reshape(self.n_dims, self.n_dims)
        return Moments(means.mean(0), spread + self.std**2 * torch.eye(self.n_dims).to(means))

    def sample(self, n: int, temperature: float, *, generator: torch.Generator) -> Tensor:
        """Draw a mode, then a point of it.

        Raises:
            EnergyInputError: Not at T₀.
        """
        self._check(temperature)
        modes = torch.randint(len(self.means), (n,), generator=generator, device=generator.device)
        noise = self.std * _normal(n, self.n_dims, generator)
        y = self.means.double()[modes.to(self.means.device)] + noise.to(self.means.device)
        return y[:, None, :]

    def basins(self, y: Tensor) -> Tensor:
        """Return which mean is nearest, one of K."""
        nearest = (y - self.means.to(y)).square().sum(-1).argmin(-1)
        return nearest[..., None] == torch.arange(len(self.means), device=y.device)

    def _check(self, temperature: float) -> None:
        if not math.isclose(temperature, self.temperature, rel_tol=1e-9):
            raise EnergyInputError(
                f"Expected temperature = {self.temperature} K, where the mixture has exact "
                f"results, got {temperature}."
            )


class ManyWell(AnalyticEnergy):
    r"""Independent double wells in the plane, each with modes near (±1.7, 0).

        u(y) = Σ_wells a d + b d² + c d⁴ + v² / 2,    y = ((d, v), ...)

    With its defaults the 32-dimensional Many Well of FAB (arXiv 2208.01893), with 2^16 modes; the
    well at d > 0 is the deeper one. What has no closed form is a sum over a fine grid of d, whose
    error falls faster than any power of its step.

    Args:
        n_wells: Number of wells, N; y has shape [..., N, 2].
        a: Tilt of the wells.
        b: Curvature of the barrier; negative for two wells.
        c: What confines d; positive.
        temperature: T₀, kelvin.

    Raises:
        EnergyInputError: No well, or c is not positive.
    """

    def __init__(
        self,
        *,
        n_wells: int = 16,
        a: float = -0.5,
        b: float = -6.0,
        c: float = 1.0,
        temperature: float = 300.0,
    ) -> None:
        if n_wells < 1:
            raise EnergyInputError(f"Expected n_wells >= 1, got {n_wells}.")
        if not c > 0:
            raise EnergyInputError(f"Expected c > 0, which confines the well, got {c}.")
        super().__init__(n_wells, 2, temperature=temperature)
        self.a, self.b, self.c = a, b, c

    def reduced(self, y: Tensor) -> Tensor:
        """Return u(y), summed over the wells."""
        d, v = y.unbind(-1)
        return (self._quartic(d) + 0.5 * v.square()).sum(-1)

    def log_z(self, temperature: float) -> float:
        """Return N (log ∫ exp(-(a d + b d² + c d⁴) T₀/T) dd + log(2π T/T₀) / 2)."""
        d, log_p = self._grid(temperature)
        log_z_d = float(torch.logsumexp(log_p, 0) + (d[1] - d[0]).log())
        log_z_v = 0.5 * math.log(2 * math.pi / self._sharpness(temperature))
        return self.n_atoms * (log_z_d + log_z_v)

    def moments(self, temperature: float) -> Moments:
        """Return the moments of d by quadrature; v has mean 0 and variance T/T₀."""
        d, log_p = self._grid(temperature)
        p = torch.softmax(log_p, 0)
        mean = p @ d
        one = torch.tensor([float(mean), 0.0], dtype=torch.float64)
        variance = torch.tensor(
            [float(p @ (d - mean).square()), 1 / self._sharpness(temperature)],
            dtype=torch.float64,
        )
        return Moments(one.repeat(self.n_atoms), torch.diag(variance.repeat(self.n_atoms)))

    def sample(self, n: int, temperature: float, *, generator: torch.Generator) -> Tensor:
        """Draw d through its inverse distribution function, tabulated to 1e-6, and v."""
        d, log_p = self._grid(temperature)
        p = torch.softmax(log_p, 0)
        below = torch.cumsum(p, 0) - 0.5 * p  # probability left of each grid point
        shape = (n, self.n_atoms)
        options: Any = {"generator": generator, "device": generator.device, "dtype": torch.float64}
        level = torch.rand(shape, **options).cpu()
        right = torch.searchsorted(below, level).clamp(1, len(d) - 1)
        left = right - 1
        gap = (below[right] - below[left]).clamp_min(torch.finfo(torch.float64).tiny)
        inside = ((level - below[left]) / gap).clamp(0.0, 1.0)
        v = _normal(n, self.n_atoms, generator).cpu()
        return torch.stack(
            [d[left] + inside * (d[right] - d[left]), v / math.sqrt(self._sharpness(temperature))],
            dim=-1,
        )

    def basins(self, y: Tensor) -> Tensor:
        """Return on which side of each well y is, left sides first, K = 2N."""
        left = y[..., 0] < 0
        return torch.cat([left, ~left], dim=-1)

    def _quartic(self, d: Tensor) -> Tensor:
        return d * (self.a + d * (self.b + self.c * d.square()))

    def _grid(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Points d that hold all but 1e-26 of the density, and its logarithm up to a constant."""
        sharpness = self._sharpness(temperature)
        # Left and right of all stationary points, so that u only grows further out.
        edge = 1.0 + math.sqrt(abs(self.b) / self.c) + (abs(self.a) / self.c) ** (1 / 3)
        while True:
            d = torch.linspace(-edge, edge, 2**15 + 1, dtype=torch.float64)
            log_p = -sharpness * self._quartic(d)
            if float(torch.maximum(log_p[0], log_p[-1]) - log_p.max()) < -60.0:
                return d, log_p
            edge *= 1.25


class DoubleWell(ManyWell):
    """One well of `ManyWell`, u = a d + b d² + c d⁴ + v²/2 in the plane.

    Args:
        a: Tilt of the wells.
        b: Curvature of the barrier; negative for two wells.
        c: What confines d; positive.
        temperature: T₀, kelvin.
    """

    def __init__(
        self, *, a: float = -0.5, b: float = -6.0, c: float = 1.0, temperature: float = 300.0
    ) -> None:
        super().__init__(n_wells=1, a=a, b=b, c=c, temperature=temperature)
