"""Fixed sparse linear maps whose gradient is a gather, never a scatter.

Energies are sums over pairs, angles... of gathered coordinates. Autograd's adjoint of a gather is
an atomic scatter, by far the slowest step of a force call on a CPU. The maps here are known in
advance, so the adjoint is stored as a padded table of its own and is a gather and a sum too.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Table = tuple[Tensor, Tensor]

WIDEST = 8
"""Most entries in a row that are added one by one; a wider matrix is multiplied as a dense one,
which is as fast for tens of atoms and compiles in half the time."""


def _table(rows: Sequence[Sequence[tuple[int, float]]], n_columns: int) -> Table:
    """Return columns [M, K] and weights [M, K, 1] of rows of (column, weight), padded to K.

    A matrix with a row of more than `WIDEST` entries, or with no entry at all, becomes dense:
    columns [M, 0], weights [M, N].
    """
    width = max((len(row) for row in rows), default=0)
    if not 0 < width <= WIDEST:
        dense = torch.zeros(len(rows), n_columns, dtype=torch.float64)
        for m, row in enumerate(rows):
            for column, weight in row:
                dense[m, column] += weight
        return torch.zeros(len(rows), 0, dtype=torch.int64), dense
    columns = torch.zeros(len(rows), width, dtype=torch.int64)
    weights = torch.zeros(len(rows), width, 1, dtype=torch.float64)
    for m, row in enumerate(rows):
        for k, (column, weight) in enumerate(row):
            columns[m, k], weights[m, k, 0] = column, weight
    return columns, weights


def _apply(x: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """y[m] = sum over k of weights[m, k] x[columns[m, k]], x [N, B] -> y [M, B]."""
    width = columns.shape[1]
    if width == 0:
        return weights @ x
    # A loop of row gathers vectorises along the batch when compiled; a gather to [M, K, B] and a
    # sum over K does not.
    y = x[columns[:, 0]] * weights[:, 0]
    for k in range(1, width):
        y = y + x[columns[:, k]] * weights[:, k]
    return y


class _Linear(torch.autograd.Function):
    """y = A x with both A and its transpose in padded rows; differentiable any number of times."""

    @staticmethod
    def forward(x: Tensor, a: Tensor, wa: Tensor, at: Tensor, wat: Tensor) -> Tensor:
        return _apply(x, a, wa)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        a, wa, at, wat = ctx.saved_tensors
        return _Linear.apply(grad, at, wat, a, wa), None, None, None, None  # type: ignore[no-untyped-call]


class SparseMap(nn.Module):
    """A constant sparse matrix A [M, N] applied along the first dimension.

    Args:
        rows: For each of M outputs its (column, weight) entries.
        n_columns: N.
    """

    columns: Tensor
    weights: Tensor
    t_columns: Tensor
    t_weights: Tensor

    def __init__(self, rows: Sequence[Sequence[tuple[int, float]]], n_columns: int) -> None:
        super().__init__()
        transposed: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for m, row in enumerate(rows):
            for column, weight in row:
                transposed[column].append((m, weight))
        forward = _table(rows, n_columns)
        backward = _table([transposed[n] for n in range(n_columns)], len(rows))
        self.register_buffer("columns", forward[0])
        self.register_buffer("weights", forward[1])
        self.register_buffer("t_columns", backward[0])
        self.register_buffer("t_weights", backward[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return A x, [M, B], for x [N, B]."""
        y: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
            x, self.columns, self.weights, self.t_columns, self.t_weights
        )
        return y

    def transpose(self, y: Tensor) -> Tensor:
        """Return Aᵀ y, [N, B], for y [M, B]."""
        x: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
            y, self.t_columns, self.t_weights, self.columns, self.weights
        )
        return x


def take(indices: Sequence[int], n: int) -> SparseMap:
    """Return the map x -> x[indices]."""
    return SparseMap([[(i, 1.0)] for i in indices], n)


def difference(tails: Sequence[int], heads: Sequence[int], n: int) -> SparseMap:
    """Return the map x -> x[heads] - x[tails]."""
    return SparseMap([[(j, 1.0), (i, -1.0)] for i, j in zip(tails, heads, strict=True)], n)
