"""Where a falling function crosses zero."""

from collections.abc import Callable


def falling_root(f: Callable[[float], float], low: float, high: float, *, n: int = 40) -> float:
    """Return the largest x of [low, high] known with f(x) >= 0, for a falling f; `low` if none.

    Bisection that leaps to where the secant crosses zero (the Illinois rule): some ten calls for
    a smooth f, never more than n, and an answer for one that is neither smooth nor quite falling.

    Args:
        f: The function; each call may cost a pass over a buffer.
        low: Left end.
        high: Right end.
        n: Most calls after the two at the ends.
    """
    f_low, f_high = f(low), f(high)
    if f_low <= 0:
        return low
    if f_high >= 0:
        return high
    previous = 0
    for k in range(n):
        secant = high - f_high * (high - low) / (f_high - f_low)
        middle = 0.5 * (low + high) if k % 4 == 3 else secant
        if high - low <= 1e-9 * max(abs(low), abs(high)) or not low < middle < high:
            break
        value = f(middle)
        side = 1 if value >= 0 else -1
        if side > 0:
            low, f_low = middle, value
            f_high = 0.5 * f_high if previous == side else f_high
        else:
            high, f_high = middle, value
            f_low = 0.5 * f_low if previous == side else f_low
        if value == 0:
            break
        previous = side
    return low
