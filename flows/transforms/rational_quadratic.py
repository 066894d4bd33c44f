r"""Monotone rational-quadratic splines for intervals and circles, value and log-slope in one call.

Within a bin of width w, height h, h/w = s and end slopes d0, d1, at θ = (x - left) / w,

    y = bottom + h (s θ² + d0 θ(1-θ)) / D        D = s (1 - 2θ(1-θ)) + (d0 + d1) θ(1-θ)
    y' = (s / D)² M                              M = d1 θ² + 2 s θ(1-θ) + d0 (1-θ)²

All terms of D and M are positive, so neither the division nor the logarithm needs a guard. The
spline maps [-B, B] to itself. On a line its tails are straight with the boundary slopes, which
are free, so it is C1 everywhere; on a circle the two boundary slopes are one number.

Tensors are laid out dimension first, [D, n]: every operation then runs along the contiguous batch
axis, the loop over the few bins is unrolled, and a compiler makes one kernel of the whole. Both
directions have hand-written derivatives; those of the root come from implicit differentiation, so
no derivative ever passes through the solution of the quadratic.

References:
    Durkan, Bekasov, Murray, Papamakarios, Neural spline flows, arXiv 1906.04032.
    Rezende et al., Normalizing flows on tori and spheres, arXiv 2002.02428.
"""

import math
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

MIN_BIN = 1e-4
"""Least width and height of a bin, as a fraction of the domain: the least mass a bin of an angle
can hold. A barrier between basins holds less than a basin of 0.2 %."""
MIN_SLOPE = 1e-3
"""Least slope at a knot; the greatest is its reciprocal."""

_LOG_SLOPE = -math.log(MIN_SLOPE)


def n_parameters(n_bins: int) -> int:
    """Return the parameters per coordinate: n_bins widths, n_bins heights, n_bins + 1 slopes."""
    return 3 * n_bins + 1


def rational_quadratic(
    x: Tensor, params: Tensor, bound: Tensor, periodic: Tensor
) -> tuple[Tensor, Tensor]:
    """Evaluate y = f(x) in closed form; zero parameters give the identity.

    Args:
        x: Points, [D, n]; those of periodic coordinates in [-B, B].
        params: Unconstrained parameters, [3K + 1, D, n]: K width logits, K height logits, K + 1
            knot slopes. A periodic coordinate takes its last slope from the first.
        bound: Half width B of each coordinate's domain, [D].
        periodic: bool [D], the coordinates that live on a circle.

    Returns:
        y [D, n] and log f'(x) [D, n].
    """
    analytic: Any = _Analytic.apply
    y, log_slope = analytic(x, params, bound[:, None], periodic[:, None])
    return y, log_slope


