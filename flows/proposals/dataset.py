"""Points that were there before: data, biased or not."""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from energies.base import Evaluation, Target
from flows import parallel
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.paths.base import Path
from flows.proposals.base import Proposal
from flows.proposals.epochs import Epochs
from flows.state import State
from flows.types import Samples, Weights

Arrays = Mapping[str, NDArray[Any]]

_GIVES = {
    "temperature": Weights.RELATIVE,
    "log_q": Weights.ABSOLUTE,
    "log_w": Weights.RELATIVE,
    "none": Weights.NONE,
}


class Points(Proposal):
    """μ = a set of points, used in random order, each once before any twice.

    What is known of the density that drew them is, in this order: the Boltzmann density of the
    same energy at `temperature`, log_q, or log_w towards the last aim; else nothing, and weights
    are 0 in their logarithm. Potentials are never taken over from a file, which may speak of
    another energy: the first step evaluates all points once. Several processes share them.

    Args:
        arrays: x [n, D] in flow coordinates or xyz [n, N, 3] in nm; if known log_q or log_w, [n].
        temperature: T of the points, kelvin, if they are unbiased samples of this very energy.
        source: What to call them in messages.
    """

    def __init__(
        self, arrays: Arrays, *, temperature: float | None = None, source: str = "the data"
    ) -> None:
        names = {"x", "xyz", "log_q", "log_w"} & set(arrays)
        if not {"x", "xyz"} & names:
            raise FlowInputError(
                f"Expected x [n, D] or xyz [n, N, 3] in {source}, got only {sorted(arrays)}."
            )
        if temperature is not None and not temperature > 0:
            raise FlowInputError(f"Expected temperature > 0 kelvin of data, got {temperature}.")
        self.source, self.temperature = source, temperature
        key = "x" if "x" in names else "xyz"
        self._points = torch.as_tensor(np.asarray(arrays[key]))
        self._known: torch.Tensor | None = None
        if not torch.isfinite(self._points).all():
            raise FlowInputError(f"Expected finite {key} in {source}, got NaN or infinity.")
        kinds = [k for k in ("log_q", "log_w") if k in names]
        self._kind = "temperature" if temperature is not None else kinds[0] if kinds else "none"
        self.gives = _GIVES[self._kind]
        if self._kind in kinds:
            self._known = torch.as_tensor(np.asarray(arrays[self._kind]), dtype=torch.float64)
            if self._known.shape != self._points.shape[:1]:
                raise FlowInputError(
                    f"Expected {self._kind} of shape [{len(self._points)}] in {source}, "
                    f"got {list(self._known.shape)}."
                )
        self._cartesian = key == "xyz"
        self._samples: Samples | None = None
        self._epochs = Epochs(0)

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
        """Return the next n points."""
        if (batch := n * parallel.n_ranks()) > len(self._points):
            raise FlowInputError(
                f"Expected at least a batch, {batch} points, in {self.source}, "
                f"got {len(self._points)}."
            )
        if self._samples is None:
            self._samples = self._evaluated(flow, target, path, n)
            self._epochs = Epochs(len(self._samples))
        rows = self._epochs.rows(n, self._samples.x.device, generator)
        samples = path.weigh(target, self._samples[rows])
        if self.gives > Weights.NONE:
            return samples
        zero = torch.zeros_like(samples.log_q)
        return replace(samples, log_q=zero, log_w=zero)

    @torch.no_grad()
    def _evaluated(self, flow: Flow, target: Target, path: Path, chunk: int) -> Samples:
        """Return this rank's points with their potentials, `chunk` rows at a time."""
        scale = flow.base.scale
        own = parallel.own_rows(len(self._points), self._points.device)
        points, n = self._points[own].to(scale), len(own)
        x = target.from_xyz(points) if self._cartesian else points
        if x.shape[1:] != (flow.dim,):
            raise FlowInputError(
                f"Expected x of shape [n, {flow.dim}] in {self.source}, got {list(x.shape)}."
            )
        zero = torch.zeros(chunk, dtype=torch.float64, device=scale.device)
        starts = [
            min(k, n - chunk) for k in range(0, n, chunk)
        ]  # the last one whole, for its shape
        parts = [path.evaluate(target, x[k : k + chunk], zero) for k in starts]
        parts[-1] = parts[-1][chunk * len(parts) - n :]
        samples = Samples.cat(parts)
        e = Evaluation(samples.potential, samples.log_jac)
        if self.temperature is not None:
            return replace(samples, log_q=target.log_prob(e, self.temperature))
        if self._known is None:
            return samples
        known = self._known[own].to(scale.device)
        if self._kind == "log_w":
            known = target.log_prob(e, path.end) - known
        return replace(samples, log_q=known)

    def state_dict(self) -> State:
        """Return the evaluated points and the place in them."""
        samples = None if self._samples is None else self._samples.tensors()
        return {"samples": samples, "epochs": self._epochs.state_dict()}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        device = flow.base.scale.device
        if state["samples"] is not None:
            self._samples = Samples(**state["samples"]).to(device)
        self._epochs = Epochs.from_state(state["epochs"], device)


class Dataset(Points):
    """The points of an npz file, such as the samples.npz of an evaluation.

    Args:
        path: The file; its arrays are those of `Points`.
        temperature: T of the points, kelvin, if they are unbiased samples of this very energy.
    """

    def __init__(self, path: str, *, temperature: float | None = None) -> None:
        file = File(path)
        if not file.is_file():
            raise FlowInputError(f"Expected path of the data set to be a file, got {path}.")
        try:
            with np.load(file) as arrays:
                wanted = {k: arrays[k] for k in ("x", "xyz", "log_q", "log_w") if k in arrays}
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FlowInputError(
                f"Expected an npz file of numbers at {path}, got one that cannot be read."
            ) from error
        super().__init__(wanted, temperature=temperature, source=path)
