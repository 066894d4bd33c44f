"""All pairs of atoms as one dense tensor.

With the N atoms around a ring, every pair is an atom and the one 1, 2, ... or S places further on,
S = N // 2. A pair quantity is therefore a tensor [S, N, B], and the second atoms of all pairs are
a view of the atoms laid out twice. No list of indices is followed, neither forwards nor, for the
forces, backwards, so that a compiler fuses and vectorises all of it. For even N the last row meets
its pairs from both ends: each of them counts half.
"""

from typing import Any

import torch
from torch import Tensor

from energies.forcefield.geometry import Vector, dot, norm


class _Spread(torch.autograd.Function):
    """x [N, B] -> (x[i], x[i + s + 1]) around the ring, [S, N, B] each."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return _ends(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        return collect(first, second)


class _Collect(torch.autograd.Function):
    """The transpose of `_Spread`: x[j] = Σ over s of first[s, j] + second[s, j - s - 1]."""

    @staticmethod
    def forward(first: Tensor, second: Tensor) -> Tensor:
        return first.sum(0) + _from_behind(second).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return spread(grad)


class _Pull(torch.autograd.Function):
    """f[i] = Σ over the pairs of i of w (x[i] - x[j]), for three components x at once.

    Bilinear, and symmetric in x: both derivatives are made of the same two operations.
    """

    @staticmethod
    def forward(w: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Vector:
        w = stored(w)
        behind = _from_behind(w)

        def pull(x: Tensor) -> Tensor:
            one, two = _ends(x)
            return (w * (one - two)).sum(0) + (behind * (one - _behind(x))).sum(0)

        return pull(x), pull(y), pull(z)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Vector
    ) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        weights, x, y, z = ctx.saved_tensors
        along = dot(_apart((x, y, z)), _apart((u, v, w)))
        return along, *_Pull.apply(weights, u, v, w)  # type: ignore[no-untyped-call]


class _Distances(torch.autograd.Function):
    """|x[i] - x[j]| of every pair.

    What all terms together say about a distance goes back to the atoms in one pass, as a single
    number for each pair; autograd would move three, first ends and second ends apart.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return norm(_apart((x, y, z)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Vector, output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Vector:
        x, y, z, r = ctx.saved_tensors
        pulled: Vector = _Pull.apply(grad / r, x, y, z)  # type: ignore[no-untyped-call]
        return pulled


def stored(x: Tensor) -> Tensor:
    """Return x, which a compiler then writes to memory once.

    Otherwise it computes again for every reader what looks cheap to it.
    """
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def _ends(x: Tensor) -> tuple[Tensor, Tensor]:
    (n, b), s = x.shape, len(x) // 2
    twice = torch.cat([x, x[:s]])
    # Both are views of what a compiler has to store: what is cheap for an atom would otherwise be
    # computed again in each of its pairs.
    return twice.as_strided((s, n, b), (0, b, 1), 0), twice.as_strided((s, n, b), (b, b, 1), b)


def _behind(x: Tensor) -> Tensor:
    """Return x[i - S + t] at [t, i], a view of the ring: partners met from their second end."""
    (n, b), s = x.shape, len(x) // 2
    return torch.cat([x[n - s :], x]).as_strided((s, n, b), (b, b, 1), 0)


def _from_behind(pairs: Tensor) -> Tensor:
    """Return at [t, i] the pair in which i is second and `_behind` first, [S, N, B]."""
    s, n, b = pairs.shape
    turned = stored(pairs).flip(0)
    turned = torch.cat([turned[:, n - s :], turned], dim=1)
    return turned.as_strided((s, n, b), ((n + s + 1) * b, b, 1), 0)


def _apart(xyz: Vector) -> Vector:
    """Return the vectors from second to first atoms, [S, N, B] each."""
    (x, x2), (y, y2), (z, z2) = (spread(c) for c in xyz)
    return x - x2, y - y2, z - z2


def spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a number of each atom, [N, B], for the first and second atoms of pairs, [S, N, B]."""
    ends: tuple[Tensor, Tensor] = _Spread.apply(x)  # type: ignore[no-untyped-call]
    return ends


def collect(first: Tensor, second: Tensor) -> Tensor:
    """Return what all pairs give their first and second atoms, [S, N, B], added up to [N, B]."""
    x: Tensor = _Collect.apply(first, second)  # type: ignore[no-untyped-call]
    return x


def pair_distances(xyz: Vector) -> Tensor:
    """Return the distance of every pair, nm, [S, N, B], of positions [N, B] each, nm."""
    r: Tensor = _Distances.apply(*xyz)  # type: ignore[no-untyped-call]
    return r


def pair_indices(n_atoms: int) -> tuple[Tensor, Tensor]:
    """Return the first and second atoms of all pairs, int64 [S, N]."""
    first = torch.arange(n_atoms).expand(n_atoms // 2, n_atoms)
    return first, (first + torch.arange(1, n_atoms // 2 + 1)[:, None]) % max(n_atoms, 1)


def pair_weights(n_atoms: int) -> Tensor:
    """Return how much each pair counts: 1, or 1/2 where it is met twice, [S, N]."""
    weights = torch.ones(n_atoms // 2, n_atoms, dtype=torch.float64)
    if n_atoms % 2 == 0:
        weights[-1:] = 0.5
    return weights
