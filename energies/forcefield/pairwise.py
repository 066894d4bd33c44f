"""Custom pair forces and generalised Born solvation, from OpenMM's expressions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from energies.forcefield.expression import Expression, Value
from energies.forcefield.geometry import Frames, Term, pair_indices
from energies.forcefield.nonbonded import COULOMB
from energies.forcefield.reader import (
    global_parameters,
    plain,
    reject_cutoff,
    unsupported,
)
from energies.forcefield.sparse import SparseMap, take
from energies.forcefield.tabulated import read_tabulated

SINGLE, PAIR, PAIR_NO_EXCLUSIONS = 0, 1, 2  # CustomGBForce.ComputationType


class _Columns(nn.Module):
    """Per-particle parameters as buffers of shape [N, 1] (or [P, 1] picked for pairs)."""

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


def _pick(columns: Mapping[str, Tensor], first: list[int], second: list[int]) -> _Columns:
    """Return the columns of both ends of each pair, under names ending in 1 and 2."""
    picked = {f"{name}1": column[first] for name, column in columns.items()}
    return _Columns(picked | {f"{name}2": column[second] for name, column in columns.items()})


def _functions(force: Any) -> tuple[dict[str, tuple[int, Any]], nn.ModuleDict]:
    tables = read_tabulated(force)
    return dict(tables), nn.ModuleDict({f"table_{name}": t for name, (_, t) in tables.items()})


def _exclusions(force: Any) -> set[tuple[int, int]]:
    pairs = (force.getExclusionParticles(k) for k in range(force.getNumExclusions()))
    return {(min(i, j), max(i, j)) for i, j in pairs}


class CustomNonbonded(Term):
    """U = Σ over pairs of an expression in r and both particles' parameters."""

    needs_pairs = True

    def __init__(self, force: Any, n_atoms: int) -> None:
        super().__init__()
        reject_cutoff(force)
        functions, self.tables = _functions(force)
        self.expression = Expression(force.getEnergyFunction(), functions=functions)
        self.globals = global_parameters(force)
        columns = _particle_columns(force, n_atoms)
        for k in range(force.getNumComputedValues()):
            name, text = force.getComputedValueParameters(k)
            value = Expression(text, functions=functions)({**self.globals, **columns})
            columns[name] = torch.as_tensor(value, dtype=torch.float64).expand(n_atoms, 1).clone()
        pairs = _interacting(force, n_atoms)
        rank = {pair: p for p, pair in enumerate(pair_indices(n_atoms))}
        self.columns = _pick(columns, [i for i, _ in pairs], [j for _, j in pairs])
        self.pick = take([rank[min(p), max(p)] for p in pairs], len(rank))

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        assert frames.r is not None
        r = self.pick(frames.r)
        value = self.expression({**self.globals, **self.columns(), "r": r})
        return _full(value, r).sum(0)


