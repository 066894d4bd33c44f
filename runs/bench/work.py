"""The work of a training step that no code can avoid, and the time it takes alone: the floor."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flows.conditioners import Conditioner

Shape = tuple[int, int]


class Work(NamedTuple):
    """What the matrix products and the optimizer of a step do.

    Attributes:
        flops: Floating-point operations of the products: for a matrix [a, b] and n points 2abn
            forward, as many for its own gradient, and as many for that of what it acts on.
        bytes: Memory that is read and written if every product reads its two operands from memory
            and writes its result there, each once, and Adam reads weights, gradients and two
            moments and writes back all but the gradients.
    """

    flops: float
    bytes: float

    @classmethod
    def of(cls, flow: nn.Module, n: int) -> "Work":
        """Return the work of a step on n points in single precision."""
        shapes = matrices(flow)
        weights = sum(a * b for a, b in shapes)
        sides = 3 * n * sum(a + b for a, b in shapes)
        adam = 7 * sum(p.numel() for p in flow.parameters())
        return cls(6.0 * n * weights, 4.0 * (3 * weights + sides + adam))


def matrices(flow: nn.Module) -> list[Shape]:
    """Return the shapes [out, in] of all weight matrices of a flow's conditioners."""
    return [
        (parameter.shape[0], parameter.shape[1])
        for module in flow.modules()
        if isinstance(module, Conditioner)
        for parameter in module.parameters()
        if parameter.dim() == 2
    ]


class Products:
    """The products of a step and nothing else: no activation, no spline, no allocation.

    Inputs and outputs have memory of their own, as they must until the backward pass; gradients
    of outputs are shared between matrices of one size.

    Args:
        shapes: Of the weight matrices [a, b].
        n: Points.
        device: Where.
        batch_last: Whether points lie along the last axis, y [a, n] = W x, or along the first,
            y [n, a] = x Wᵀ: which is faster depends on the library.
    """

    def __init__(
        self, shapes: Sequence[Shape], n: int, *, device: torch.device, batch_last: bool
    ) -> None:
        def points(rows: int) -> Tensor:
            return torch.randn((rows, n) if batch_last else (n, rows), device=device)

        self.batch_last = batch_last
        self.weights = [torch.randn(shape, device=device) for shape in shapes]
        self.inputs = [points(b) for _, b in shapes]
        self.outputs = [points(a) for a, _ in shapes]
        self.slopes = [torch.empty_like(w) for w in self.weights]
        self.gradients = {rows: points(rows) for shape in shapes for rows in shape}
        self.spare = {b: points(b) for _, b in shapes}

    def forward(self) -> None:
        """Do the products of the forward pass."""
        for w, x, y in zip(self.weights, self.inputs, self.outputs, strict=True):
            if self.batch_last:
                torch.mm(w, x, out=y)
            else:
                torch.mm(x, w.T, out=y)

    def backward(self) -> None:
        """Do the products of the backward pass, last matrix first."""
        layers = zip(self.weights, self.inputs, self.slopes, strict=True)
        for w, x, slope in reversed([*layers]):
            g, g_x = self.gradients[w.shape[0]], self.spare[w.shape[1]]
            if self.batch_last:
                torch.mm(g, x.T, out=slope)
                torch.mm(w.T, g, out=g_x)
            else:
                torch.mm(g.T, x, out=slope)
                torch.mm(g, w, out=g_x)

    def step(self) -> None:
        """Do both."""
        self.forward()
        self.backward()


class Copy:
    """A copy from memory to memory, too large for any cache: what bytes cost at the least.

    Args:
        device: Where.
        size: Numbers in single precision.
    """

    def __init__(self, device: torch.device, size: int = 2**26) -> None:
        self.source = torch.ones(size, device=device)
        self.target = torch.empty_like(self.source)
        self.bytes = 2 * self.source.nbytes

    def __call__(self) -> None:
        """Read all and write all."""
        self.target.copy_(self.source)
