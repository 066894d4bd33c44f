"""Custom pair forces and generalised Born solvation, from OpenMM's expressions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from energies.forcefield.expression import Expression, Value
from energies.forcefield.geometry import Frames, Term
from energies.forcefield.nonbonded import COULOMB
from energies.forcefield.pairs import collect, pair_indices, pair_weights, spread
from energies.forcefield.reader import global_parameters, plain, reject_cutoff
from energies.forcefield.tabulated import read_tabulated

SINGLE, PAIR, PAIR_NO_EXCLUSIONS = 0, 1, 2  # CustomGBForce.ComputationType


class _Columns(nn.Module):
    """Parameters by name as buffers: [N, 1] for particles, [S, N, 1] for pairs."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(values)
        for k, value in enumerate(values.values()):
            # Names of parameters are free text and may clash with attributes.
            self.register_buffer(f"column_{k}", value)

    def forward(self) -> dict[str, Value]:
        return {name: getattr(self, f"column_{k}") for k, name in enumerate(self.names)}


def _particle_columns(force: Any, n_atoms: int) -> dict[str, Tensor]:
    rows = [force.getParticleParameters(i) for i in range(n_atoms)]
    return {
        force.getPerParticleParameterName(k): torch.tensor(
            [plain(row[k]) for row in rows], dtype=torch.float64
        )[:, None]
        for k in range(force.getNumPerParticleParameters())
    }


def _pick(columns: Mapping[str, Tensor], one: Tensor, two: Tensor) -> _Columns:
    """Return the parameters of particles 1 and 2 of each pair, under names ending in 1 and 2."""
    picked = {f"{name}1": column[one] for name, column in columns.items()}
    return _Columns(picked | {f"{name}2": column[two] for name, column in columns.items()})


def _functions(force: Any) -> tuple[dict[str, tuple[int, Any]], nn.ModuleDict]:
    tables = read_tabulated(force)
    return dict(tables), nn.ModuleDict({f"table_{name}": t for name, (_, t) in tables.items()})


def _allowed(force: Any, n_atoms: int) -> Tensor:
    """Return which pairs a force does not exclude, bool [N, N]."""
    allowed = torch.ones(n_atoms, n_atoms, dtype=torch.bool)
    for k in range(force.getNumExclusions()):
        i, j = force.getExclusionParticles(k)
        allowed[i, j] = allowed[j, i] = False
    return allowed


class _PairSum(nn.Module):
    """Σ over pairs of a weight times an expression in r and the parameters of both particles.

    Args:
        expression: In r and names ending in 1 and 2.
        columns: Parameters of each particle, [N, 1].
        pairs: Particles 1 and 2 of each pair, [S, N].
        weights: How much each pair counts, [S, N].
    """

    weights: Tensor

    def __init__(
        self,
        expression: Expression,
        columns: Mapping[str, Tensor],
        pairs: tuple[Tensor, Tensor],
        weights: Tensor,
    ) -> None:
        super().__init__()
        self.expression = expression
        self.columns = _pick(columns, *pairs)
        self.register_buffer("weights", weights[:, :, None])

    def forward(self, r: Tensor, constants: Mapping[str, Value]) -> Tensor:
        """Return the sum, [B]."""
        value = self.expression({**constants, **self.columns(), "r": r})
        return _weighted(value, self.weights, r).sum((0, 1))


class CustomNonbonded(Term):
    """U = Σ over pairs of an expression in r and both particles' parameters."""

    needs_pairs = True

    def __init__(self, force: Any, n_atoms: int) -> None:
        super().__init__()
        reject_cutoff(force)
        functions, self.tables = _functions(force)
        expression = Expression(force.getEnergyFunction(), functions=functions)
        self.globals = global_parameters(force)
        columns = _particle_columns(force, n_atoms)
        for k in range(force.getNumComputedValues()):
            name, text = force.getComputedValueParameters(k)
            value = Expression(text, functions=functions)({**self.globals, **columns})
            columns[name] = torch.as_tensor(value, dtype=torch.float64).expand(n_atoms, 1).clone()
        i, j = pair_indices(n_atoms)
        count, low, high = _count(force, n_atoms), torch.minimum(i, j), torch.maximum(i, j)
        # An interaction group may make the particle with the higher index the first one.
        self.sums = nn.ModuleList(
            _PairSum(expression, columns, pairs, pair_weights(n_atoms) * count[pairs])
            for pairs in ((low, high), (high, low))
            if bool(count[pairs].any())
        )

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        total = torch.zeros_like(frames.xyz[0][0])
        for pair_sum in self.sums:
            total = total + pair_sum(frames.pairs, self.globals)
        return total


def _count(force: Any, n_atoms: int) -> Tensor:
    """Return how often a CustomNonbondedForce counts each ordered pair (1, 2), [N, N]."""
    allowed = _allowed(force, n_atoms)
    if not force.getNumInteractionGroups():
        return allowed.triu(1).to(torch.float64)
    count = torch.zeros(n_atoms, n_atoms, dtype=torch.float64)
    for k in range(force.getNumInteractionGroups()):
        first, second = torch.zeros(2, n_atoms, dtype=torch.bool)
        groups = force.getInteractionGroupParameters(k)
        for members, indices in zip((first, second), groups, strict=True):
            members[list(indices)] = True
        met = first[:, None] & second
        # A pair inside both sets is met from both sides; it counts once a group.
        count += met & ~(met & met.T).tril() & allowed
    return count


def _weighted(value: Value, weights: Tensor, r: Tensor) -> Tensor:
    """Return the value of each pair times its weight, 0 where that is 0, [S, N, B]."""
    return torch.where(weights > 0, _full(value, r) * weights, 0.0)


