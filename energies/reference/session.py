"""A whole reference simulation: hot start, burn-in, and production with records."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from energies.errors import EnergyInputError
from energies.reference.diagnostics import configurational_temperature
from energies.reference.tempering import ParallelTempering


@dataclass(frozen=True)
class Plan:
    """How long a simulation lasts, in blocks of equal length.

    Attributes:
        block: Steps a block; replicas are looked at after each block of production.
        hot: Blocks in which all replicas move at the highest temperature, so that they start
            from diverse conformations.
        burn_in: Blocks of parallel tempering that are thrown away.
        production: Blocks that count.
        n_frames: Positions kept at the lowest temperature, about.
    """

    block: int = 50
    hot: int = 100
    burn_in: int = 100
    production: int = 1000
    n_frames: int = 4096

    def __post_init__(self) -> None:
        for name, low in (
            ("block", 1), ("hot", 0), ("burn_in", 0), ("production", 4), ("n_frames", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value != int(value) or value < low:
                raise EnergyInputError(
                    f"Expected plan.{name} >= {low} and a whole number, got {value}."
                )
            object.__setattr__(self, name, int(value))  # 1e3 is one too

    @property
    def n_blocks(self) -> int:
        """Blocks in all."""
        return self.hot + self.burn_in + self.production


class ReferenceSession:
    """Carries parallel tempering through a plan, one block at a time.

    Example:
        >>> while not session.finished:  # doctest: +SKIP
        ...     session.advance()
        >>> session.records["potential"].shape  # doctest: +SKIP
        torch.Size([1000, 8, 128])

    Args:
        tempering: The replicas, not yet moved.
        plan: How long.
        observe: What is recorded of positions [..., N, d]: angles, say, [..., J].

    Attributes:
        records: On the CPU, a row for each block of production S: `potential` (kJ/mol, float64
            [S, K, C]), `temperature` (configurational, kelvin, float32 [S, K, C]), `observed`
            (float32 [S, K, C, J]); and `xyz` (nm, [S', C, N, d]) at the lowest temperature.
        n_blocks: Blocks done.
    """

    def __init__(
        self, tempering: ParallelTempering, plan: Plan, observe: Callable[[Tensor], Tensor]
    ) -> None:
        self.tempering, self.plan, self.observe = tempering, plan, observe
        self.n_blocks = 0
        xyz = tempering.phase.xyz
        n_replicas, rows = xyz.shape[:2], plan.production
        n_columns = observe(xyz[:1, :1]).shape[-1]
        # Blocks from one frame to the next; the last row of each stretch is kept.
        self.stride = min(rows, max(1, rows * tempering.n_chains // plan.n_frames))
        self.records: dict[str, Tensor] = {
            "potential": torch.zeros(rows, *n_replicas, dtype=torch.float64),
            "temperature": torch.zeros(rows, *n_replicas),
            "observed": torch.zeros(rows, *n_replicas, n_columns),
            "xyz": torch.zeros(rows // self.stride, *xyz.shape[1:], dtype=xyz.dtype),
        }

    @property
    def finished(self) -> bool:
        """Whether the plan is fulfilled."""
        return self.n_blocks >= self.plan.n_blocks

    def advance(self) -> None:
        """Do one block."""
        plan, tempering = self.plan, self.tempering
        row = self.n_blocks - plan.hot - plan.burn_in
        if self.n_blocks < plan.hot:
            tempering.heat(plan.block)
        else:
            if row == 0:
                tempering.forget()
            tempering.advance(plan.block)
        if row >= 0:
            self._record(row)
        self.n_blocks += 1

    def _record(self, row: int) -> None:
        phase = self.tempering.phase
        self.records["potential"][row] = phase.potential.cpu()
        self.records["temperature"][row] = configurational_temperature(phase).cpu()
        self.records["observed"][row] = self.observe(phase.xyz).cpu()
        if (row + 1) % self.stride == 0:
            self.records["xyz"][row // self.stride] = phase.xyz[0].cpu()

    def _settings(self) -> dict[str, Any]:
        """What a continued run must have in common with the one it continues."""
        tempering, langevin = self.tempering, self.tempering.langevin
        return {
            "temperatures": tempering.temperatures.tolist(),
            "n_chains": tempering.n_chains,
            "n_atoms": langevin.energy.n_atoms,
            "masses": langevin.masses.tolist(),
            "time_step": langevin.time_step,
            "friction": langevin.friction,
            "swap_every": tempering.swap_every,
            **asdict(self.plan),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint has to hold."""
        return {
            "settings": self._settings(),
            "n_blocks": self.n_blocks,
            "records": self.records,
            "tempering": self.tempering.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, bit for bit on a CPU.

        Args:
            state: From a session with the same settings.

        Raises:
            EnergyInputError: A setting differs.
        """
        stored = state.get("settings", {})
        for name, value in self._settings().items():
            if stored.get(name) != value:
                raise EnergyInputError(
                    f"Expected to continue with the {name} of the checkpoint, "
                    f"{stored.get(name)}, got {value}."
                )
        self.n_blocks = state["n_blocks"]
        self.records = state["records"]
        self.tempering.load_state_dict(state["tempering"])
