"""One flow built by four packages: the same couplings, conditioners and splines.

Every coupling transforms every other coordinate of the line by a rational-quadratic spline whose
parameters come from a perceptron with SiLU; coordinates on circles are left out, as nflows has no
spline for them. Peers have slope 1 where a spline ends, 3K - 1 numbers a coordinate; ours trains
both slopes, a scale and a shift, 3K + 3, and sees a constant: it is the one with more to do. All
have one optimizer. A compiled peer has its coupling layers compiled, with one set of graphs for
all of them, as ours: a layer of zuko is one graph, those of nflows and normflows break at masks.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from flows.build import spline_flow
from flows.compile import compile_flow
from runs.cli import CommandError


@dataclass(frozen=True)
class Architecture:
    """What all packages build.

    Attributes:
        n_couplings: Coupling layers.
        hidden: Widths of each conditioner's hidden layers.
        dim: Coordinates, an even number.
        n_bins: Bins of a spline.
        bound: Half width of its domain.
    """

    n_couplings: int
    hidden: tuple[int, ...]
    dim: int = 60
    n_bins: int = 8
    bound: float = 8.0

    def __str__(self) -> str:
        return f"{self.n_couplings} x ({len(self.hidden)} x {self.hidden[0]})"

    @property
    def masks(self) -> list[Tensor]:
        """The coordinates that each coupling transforms, bool [D]: every other one, in turns."""
        return [torch.arange(self.dim) % 2 == i % 2 for i in range(self.n_couplings)]


@dataclass(frozen=True)
class Contender:
    """A flow of some package as its users run it.

    Attributes:
        name: Package, version, and form.
        call: How it was built.
        module: Holds the parameters.
        log_prob: x [n, D] to log q(x), [n].
        sample: n to points [n, D] and their log q, [n].
    """

    name: str
    call: str
    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], tuple[Tensor, Tensor]]

    @property
    def n_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.module.parameters())

    def trainer(self, x: Tensor) -> Callable[[], None]:
        """Return a step of maximum likelihood on points x [n, D]."""
        optimizer = torch.optim.Adam(self.module.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(-self.log_prob(x).mean())
            optimizer.step()

        return step

    def sampler(self, n: int) -> Callable[[], None]:
        """Return n samples with their log density, without gradient."""

        def draw() -> None:
            with torch.no_grad():
                self.sample(n)

        return draw


def ours(architecture: Architecture, device: torch.device, *, compiled: bool) -> Contender:
    """Build this package's flow, compiled as in a run."""
    flow = spline_flow(
        [False] * architecture.dim,
        n_couplings=architecture.n_couplings,
        hidden=architecture.hidden,
        n_bins=architecture.n_bins,
        tail_bound=architecture.bound,
    ).to(device)
    if compiled:
        compile_flow(flow)
    name = _name("boltzflow", compiled)
    return Contender(name, "spline_flow", flow, flow.log_prob, flow.sample_and_log_prob)


class Perceptron(nn.Sequential):
    """A conditioner as nflows and normflows take it."""

    def __init__(self, hidden: tuple[int, ...], n_inputs: int, n_outputs: int) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise((n_inputs, *hidden)):
            layers += [nn.Linear(a, b), nn.SiLU()]
        super().__init__(*layers, nn.Linear(hidden[-1], n_outputs))
        self.hidden_features = hidden[-1]  # they divide logits by its square root

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Return parameters [n, n_outputs] for x [n, n_inputs]."""
        y: Tensor = super().forward(x)
        return y


def of_nflows(architecture: Architecture, device: torch.device, *, compiled: bool) -> Contender:
    """Build nflows' flow."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        CompositeTransform,
        PiecewiseRationalQuadraticCouplingTransform,
    )

    layers = [
        PiecewiseRationalQuadraticCouplingTransform(
            mask.int(), partial(Perceptron, architecture.hidden), **_splines(architecture)
        )
        for mask in architecture.masks
    ]
    flow = Flow(CompositeTransform(layers), StandardNormal([architecture.dim])).to(device)
    if compiled:
        _compile(layers)
    call = "Flow(CompositeTransform([PiecewiseRationalQuadraticCouplingTransform(...)]))"
    return Contender(
        _name("nflows", compiled), call, flow, flow.log_prob, flow.sample_and_log_prob
    )


