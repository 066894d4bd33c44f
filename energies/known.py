"""Values whose gradients were found with them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def attach(rows: Tensor, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Make values of rows differentiable in the rows, once: a second derivative raises.

    Args:
        rows: [n, ...].
        values: Numbers of each row, [n] each.
        gradients: Their gradients, [n, ...] each.
    """
    attached: tuple[Tensor, ...] = _Attach.apply(rows, *values, *gradients)  # type: ignore[no-untyped-call]
    return list(attached)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        n_values = len(columns) // 2
        ctx.save_for_backward(rows, *columns[n_values:])
        return tuple(value.view_as(value) for value in columns[:n_values])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *gradients = ctx.saved_tensors
        total: Any = 0.0
        for grad, gradient in zip(grads, gradients, strict=True):
            # Without _Fixed the second derivative would be a silent zero.
            fixed = _Fixed.apply(rows, gradient.to(rows))  # type: ignore[no-untyped-call]
            total = total + fixed * grad.to(rows).reshape(-1, *(1,) * (rows.ndim - 1))
        return total, *(None,) * (2 * len(gradients))


class _Fixed(torch.autograd.Function):
    """Hand out a known gradient, and raise when somebody asks how it changes with the rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError(
            "Expected at most one derivative of an energy that is compiled or computed by OpenMM, "
            "got a second one. ForceField.from_openmm(system), not compiled, has two."
        )