def rational_quadratic_inverse(
    y: Tensor, params: Tensor, bound: Tensor, periodic: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve f(x) = y for x.

    Args:
        y: Values, [D, n].
        params: As in `rational_quadratic`.
        bound: As in `rational_quadratic`.
        periodic: As in `rational_quadratic`.

    Returns:
        x [D, n] and the log-slope of the inverse, -log f'(x), [D, n].
    """
    root: Any = _Root.apply
    x, log_slope = root(y, params, bound[:, None], periodic[:, None])
    return x, log_slope


class _Analytic(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, params: Tensor, bound: Tensor, periodic: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, params, bound, periodic)
        domain = 2 * bound
        t = x / domain
        below, above, inner = _split(t)
        bins = _bins(params, periodic)
        piece, _ = _locate(inner, bins, along_y=False)
        curve = _Curve.at((inner - piece.left) / piece.width, piece)
        log_slope = _with_tails(below, above, bins, torch.log(curve.slope))
        tail = inner + torch.exp(log_slope) * (t - inner)
        y = torch.where(below | above, tail, piece.bottom + piece.height * curve.rise)
        return domain * y, log_slope

    @staticmethod
    def backward(ctx: Any, g_value: Tensor, g_log: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, params, bound, periodic = ctx.saved_tensors
        g_x, g_params = _Pullback(x, params, bound, periodic).of(g_value, g_log)
        return g_x, g_params, None, None


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, params: Tensor, bound: Tensor, periodic: Tensor
    ) -> tuple[Tensor, Tensor]:
        domain = 2 * bound
        t = y / domain
        below, above, inner = _split(t)
        bins = _bins(params, periodic)
        piece, _ = _locate(inner, bins, along_y=True)
        theta = _solve((inner - piece.bottom) / piece.height, piece)
        log_slope = _with_tails(below, above, bins, torch.log(_Curve.at(theta, piece).slope))
        tail = inner + torch.exp(-log_slope) * (t - inner)
        x = domain * torch.where(below | above, tail, piece.left + piece.width * theta)
        ctx.save_for_backward(x, params, bound, periodic)
        return x, -log_slope

    @staticmethod
    def backward(ctx: Any, g_value: Tensor, g_log: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, params, bound, periodic = ctx.saved_tensors
        pullback = _Pullback(x, params, bound, periodic)
        # From y = f(x, φ): dx = (dy - f_φ dφ) / f', and the log-slope is -log f'(x, φ).
        g_y = (g_value - g_log * pullback.log_slope_x) / pullback.slope
        _, g_params = pullback.of(-g_y, -g_log)
        return g_y, g_params, None, None


class _Bins(NamedTuple):
    """Knots in units of the domain: widths and heights sum to one, K + 1 log-slopes."""

    widths: list[Tensor]
    heights: list[Tensor]
    log_slopes: list[Tensor]


class _Piece(NamedTuple):
    """The one bin every point lies in, [D, n] each."""

    left: Tensor
    width: Tensor
    bottom: Tensor
    height: Tensor
    d0: Tensor
    d1: Tensor


class _Curve(NamedTuple):
    """The rational quadratic of one bin at θ, and what its derivatives share."""

    theta: Tensor
    phi: Tensor
    ratio: Tensor
    D: Tensor
    M: Tensor
    rise: Tensor
    slope: Tensor

    @classmethod
    def at(cls, theta: Tensor, piece: _Piece) -> "_Curve":
        theta = torch.clamp(theta, 0, 1)
        rest = 1 - theta
        phi = theta * rest
        ratio = piece.height / piece.width
        D = ratio * (1 - 2 * phi) + (piece.d0 + piece.d1) * phi
        M = piece.d1 * theta * theta + 2 * ratio * phi + piece.d0 * rest * rest
        rise = (ratio * theta * theta + piece.d0 * phi) / D
        root = ratio / D
        return cls(theta, phi, ratio, D, M, rise, root * root * M)


def _bins(params: Tensor, periodic: Tensor) -> _Bins:
    """Constrain the parameters [3K + 1, D, n]."""
    n_bins = params.shape[0] // 3
    rows = params.unbind(0)
    slopes = [_soft_bound(v) for v in rows[2 * n_bins :]]
    slopes[-1] = torch.where(periodic, slopes[0], slopes[-1])
    return _Bins(_simplex(rows[:n_bins]), _simplex(rows[n_bins : 2 * n_bins]), slopes)


def _simplex(logits: tuple[Tensor, ...]) -> list[Tensor]:
    """Return softmax fractions, each at least MIN_BIN."""
    peak = reduce(torch.maximum, logits)
    parts = [torch.exp(u - peak) for u in logits]
    scale = (1 - len(logits) * MIN_BIN) / reduce(torch.add, parts)
    return [MIN_BIN + scale * part for part in parts]


def _soft_bound(v: Tensor) -> Tensor:
    return v / (1 + v.abs() / _LOG_SLOPE)


def _split(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which points lie below and above the domain, and all points moved into it."""
    return t < -0.5, t > 0.5, torch.clamp(t, -0.5, 0.5)


def _with_tails(below: Tensor, above: Tensor, bins: _Bins, log_slope: Tensor) -> Tensor:
    ends = torch.where(above, bins.log_slopes[-1], log_slope)
    return torch.where(below, bins.log_slopes[0], ends)


def _locate(t: Tensor, bins: _Bins, *, along_y: bool) -> tuple[_Piece, list[Tensor]]:
    """Find each point's bin by comparing with every inner knot: no gather, no search.

    Args:
        t: Points in the domain, [D, n].
        bins: The knots.
        along_y: Compare with the knots' ordinates instead of their abscissae.

    Returns:
        The bins of the points, and the K - 1 masks "at or past inner knot k".
    """
    widths, heights, slopes = bins
    edge_x = edge_y = torch.full_like(t, -0.5)
    left, width, bottom, height = edge_x, widths[0], edge_y, heights[0]
    a0, a1 = slopes[0], slopes[1]
    masks = []
    for k in range(1, len(widths)):
        edge_x = edge_x + widths[k - 1]
        edge_y = edge_y + heights[k - 1]
        past = t >= (edge_y if along_y else edge_x)
        left = torch.where(past, edge_x, left)
        width = torch.where(past, widths[k], width)
        bottom = torch.where(past, edge_y, bottom)
        height = torch.where(past, heights[k], height)
        a0 = torch.where(past, slopes[k], a0)
        a1 = torch.where(past, slopes[k + 1], a1)
        masks.append(past)
    return _Piece(left, width, bottom, height, torch.exp(a0), torch.exp(a1)), masks


def _solve(rise: Tensor, piece: _Piece) -> Tensor:
    """Return θ in [0, 1] at which the bin's curve has risen by the fraction `rise`."""
    ratio = piece.height / piece.width
    rise = torch.clamp(rise, 0, 1)
    b = piece.d0 - rise * (piece.d0 + piece.d1 - 2 * ratio)
    a = ratio - b
    c = -ratio * rise
    root = torch.sqrt(torch.clamp(b * b - 4 * a * c, min=0))
    # One root, written so that neither form subtracts numbers of one sign; b < 0 implies a > 0.
    positive = b > 0
    numerator = torch.where(positive, 2 * c, root - b)
    return numerator / torch.where(positive, -b - root, 2 * a)


class _Pullback:
    """Reverse-mode derivative of (f, log f') at x, with respect to x and the parameters.

    Args:
        x: Points, [D, n].
        params: Unconstrained parameters, [3K + 1, D, n].
        bound: B, [D, 1].
        periodic: bool [D, 1].
    """

    def __init__(self, x: Tensor, params: Tensor, bound: Tensor, periodic: Tensor) -> None:
        self.params, self.domain, self.periodic = params, 2 * bound, periodic
        t = x / self.domain
        self.below, self.above, inner = _split(t)
        self.outside, self.excess = self.below | self.above, t - inner
        self.bins = _bins(params, periodic)
        self.piece, self.masks = _locate(inner, self.bins, along_y=False)
        theta = (inner - self.piece.left) / self.piece.width
        self.curve = curve = _Curve.at(theta, self.piece)
        d0, d1 = self.piece.d0, self.piece.d1
        edge = torch.where(self.below, d0, d1)
        self.slope = torch.where(self.outside, edge, curve.slope)
        bend = 1 - 2 * curve.theta
        M_theta = 2 * (d1 * curve.theta + curve.ratio * bend - d0 * (1 - curve.theta))
        D_theta = (d0 + d1 - 2 * curve.ratio) * bend
        log_slope_t = (M_theta / curve.M - 2 * D_theta / curve.D) / self.piece.width
        self.log_slope_t = torch.where(self.outside, 0.0, log_slope_t)

    @property
    def log_slope_x(self) -> Tensor:
        """Slope of log f' with respect to x, [D, n]."""
        return self.log_slope_t / self.domain

    def of(self, g_value: Tensor, g_log: Tensor) -> tuple[Tensor, Tensor]:
        """Pull cotangents of f and log f', [D, n] each, back to x [D, n] and to the parameters."""
        _, width, _, height, d0, d1 = self.piece
        theta, phi, ratio, D, M, rise, _ = self.curve
        g_y = g_value * self.domain
        g_t = g_y * self.slope + g_log * self.log_slope_t
        # Partial derivatives of rise and of log f' with respect to ratio, d0, d1 at fixed θ.
        gh, lean, pinch = g_y * height / D, 1 - 2 * phi, phi / D
        g_ratio = gh * (theta * theta - rise * lean)
        g_ratio = g_ratio + 2 * g_log * (1 / ratio + phi / M - lean / D)
        g_d0 = gh * phi * (1 - rise) + g_log * ((1 - theta) * (1 - theta) / M - 2 * pinch)
        g_d1 = g_log * (theta * theta / M - 2 * pinch) - gh * phi * rise
        g_width = -(g_t * theta + g_ratio * ratio / width)
        g_height = g_y * rise + g_ratio / width
        edge = g_y * self.slope * self.excess + g_log
        inside = torch.where(self.outside, 0.0, 1.0).to(g_t.dtype)
        g_a0 = torch.where(self.below, edge, inside * g_d0 * d0)
        g_a1 = torch.where(self.above, edge, inside * g_d1 * d1)
        rows = [
            *self._simplex(self.bins.widths, -inside * g_t, inside * g_width),
            *self._simplex(self.bins.heights, inside * g_y, inside * g_height),
            *self._slopes(g_a0, g_a1),
        ]
        return g_t / self.domain, torch.stack(rows)

    def _simplex(self, parts: list[Tensor], g_start: Tensor, g_part: Tensor) -> list[Tensor]:
        """Pull back from the start (the sum of all parts before) and the size of a bin."""
        zero = torch.zeros_like(g_part)
        # Growing a part resizes its own bin and shifts every bin after it.
        own = [g_part, *(torch.where(past, g_part, zero) for past in self.masks)]
        g = [torch.where(past, g_start, o) for past, o in zip(self.masks, own[:-1], strict=True)]
        g.append(own[-1])
        free = [part - MIN_BIN for part in parts]
        mean = reduce(torch.add, [f * g_k for f, g_k in zip(free, g, strict=True)])
        mean = mean / (1 - len(parts) * MIN_BIN)
        return [f * (g_k - mean) for f, g_k in zip(free, g, strict=True)]

    def _slopes(self, g_a0: Tensor, g_a1: Tensor) -> list[Tensor]:
        """Pull back from the log-slopes at both ends of a bin to the K + 1 parameters."""
        zero = torch.zeros_like(g_a0)
        n_bins = len(self.bins.widths)
        always, never = torch.ones_like(self.below), torch.zeros_like(self.below)
        past = [always, always, *self.masks, never, never]  # past[k + 1]: at or past knot k
        g = [
            torch.where(
                past[k + 2],
                zero,
                torch.where(past[k + 1], g_a0, torch.where(past[k], g_a1, zero)),
            )
            for k in range(n_bins + 1)
        ]
        shared = torch.where(self.periodic, g[-1], zero)
        g[0], g[-1] = g[0] + shared, g[-1] - shared
        raw = self.params.unbind(0)[2 * n_bins :]
        bend = [1 + v.abs() / _LOG_SLOPE for v in raw]
        return [g_k / (b * b) for g_k, b in zip(g, bend, strict=True)]
