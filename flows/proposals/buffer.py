"""Stored samples of a frozen flow."""

import math
from dataclasses import replace
from typing import Literal

import torch

from energies.base import Target
from flows import parallel
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.metrics.weights import clip_log_weights, effective_size, known, resample
from flows.paths.base import Path
from flows.paths.rungs import check_effective_size
from flows.proposals.base import Proposal, flow_samples
from flows.proposals.epochs import Epochs
from flows.state import State
from flows.types import Samples

Resampling = Literal["multinomial", "systematic"]


class Buffer(Proposal):
    """μ = the flow as it was when the buffer was filled, or that resampled towards the aim.

    The buffer is filled from the flow in training whenever the path advances, and every `refresh`
    steps; energies are spent there and nowhere else. Its samples are used in random order, each
    once before any twice. Without resampling they keep log_q and log_w of the frozen flow. With
    it they are drawn by their weights and count from then on as points of the aim itself, of
    equal weight; the largest share `clip` of the weights may be cut before, which biases them and
    is logged (`buffer_clipped_mass`, the share of all weight that was cut off).

    Of several processes each draws its share of the samples; the weights of all of them decide
    what each stores, which is as many.

    Args:
        size: Number of samples.
        resample: "multinomial", "systematic", or None.
        clip: Share of the samples whose weights are cut to the smallest of theirs; 0 for none.
        refresh: Steps after which the buffer is filled again; None for only with the path.

    References:
        arXiv 2501.19077 (TA-BG) and 2510.18460 (CMT) train on such buffers.
    """

    def __init__(
        self,
        size: int = 100_000,
        *,
        resample: Resampling | None = "multinomial",
        clip: float = 0.0,
        refresh: int | None = None,
    ) -> None:
        if size < 2:
            raise FlowInputError(f"Expected size >= 2 of the buffer, got {size}.")
        if resample not in ("multinomial", "systematic", None):
            raise FlowInputError(
                f"Expected resample to be multinomial, systematic or null, got {resample!r}."
            )
        if not 0 <= clip < 1:
            raise FlowInputError(f"Expected clip in [0, 1), got {clip}.")
        if clip > 0 and resample is None:
            raise FlowInputError(f"Expected clip = 0 without resampling, got {clip}.")
        if refresh is not None and refresh < 1:
            raise FlowInputError(f"Expected refresh >= 1 steps, got {refresh}.")
        self.size, self.resample, self.clip, self.refresh = size, resample, clip, refresh
        self._samples: Samples | None = None
        self._epochs = Epochs(0)
        self._rung, self._aim, self._draws = 0, math.nan, 0
        self._figures: dict[str, float] = {}

    def draw(
        self,
        flow: Flow,
        target: Target,
        path: Path,
        n: int,
        *,
        reparametrised: bool,
        generator: torch.Generator,
    ) -> Samples:
        """Return the next n stored points."""
        if (batch := n * parallel.n_ranks()) > self.size:
            raise FlowInputError(
                f"Expected a batch of at most {self.size}, the size of the buffer, got {batch}."
            )
        if self._samples is None or self._rung != path.rung or self._draws == self.refresh:
            self._keep(self._fresh(flow, target, path, n, generator), path, generator)
        assert self._samples is not None
        self._draws += 1
        samples = self._samples[self._epochs.rows(n, self._samples.x.device, generator)]
        return samples if path.aim == self._aim else path.weigh(target, samples)

    def renew(
        self, flow: Flow, target: Target, path: Path, n: int, *, generator: torch.Generator
    ) -> None:
        """Fill the buffer and let the path take its next aim from it."""
        samples = self._fresh(flow, target, path, n, generator)
        self._keep(path.advance(flow, target, samples), path, generator)

    def _fresh(
        self, flow: Flow, target: Target, path: Path, n: int, generator: torch.Generator
    ) -> Samples:
        return flow_samples(flow, target, path, self.size, chunk=n, generator=generator)

    def _keep(self, samples: Samples, path: Path, generator: torch.Generator) -> None:
        """Store this rank's share of the flow's samples, weighed towards the current aim."""
        log_w = known(samples.log_w)
        effective = check_effective_size(log_w, "samples in the buffer")
        self._figures = {"buffer_ess": effective / self.size}
        if self.clip > 0:
            cut = clip_log_weights(log_w, self.clip)
            self._figures["buffer_clipped_ess"] = effective_size(cut) / self.size
            self._figures["buffer_clipped_mass"] = -math.expm1(
                float(cut.logsumexp(0) - log_w.logsumexp(0))
            )
            log_w = cut
        if self.resample is None:
            samples = samples[parallel.own_rows(self.size, log_w.device)]
        else:
            n = parallel.share(self.size)
            rows = resample(log_w.to(generator.device), n, generator, self.resample)
            log_z = log_w.logsumexp(0) - math.log(self.size)
            samples = samples[rows.to(log_w.device)]
            samples = replace(samples, log_q=samples.log_p - log_z, log_w=log_z.repeat(n))
        self._samples, self._epochs = samples, Epochs(len(samples))
        self._rung, self._aim, self._draws = path.rung, path.aim, 0

    def figures(self) -> dict[str, float]:
        """Return ESS of the stored samples when filled, and what clipping cut off."""
        return dict(self._figures)

    def state_dict(self) -> State:
        """Return the samples and the place in them."""
        return {
            "samples": None if self._samples is None else self._samples.tensors(),
            "epochs": self._epochs.state_dict(),
            "place": (self._rung, self._aim, self._draws),
            "figures": self._figures,
        }

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        device = flow.base.scale.device
        if state["samples"] is not None:
            self._samples = Samples(**state["samples"]).to(device)
        self._epochs = Epochs.from_state(state["epochs"], device)
        self._rung, self._aim, self._draws = state["place"]
        self._figures = dict(state["figures"])
