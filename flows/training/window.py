"""Figures of the steps between two rows of the log."""

import math

import torch
from torch import Tensor

from flows.types import Samples

NAMES = ("loss", "grad_norm", "ess", "log_z", "nonfinite_fraction", "skipped")


class Window:
    """Collects figures on the device, step by step; they are read once a row.

    Attributes:
        rows: One tensor [len(NAMES)] a step.
    """

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, loss: Tensor, norm: Tensor, samples: Samples) -> None:
        """Take the figures of one step: scalars, and the weights of its points."""
        finite = samples.finite
        log_w = torch.where(finite, samples.log_w, -torch.inf)
        # (Σw)² / (N Σw²), as a tensor: the reporting functions wait for the device
        ess = torch.exp(2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)) / len(samples)
        log_z = log_w.logsumexp(0) - math.log(len(samples))
        figures = (loss, norm, ess, log_z, (~finite).double().mean(), ~torch.isfinite(norm))
        self.rows.append(torch.stack([f.detach().double() for f in figures]))

    def close(self) -> dict[str, float]:
        """Return the means since the last call and start anew; skipped steps are counted."""
        rows = torch.stack(self.rows)
        self.rows = []
        means = dict(zip(NAMES, rows.nanmean(0).tolist(), strict=True))
        means["skipped"] = float(rows[:, NAMES.index("skipped")].sum())
        return means