def of_normflows(architecture: Architecture, device: torch.device, *, compiled: bool) -> Contender:
    """Build normflows' flow, without the second spline that its wrapper adds to each coupling."""
    import normflows
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

    class Coupling(normflows.flows.Flow):
        """Its coupling layer in its own direction, noise -> data."""

        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.layer = PiecewiseRationalQuadraticCoupling(
                mask.int(), partial(Perceptron, architecture.hidden), **_splines(architecture)
            )

        def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer.inverse(z)

        def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x)

    couplings = [Coupling(mask) for mask in architecture.masks]
    base = normflows.distributions.DiagGaussian(architecture.dim, trainable=False)
    flow = normflows.NormalizingFlow(base, couplings).to(device)
    if compiled:
        _compile([coupling.layer for coupling in couplings])
    call = "NormalizingFlow(DiagGaussian, [PiecewiseRationalQuadraticCoupling(...)])"
    return Contender(_name("normflows", compiled), call, flow, flow.log_prob, flow.sample)


def of_zuko(architecture: Architecture, device: torch.device, *, compiled: bool) -> Contender:
    """Build zuko's flow."""
    from zuko.flows import NICE
    from zuko.transforms import MonotonicRQSTransform

    bins = architecture.n_bins
    flow = NICE(
        architecture.dim,
        transforms=architecture.n_couplings,
        univariate=partial(MonotonicRQSTransform, bound=architecture.bound),
        shapes=[(bins,), (bins,), (bins - 1,)],
        hidden_features=architecture.hidden,
        activation=nn.SiLU,
    ).to(device)
    call = "NICE(univariate=MonotonicRQSTransform, shapes=[(K,), (K,), (K - 1,)])"
    if compiled:
        form = _CompiledZuko(flow)
        return Contender(_name("zuko", compiled), call, flow, form.log_prob, form.sample)
    return Contender(
        _name("zuko", compiled),
        call,
        flow,
        lambda x: flow().log_prob(x),
        lambda n: flow().rsample_and_log_prob((n,)),
    )


class _CompiledZuko:
    """zuko's flow coupling by coupling: a graph of all of them would grow with the depth.

    Its transforms find the indices of their masks when they are made, which no graph can hold;
    they are made once.
    """

    def __init__(self, flow: Any) -> None:
        self.base = flow.base()
        self.couplings = [lazy() for lazy in flow.transform.transforms]
        self.encode = torch.compile(lambda t, x: t.call_and_ladj(x), dynamic=False)
        self.decode = torch.compile(lambda t, z: t.inv.call_and_ladj(z), dynamic=False)

    def log_prob(self, x: Tensor) -> Tensor:
        total: Any = 0.0
        for coupling in self.couplings:
            x, log_det = self.encode(coupling, x)
            total = total + log_det
        log_q: Tensor = self.base.log_prob(x) + total
        return log_q

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        z = self.base.sample((n,))
        log_q = self.base.log_prob(z)
        for coupling in reversed(self.couplings):
            z, log_det = self.decode(coupling, z)
            log_q = log_q - log_det
        return z, log_q


PEERS = {"nflows": of_nflows, "normflows": of_normflows, "zuko": of_zuko}


def check_peers() -> None:
    """Raise CommandError unless every peer is installed."""
    if missing := [name for name in PEERS if importlib.util.find_spec(name) is None]:
        raise CommandError(
            f"Expected the peers {', '.join(PEERS)} to be installed, got no "
            f"{', '.join(missing)}: pip install 'boltzflow[bench]'."
        )


def peers(
    architecture: Architecture, device: torch.device, *, compiled: bool
) -> Iterator[Contender]:
    """Yield every peer as it comes, and compiled as well if asked for."""
    # Without a limit of this size the last layers would run uncompiled in silence.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for build in PEERS.values():
        for form in (False, True) if compiled else (False,):
            yield build(architecture, device, compiled=form)


def _splines(architecture: Architecture) -> dict[str, Any]:
    """Arguments that nflows and normflows share: they have one ancestor."""
    bins, bound = architecture.n_bins, architecture.bound
    return {"num_bins": bins, "tails": "linear", "tail_bound": bound}


def _compile(layers: list[Any]) -> None:
    for layer in layers:
        layer.forward = torch.compile(layer.forward)
        layer.inverse = torch.compile(layer.inverse)


def _name(package: str, compiled: bool) -> str:
    return f"{package} {version(package)}, {'compiled' if compiled else 'eager'}"
