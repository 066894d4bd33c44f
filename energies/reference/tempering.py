"""Parallel tempering: replicas at several temperatures that exchange places along each chain."""

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from energies.base import R
from energies.errors import EnergyInputError
from energies.reference.langevin import Langevin, Phase


def geometric_ladder(low: float, high: float, n: int) -> list[float]:
    """Return `n` temperatures, kelvin, with equal ratios from `low` to `high`.

    With a heat capacity that hardly changes, as that of a small molecule, neighbours then exchange
    equally often everywhere.

    Args:
        low: Lowest temperature, kelvin.
        high: Highest temperature, kelvin; ignored for n = 1.
        n: How many.
    """
    if n < 1:
        raise EnergyInputError(f"Expected n_temperatures >= 1, got {n}.")
    if n > 1 and not 0 < low < high:
        raise EnergyInputError(
            f"Expected the highest temperature above the lowest, got {high} and {low} kelvin."
        )
    return [low * (high / low) ** (k / max(n - 1, 1)) for k in range(n)]


class ParallelTempering:
    """K temperatures x C independent chains, one Langevin replica each.

    Every `swap_every` steps neighbouring temperatures of each chain exchange replicas, pairs
    (0, 1), (2, 3), ... and (1, 2), (3, 4), ... in turn, with probability

        min(1, exp((β_k - β_{k+1}) (U_k - U_{k+1}))),   β = 1/RT,

    velocities scaled by sqrt(T_new / T_old); so each temperature keeps its own distribution. The
    chains know nothing of one another: their spread gives the error of any mean.

    Args:
        langevin: Moves the replicas.
        temperatures: T_0 < T_1 < ..., kelvin; one makes it plain Langevin dynamics.
        xyz: Start, nm, broadcast against [K, C, N, d]: one structure will do.
        n_chains: C.
        swap_every: Steps between exchanges.
        generator: Source of all randomness, on the device of `xyz`.

    Attributes:
        phase: The replicas, [K, C, ...].
        temperatures: float64 [K].
        n_steps: Steps done, those of `heat` left out.
        accepted: Exchanges done between k and k + 1, int64 [K - 1].
        attempted: Exchanges tried, int64 [K - 1].
        round_trips: How often a replica of the chain came back to the lowest temperature from the
            highest, having been at the lowest before, int64 [C].

    Raises:
        EnergyInputError: Temperatures that do not ascend, no chain, or a start without an energy.

    References:
        Sugita, Okamoto, Chem. Phys. Lett. 314, 141 (1999), for molecular dynamics with velocities.
    """

    def __init__(
        self,
        langevin: Langevin,
        temperatures: Sequence[float],
        xyz: Tensor,
        *,
        n_chains: int,
        swap_every: int = 50,
        generator: torch.Generator,
    ) -> None:
        ladder = list(temperatures)
        ascending = all(a < b for a, b in itertools.pairwise(ladder))
        if not (ladder and ladder[0] > 0 and ascending and math.isfinite(ladder[-1])):
            raise EnergyInputError(
                f"Expected temperatures > 0 kelvin in ascending order, got {ladder}."
            )
        if n_chains < 1:
            raise EnergyInputError(f"Expected n_chains >= 1, got {n_chains}.")
        if swap_every < 1:
            raise EnergyInputError(f"Expected swap_every >= 1, got {swap_every}.")
        self.langevin, self.generator, self.swap_every = langevin, generator, swap_every
        self.n_chains = n_chains
        self.temperatures = torch.tensor(ladder, dtype=torch.float64, device=xyz.device)
        shape = (len(ladder), n_chains, *xyz.shape[-2:])
        try:
            replicas = xyz.expand(shape).contiguous()
        except RuntimeError as error:
            raise EnergyInputError(
                f"Expected xyz to broadcast to {list(shape)}, got {list(xyz.shape)}."
            ) from error
        self.phase = langevin.start(replicas, self._column, generator)
        self.n_steps = 0
        self.n_swaps = 0
        self._heading = torch.zeros(shape[:2], dtype=torch.int8, device=xyz.device)
        self.forget()

    @property
    def _column(self) -> Tensor:
        return self.temperatures[:, None]

    @property
    def acceptance(self) -> Tensor:
        """Share of exchanges done between k and k + 1, float64 [K - 1]; NaN before any."""
        return self.accepted.double() / self.attempted.double()

    def forget(self) -> None:
        """Set all counts of exchanges and round trips to zero: what follows is what counts."""
        n_pairs, device = len(self.temperatures) - 1, self.temperatures.device
        self.accepted = torch.zeros(n_pairs, dtype=torch.int64, device=device)
        self.attempted = torch.zeros(n_pairs, dtype=torch.int64, device=device)
        self.round_trips = torch.zeros(self.n_chains, dtype=torch.int64, device=device)

    def heat(self, n_steps: int) -> None:
        """Move all replicas at the highest temperature, without exchanges.

        Args:
            n_steps: How many steps.

        Raises:
            EnergyInputError: A replica has left the region where the energy is finite.
        """
        hottest = self.temperatures[-1:]
        self._scale_velocities((hottest / self._column).sqrt())
        for _ in range(n_steps):
            self.phase = self.langevin.step(self.phase, hottest, self.generator)
        self._scale_velocities((self._column / hottest).sqrt())
        self._check()

    def advance(self, n_steps: int) -> None:
        """Move every replica at its own temperature, with exchanges.

        Args:
            n_steps: How many steps.

        Raises:
            EnergyInputError: A replica has left the region where the energy is finite.
        """
        for _ in range(n_steps):
            self.phase = self.langevin.step(self.phase, self._column, self.generator)
            self.n_steps += 1
            if self.n_steps % self.swap_every == 0:
                self._swap()
        self._check()

    def _swap(self) -> None:
        n_temperatures, n_chains = self.phase.potential.shape
        beta, u = 1 / (R * self.temperatures), self.phase.potential
        lower = torch.arange(n_temperatures - 1, device=u.device)[self.n_swaps % 2 :: 2]
        self.n_swaps += 1
        log_ratio = (beta[lower] - beta[lower + 1])[:, None] * (u[lower] - u[lower + 1])
        uniform = torch.rand(
            log_ratio.shape, generator=self.generator, dtype=torch.float64, device=u.device
        )
        accept = uniform < log_ratio.exp()
        order = torch.arange(n_temperatures, device=u.device)[:, None].repeat(1, n_chains)
        order[lower] += accept
        order[lower + 1] -= accept.long()
        chain = torch.arange(n_chains, device=u.device)
        self.phase = Phase(*(values[order, chain] for values in self.phase))
        self._scale_velocities((self._column / self.temperatures[order]).sqrt())
        self.attempted[lower] += n_chains
        self.accepted[lower] += accept.sum(1)
        self._follow(self._heading[order, chain])

    def _follow(self, heading: Tensor) -> None:
        """Count round trips; heading is -1 after the lowest, then +1 after the highest end."""
        heading[-1] = torch.where(heading[-1] == -1, 1, heading[-1])
        self.round_trips += heading[0] == 1
        heading[0] = -1
        self._heading = heading

    def _scale_velocities(self, factor: Tensor) -> None:
        velocity = self.phase.velocity * factor[..., None, None].to(self.phase.velocity)
        self.phase = self.phase._replace(velocity=velocity)

    def _check(self) -> None:
        finite = self.phase.potential.isfinite()
        if not bool(finite.all()):
            raise EnergyInputError(
                f"Expected every replica to keep a finite energy, got {int((~finite).sum())} "
                f"without; a time_step below {self.langevin.time_step} ps or a lower highest "
                f"temperature may help."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that the future depends on."""
        return {
            "phase": dict(self.phase._asdict()),  # replaced at every step, never changed
            "counts": {name: copy.deepcopy(getattr(self, name)) for name in _COUNTS},
            "generator": self.generator.get_state(),
            "n_evals": self.langevin.energy.n_evals,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, bit for bit on a CPU.

        Args:
            state: Of a run with the same temperatures, chains and settings.
        """
        device = self.temperatures.device
        self.phase = Phase(**{k: v.to(device) for k, v in state["phase"].items()})
        for name, value in state["counts"].items():
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)
        self.generator.set_state(state["generator"])
        self.langevin.energy.n_evals = state["n_evals"]


_COUNTS = ("n_steps", "n_swaps", "accepted", "attempted", "round_trips", "_heading")
