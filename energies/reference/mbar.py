"""What replicas at all temperatures together say about one of them (MBAR).

Tests compare with pymbar 4.0.3, to rounding. It is not what runs here: for 1.2e5 energies of six
temperatures it took 2.3 s of CPU time where this took 0.06 s (one thread, without jax, which would
be one more large dependency), and a reference has 2e6 of them. It also reseeds numpy's global
generator, writes warnings on import, and logs rather than raises when it has not converged.
"""

import torch
from torch import Tensor

from energies.base import R
from energies.errors import EnergyInputError


def free_energies(potential: Tensor, temperatures: Tensor, *, tolerance: float = 1e-9) -> Tensor:
    """Return the reduced free energies of all temperatures from samples of each.

    Minimises the convex function whose gradient says that temperature k should hold n samples,

        mean over all samples of log Σ_k exp(f_k - β_k U)  -  mean of f_k,

    by Newton's method, from the thermodynamic integral of the mean energies.

    Args:
        potential: U, kJ/mol, [K, n]: n samples of each temperature.
        temperatures: kelvin, [K].
        tolerance: Largest error of the expected share of a temperature's samples.

    Returns:
        f_k = -log ∫ exp(-β_k U) up to a constant, float64 [K], with f_0 = 0.

    Raises:
        EnergyInputError: Wrong shapes, an energy that is not finite, or temperatures whose
            energies overlap too little for an answer.

    References:
        Shirts, Chodera, Statistically optimal analysis of samples from multiple equilibrium
        states, arXiv:0801.1426.
    """
    if potential.ndim != 2 or len(potential) != len(temperatures):
        raise EnergyInputError(
            f"Expected potential of shape [{len(temperatures)}, n], got {list(potential.shape)}."
        )
    if not bool(potential.isfinite().all()):
        raise EnergyInputError("Expected finite potential, got some that is not.")
    u = potential.to(torch.float64)
    beta = 1 / (R * temperatures.to(u))
    # A shift of U changes f by β times as much, and keeps the exponents small.
    offset = u.mean()
    u = u - offset
    means = u.mean(1)
    steps = 0.5 * (means[1:] + means[:-1]) * beta.diff()
    f = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    share = 1 / len(f)
    for _ in range(50):
        p = (f[:, None] - beta[:, None] * u.flatten()).softmax(0)
        gradient = p.mean(1) - share
        # How many samples might be of either of two neighbours: what ties their f together.
        shared = (p[:-1] * p[1:]).sum(1)
        if float(gradient.abs().max()) < tolerance * share and bool((shared > 1).all()):
            return f - f[0] + (beta - beta[0]) * offset
        hessian = torch.diag(p.mean(1)) - p @ p.T / p.shape[1]
        # Only differences of f matter, so f_0 stays where it is.
        move = torch.linalg.pinv(hessian[1:, 1:], hermitian=True) @ gradient[1:]
        f[1:] -= move * (5.0 / move.norm()).clamp(max=1.0)
    raise EnergyInputError(
        f"Expected temperatures whose energies overlap, got {temperatures.tolist()}."
    )


def log_weights(
    potential: Tensor, temperatures: Tensor, free: Tensor, *, temperature: float
) -> Tensor:
    """Return the log weight of every sample as one of `temperature`.

        log w = -β U - log Σ_k exp(f_k - β_k U)

    Args:
        potential: U, kJ/mol, [K, n] as in `free_energies`.
        temperatures: kelvin, [K].
        free: Of `free_energies`, [K].
        temperature: T, kelvin; any within the range of the ladder.

    Returns:
        float64 [K, n], normalised: their exponentials sum to one.
    """
    if not temperature > 0:
        raise EnergyInputError(f"Expected temperature > 0 kelvin, got {temperature}.")
    u = potential.to(torch.float64)
    beta = 1 / (R * temperatures.to(u))
    log_mixture = torch.full_like(u, -torch.inf)
    for f_k, beta_k in zip(free.to(u), beta, strict=True):
        log_mixture = torch.logaddexp(log_mixture, f_k - beta_k * u)
    log_w = -u / (R * temperature) - log_mixture
    return log_w - log_w.flatten().logsumexp(0)