def _full(value: Value, like: Tensor) -> Tensor:
    """Return a value of an expression, perhaps a number or a column, in the shape of `like`."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like)


class CustomGB(Term):
    """Values computed particle by particle (Born radii), then energies that depend on them.

    Each value is one expression, of a single particle's own numbers or summed over its partners;
    later ones see earlier ones. Energy terms follow the same two shapes.

    Args:
        allowed: Which pairs are not excluded, bool [N, N].
        columns: Parameters of each particle by name, [N, 1].
        values: Name, expression and computation type of each value.
        energies: Expression and computation type of each energy term.
        constants: Global parameters.
        functions: Tabulated functions, for the expressions and as modules.
    """

    needs_pairs = True
    all_pairs: Tensor
    allowed_pairs: Tensor

    def __init__(
        self,
        allowed: Tensor,
        *,
        columns: Mapping[str, Tensor],
        values: list[tuple[str, str, int]],
        energies: list[tuple[str, int]],
        constants: Mapping[str, float],
        functions: tuple[dict[str, tuple[int, Any]], nn.ModuleDict],
    ) -> None:
        super().__init__()
        self.globals = dict(constants)
        known, self.tables = functions
        self.values = [(n, Expression(t, functions=known), kind) for n, t, kind in values]
        self.energies = [(Expression(t, functions=known), kind) for t, kind in energies]
        first, second = pair_indices(len(allowed))
        self.single = _Columns(columns)
        self.there = _pick(columns, first, second)
        self.back = _pick(columns, second, first)
        weights = pair_weights(len(allowed))
        self.register_buffer("all_pairs", weights[:, :, None])
        self.register_buffer("allowed_pairs", (weights * allowed[first, second])[:, :, None])

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        x, y, z = frames.xyz
        r = frames.pairs
        single: dict[str, Value] = {**self.globals, **self.single(), "x": x, "y": y, "z": z}
        there: dict[str, Value] = {**self.globals, **self.there(), "r": r}
        back: dict[str, Value] = {**self.globals, **self.back(), "r": r}
        weights = {PAIR: self.allowed_pairs, PAIR_NO_EXCLUSIONS: self.all_pairs}
        for name, expression, kind in self.values:
            if kind == SINGLE:
                value = _full(expression(single), x)
            else:
                value = collect(
                    *(_weighted(expression(env), weights[kind], r) for env in (there, back))
                )
            single[name] = value
            self._spread(name, value, there, back)
        total = torch.zeros_like(x[0])
        for expression, kind in self.energies:
            if kind == SINGLE:
                energy = _full(expression(single), x).sum(0)
            else:
                energy = _weighted(expression(there), weights[kind], r).sum((0, 1))
            total = total + energy
        return total

    def _spread(
        self, name: str, value: Tensor, there: dict[str, Value], back: dict[str, Value]
    ) -> None:
        """Give a particle value to both ends of each pair, if any later expression asks."""
        later = [e for _, e, kind in self.values if kind != SINGLE]
        later += [e for e, kind in self.energies if kind != SINGLE]
        if not any({f"{name}1", f"{name}2"} & e.variables for e in later):
            return
        one, two = spread(value)
        there |= {f"{name}1": one, f"{name}2": two}
        back |= {f"{name}1": two, f"{name}2": one}


def custom_gb(force: Any, n_atoms: int) -> CustomGB:
    """Translate CustomGBForce, which is how OpenMM writes HCT, OBC1, OBC2, GBn and GBn2."""
    reject_cutoff(force)
    return CustomGB(
        _allowed(force, n_atoms),
        columns=_particle_columns(force, n_atoms),
        values=[force.getComputedValueParameters(k) for k in range(force.getNumComputedValues())],
        energies=[force.getEnergyTermParameters(k) for k in range(force.getNumEnergyTerms())],
        constants=global_parameters(force),
        functions=_functions(force),
    )


def gbsa_obc(force: Any, n_atoms: int) -> CustomGB:
    """Translate GBSAOBCForce: OBC2 with a surface term, written as a CustomGB program.

    Reference: Onufriev, Bashford, Case, Proteins 55, 383 (2004).
    """
    reject_cutoff(force)
    rows = [[plain(p) for p in force.getParticleParameters(i)] for i in range(n_atoms)]
    charge, radius, scale = torch.tensor(rows, dtype=torch.float64).T[:, :, None]
    offset, probe = 0.009, 0.14  # nm
    solute, solvent = plain(force.getSoluteDielectric()), plain(force.getSolventDielectric())
    surface = 4 * torch.pi * plain(force.getSurfaceAreaEnergy())
    screening = COULOMB * (1 / solute - 1 / solvent)
    integral = (
        "select(step(r+sr2-or1), 0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/U^2-1/L^2)+0.5*log(L/U)/r"
        "+2*step(sr2-r-or1)*(1/or1-1/L)), 0); U=r+sr2; L=max(or1, abs(r-sr2))"
    )
    return CustomGB(
        torch.ones(n_atoms, n_atoms, dtype=torch.bool),
        columns={"charge": charge, "radius": radius, "or": radius - offset,
                 "sr": scale * (radius - offset)},
        values=[
            ("I", integral, PAIR_NO_EXCLUSIONS),
            ("B", "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius); psi=I*or", SINGLE),
        ],
        energies=[
            ("-0.5*screening*charge^2/B", SINGLE),
            (f"surface*(radius+{probe})^2*(radius/B)^6", SINGLE),
            (
                "-screening*charge1*charge2/sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))",
                PAIR_NO_EXCLUSIONS,
            ),
        ],
        constants={"screening": screening, "surface": surface},
        functions=({}, nn.ModuleDict()),
    )  # fmt: skip
