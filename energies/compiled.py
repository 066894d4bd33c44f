"""Compiled functions of rows, on every core: what makes energies fast on a CPU.

Code that a compiler makes of an energy is fastest where all that it writes stays in the cache of
one core, and where no core waits for another. So a batch is cut into pieces, and each core runs
the whole code on pieces of its own, on one thread, instead of all of them sharing every loop of
one batch. The pieces have one size: whatever batch comes, nothing is compiled again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from energies.known import attach

Function = Callable[[Tensor], tuple[Tensor, ...]]

_ONE_THREAD: dict[str, Any] = {
    "cpp.threads": 1,
    "cpp_wrapper": True,  # its code lets other threads of Python run, the usual one does not
}


class Compiled:
    """A function of rows, with its gradients found in the same pass.

    Autograd would make two graphs of compiled code, the second of which starts again from the
    beginning; here it is one, in which nothing is computed twice. There is no second derivative:
    asking for it raises. A row whose gradient is not finite has gradient zero.

    Args:
        function: Takes rows [n, ...] to numbers of each of them, [n] each. No row may look at
            another.
        piece: Rows at a time on a CPU. A batch of another size is filled up.
    """

    def __init__(self, function: Function, *, piece: int) -> None:
        self.function, self.piece = function, piece
        self._code: dict[tuple[str, bool], Function] = {}
        self._met: set[tuple[bool, torch.dtype, torch.Size]] = set()

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what the function does of rows [n, ...], differentiable once."""
        if len(rows) == 0:
            return self.function(rows)
        if not (rows.requires_grad and torch.is_grad_enabled()):
            return self._run(rows, slopes=False)
        found = self._run(rows, slopes=True)
        return tuple(attach(rows, found[: len(found) // 2], found[len(found) // 2 :]))

    def _run(self, rows: Tensor, *, slopes: bool) -> tuple[Tensor, ...]:
        """Values, and with `slopes` the gradients of each, [n, ...], after them."""
        code = self._compiled(rows.device.type, slopes)
        if rows.device.type != "cpu":
            with torch.no_grad():
                return code(rows)
        pieces = list(rows.detach().contiguous().split(self.piece))  # type: ignore[no-untyped-call]
        # Nothing else is copied: torch would share the work among threads of its own, which go on
        # spinning for a while in the way of the pieces.
        if missing := self.piece - len(pieces[-1]):
            filling = pieces[-1][:1].expand(missing, *rows.shape[1:])
            pieces[-1] = torch.cat([pieces[-1], filling])
        cores = torch.get_num_threads()
        kind = slopes, rows.dtype, rows.shape[1:]
        if kind not in self._met:  # compiled now, by this thread alone
            _quietly(code, pieces[0])
            self._met.add(kind)
        spread = _workers(cores).map if cores > 1 and len(pieces) > 1 else map
        done = [*spread(lambda piece: _quietly(code, piece), pieces)]
        return tuple(torch.cat(column)[: len(rows)] for column in zip(*done, strict=True))

    def _compiled(self, device: str, slopes: bool) -> Function:
        if (device, slopes) not in self._code:
            self._code[device, slopes] = torch.compile(
                self._with_slopes if slopes else self.function,
                dynamic=False,
                fullgraph=True,
                options=_ONE_THREAD if device == "cpu" else None,
            )
        return self._code[device, slopes]

    def _with_slopes(self, rows: Tensor) -> tuple[Tensor, ...]:
        def total(rows: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            values = self.function(rows)
            return tuple(value.sum() for value in values), values

        sums, pull, values = torch.func.vjp(total, rows, has_aux=True)  # type: ignore[misc]
        slopes = []
        for k in range(len(sums)):
            unit = tuple(torch.full_like(s, float(j == k)) for j, s in enumerate(sums))
            slopes.append(sound(pull(unit)[0]))
        return (*values, *slopes)


def sound(gradient: Tensor) -> Tensor:
    """Return a gradient [n, ...], zero for every row where it is not finite.

    A frame of energy +inf gets its zero force here: inside an energy its gradient is 0 · inf. NaN
    and inf spread within a row but never between rows, so a row is all or none.
    """
    finite = torch.isfinite(gradient).flatten(1).all(1)
    return torch.where(finite.reshape(-1, *(1,) * (gradient.ndim - 1)), gradient, 0.0)


def rows_in_cache(n_atoms: int) -> int:
    """Return how many conformations to take at a time: few enough for a core's cache.

    Numbers of all pairs of 512 times 22 atoms are half a MiB in single precision. A power of two
    divides the batches that people choose.
    """
    most = min(max(2**18 // n_atoms**2, 16), 1024)
    return int(1 << (most.bit_length() - 1))


def _quietly(code: Function, rows: Tensor) -> tuple[Tensor, ...]:
    """Run code without autograd, which each thread would else have on for itself."""
    with torch.no_grad():
        return code(rows)


@cache
def _workers(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="energies")
