"""Draw a trained flow's samples on the exact target, and the figures that need nothing else."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from energies.base import Target
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.metrics.weights import (
    clip_log_weights,
    elbo,
    ess,
    ess_curve,
    known,
    log_z,
    mean,
    pareto_k,
    pareto_k_threshold,
    reverse_kl,
    verdict,
)
from flows.paths import Temperature
from flows.proposals.base import flow_chunks
from flows.types import Samples


@torch.no_grad()
def draw_weighted(
    flow: Flow,
    target: Target,
    temperature: float,
    n: int,
    *,
    chunk: int,
    generator: torch.Generator,
) -> Iterator[Samples]:
    """Yield the flow's samples, weighed towards the target, in equal chunks.

    A row whose density has no value gets weight zero, which is what it is worth: it stays among
    the n samples and lowers the ESS. Peak memory is that of one chunk.

    Args:
        flow: A trained flow.
        target: The density over x.
        temperature: T in kelvin.
        n: Number of samples; the last chunk is drawn whole, for its static shape, and cut.
        chunk: Rows at a time in a process, of which all get the samples of all.
        generator: Source of randomness; of several processes each needs a stream of its own.
    """
    for name, value in (("n", n), ("chunk", chunk)):
        if value < 1:
            raise FlowInputError(f"Expected {name} >= 1, got {value}.")
    path = Temperature(temperature)
    for part in flow_chunks(flow, target, path, n, chunk=chunk, generator=generator):
        yield replace(part, log_w=known(part.log_w))


@torch.no_grad()
def forward_report(
    flow: Flow, target: Target, temperature: float, x: Tensor, *, log_z: float, chunk: int
) -> dict[str, float]:
    r"""Return what independent points of the target say about the flow.

    .. math:: \mathrm{EUBO} = E_p[\log \tilde p - \log q], \quad
              \mathrm{KL}(p \,\|\, q) = \mathrm{EUBO} - \log Z

    Args:
        flow: A trained flow.
        target: The density over x.
        temperature: T in kelvin.
        x: Points of the target, [n, D].
        log_z: Its log Z.
        chunk: Rows at a time.
    """
    # The last chunk is filled up, for its static shape, and cut.
    rows = torch.arange(-(-len(x) // chunk) * chunk, device=x.device) % len(x)
    path = Temperature(temperature)
    parts = [
        path.evaluate(target, part, flow.log_prob(part)).log_w
        for part in torch.split(x[rows], chunk)
    ]
    bound = mean(known(torch.cat(parts)[: len(x)]))
    return {
        "eubo": bound.value,
        "eubo_se": bound.se,
        "forward_kl": bound.value - log_z,
        "forward_kl_se": bound.se,
    }


def weight_report(samples: Samples) -> dict[str, Any]:
    """Return the figures that the weights alone give; errors are standard errors.

    Args:
        samples: Weighted samples; `log_w` is -inf where the density has no value.
    """
    log_w, n = samples.log_w, len(samples)
    trust = verdict(log_w)
    z, bound, kl = log_z(log_w), elbo(log_w), reverse_kl(log_w)
    return {
        "n": n,
        "ess": ess(log_w),
        "ess_clip1e-4": ess(clip_log_weights(log_w, 1e-4)),
        "log_z": z.value,
        "log_z_se": z.se,
        "elbo": bound.value,
        "elbo_se": bound.se,
        "reverse_kl": kl.value,
        "reverse_kl_se": kl.se,
        "pareto_k": pareto_k(log_w),
        "pareto_k_threshold": pareto_k_threshold(n),
        "reliable": trust.reliable,
        "verdict": trust.reason,
        "ess_curve": _curve(log_w),
        "nonfinite_fraction": float((~torch.isfinite(log_w)).double().mean()),
        "out_of_domain_fraction": float((samples.log_jac == -torch.inf).double().mean()),
    }


def _curve(log_w: Tensor) -> dict[str, list[Any]]:
    """ESS / N at N = 100, 1000, ... and at all samples: falling means that a tail is missing."""
    n = len(log_w)
    sizes = sorted({n, *(10**k for k in range(2, 9) if 10**k < n)})
    return {"n": sizes, "ess": ess_curve(log_w, sizes).mean.tolist()}