def _full(value: Value, like: Tensor) -> Tensor:
    """Return a value of an expression, perhaps a number or a column, in the shape of `like`."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like)


def _interacting(force: Any, n_atoms: int) -> list[tuple[int, int]]:
    """Return the ordered pairs (particle 1, particle 2) that a CustomNonbondedForce sums over."""
    excluded = _exclusions(force)
    if not force.getNumInteractionGroups():
        return [pair for pair in pair_indices(n_atoms) if pair not in excluded]
    pairs = []
    for k in range(force.getNumInteractionGroups()):
        first, second = map(set, force.getInteractionGroupParameters(k))
        for i in sorted(first):
            for j in sorted(second):
                # A pair inside both sets would be met from both sides; it counts once a group.
                twice = i > j and i in second and j in first
                if i != j and not twice and (min(i, j), max(i, j)) not in excluded:
                    pairs.append((i, j))
    return pairs


class CustomGB(Term):
    """Values computed particle by particle (Born radii), then energies that depend on them.

    Each value is one expression, of a single particle's own numbers or summed over its partners;
    later ones see earlier ones. Energy terms follow the same two shapes.
    """

    needs_pairs = True
    kept: Tensor

    def __init__(
        self,
        n_atoms: int,
        *,
        columns: Mapping[str, Tensor],
        values: list[tuple[str, str, int]],
        energies: list[tuple[str, int]],
        constants: Mapping[str, float],
        exclusions: set[tuple[int, int]],
        functions: tuple[dict[str, tuple[int, Any]], nn.ModuleDict],
    ) -> None:
        super().__init__()
        self.globals = dict(constants)
        known, self.tables = functions
        self.values = [(n, Expression(t, functions=known), kind) for n, t, kind in values]
        self.energies = [(Expression(t, functions=known), kind) for t, kind in energies]
        pairs = pair_indices(n_atoms)
        self.n_pairs = len(pairs)
        first, second = [i for i, _ in pairs], [j for _, j in pairs]
        self.single = _Columns(columns)
        self.there = _pick(columns, first, second)
        self.back = _pick(columns, second, first)
        # Row p is what the first atom of pair p receives, row P + p what the second one does.
        self.ends: SparseMap = take([*first, *second], n_atoms)
        kept = torch.tensor([pair not in exclusions for pair in pairs], dtype=torch.bool)
        self.register_buffer("kept", kept[:, None])
        self.any_excluded = not bool(kept.all())

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        assert frames.r is not None
        r = frames.r
        x, y, z = frames.xyz
        single: dict[str, Value] = {**self.globals, **self.single(), "x": x, "y": y, "z": z}
        there: dict[str, Value] = {**self.globals, **self.there(), "r": r}
        back: dict[str, Value] = {**self.globals, **self.back(), "r": r}
        for name, expression, kind in self.values:
            if kind == SINGLE:
                value = _full(expression(single), x)
            else:
                both = [self._masked(expression(env), r, kind) for env in (there, back)]
                value = self.ends.transpose(torch.cat(both))
            single[name] = value
            self._spread(name, value, there, back)
        total = torch.zeros_like(x[0])
        for expression, kind in self.energies:
            if kind == SINGLE:
                energy = _full(expression(single), x)
            else:
                energy = self._masked(expression(there), r, kind)
            total = total + energy.sum(0)
        return total

    def _spread(
        self, name: str, value: Tensor, there: dict[str, Value], back: dict[str, Value]
    ) -> None:
        """Give a particle value to both ends of each pair, if any later expression asks."""
        later = [e for _, e, kind in self.values if kind != SINGLE]
        later += [e for e, kind in self.energies if kind != SINGLE]
        if not any({f"{name}1", f"{name}2"} & e.variables for e in later):
            return
        ends = self.ends(value)
        one, two = ends[: self.n_pairs], ends[self.n_pairs :]
        there |= {f"{name}1": one, f"{name}2": two}
        back |= {f"{name}1": two, f"{name}2": one}

    def _masked(self, value: Value, r: Tensor, kind: int) -> Tensor:
        full = _full(value, r)
        if kind == PAIR and self.any_excluded:
            return torch.where(self.kept, full, 0.0)
        return full


def custom_gb(force: Any, n_atoms: int) -> CustomGB:
    """Translate CustomGBForce, which is how OpenMM writes HCT, OBC1, OBC2, GBn and GBn2."""
    reject_cutoff(force)
    if force.getNumEnergyParameterDerivatives():
        raise unsupported(force, "energy parameter derivatives are not translated")
    return CustomGB(
        n_atoms,
        columns=_particle_columns(force, n_atoms),
        values=[force.getComputedValueParameters(k) for k in range(force.getNumComputedValues())],
        energies=[force.getEnergyTermParameters(k) for k in range(force.getNumEnergyTerms())],
        constants=global_parameters(force),
        exclusions=_exclusions(force),
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
        n_atoms,
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
        exclusions=set(),
        functions=({}, nn.ModuleDict()),
    )  # fmt: skip
