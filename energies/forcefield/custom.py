"""Custom forces on bonds, angles, torsions, compounds and single particles."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from energies.forcefield.expression import Expression, Value
from energies.forcefield.geometry import (
    Displacements,
    Frames,
    Term,
    Vector,
    angle,
    dihedral,
    norm,
)
from energies.forcefield.reader import global_parameters, plain, reject_periodic, unsupported
from energies.forcefield.sparse import take
from energies.forcefield.tabulated import read_tabulated

Variables = dict[str, Value]


class _Geometry(nn.Module):
    """A distance (2 atoms), angle (3) or dihedral (4) in each row of atoms."""

    def __init__(self, atoms: list[list[int]], n_atoms: int) -> None:
        super().__init__()
        self.size = len(atoms)
        # An angle is seen from its middle atom, the others go from atom to atom.
        ends = [(1, 0), (1, 2)] if self.size == 3 else [(k, k + 1) for k in range(self.size - 1)]
        self.steps = nn.ModuleList(Displacements(atoms[a], atoms[b], n_atoms) for a, b in ends)

    def forward(self, xyz: Vector) -> Tensor:
        """Return the quantity in nm or radians, [M, B]."""
        u = [step(xyz) for step in self.steps]
        if self.size == 2:
            return norm(u[0])
        return angle(u[0], u[1]) if self.size == 3 else dihedral(u[0], u[1], u[2])


class Custom(Term):
    """U = Σ over rows of atoms of an expression in geometry and per-row parameters.

    Args:
        force: An OpenMM custom force with global parameters.
        n_atoms: N.
        atoms: Atom indices, one list for each place in a row.
        parameters: Per-row parameters by name.
        geometry: Variables of the expression that are distances, angles or dihedrals, by name
            with the places of their atoms.
        coordinates: Variables of the expression that are coordinates: name -> (place, axis).
        particles: Names of the places, for expressions like `distance(p1, p2)`.
    """

    def __init__(
        self,
        force: Any,
        n_atoms: int,
        *,
        atoms: list[list[int]],
        parameters: dict[str, list[float]],
        geometry: dict[str, tuple[int, ...]],
        coordinates: dict[str, tuple[int, int]],
        particles: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        tables = read_tabulated(force)
        self.tables = nn.ModuleDict({f"table_{name}": t for name, (_, t) in tables.items()})
        functions: dict[str, tuple[int, Callable[..., Value]]] = {**dict(tables), **_POINT}
        by_name = {"distance": 2, "angle": 3, "dihedral": 4} if particles else {}
        functions |= {name: (n, _never) for name, n in by_name.items()}
        self.expression = Expression(
            force.getEnergyFunction(), functions=functions, by_name=tuple(by_name)
        )
        self.globals = global_parameters(force)
        asked = self.expression.variables
        for key in sorted(k for k in asked if "(" in k):
            names = key[key.index("(") + 1 : -1].split(",")
            if not set(names) <= set(particles):
                raise unsupported(force, f"{key} asks for particles other than {particles}")
            geometry = {**geometry, key: tuple(particles.index(name) for name in names)}
        unknown = asked - {*self.globals, *parameters, *geometry, *coordinates}
        if unknown:
            raise unsupported(force, f"the expression asks for {sorted(unknown)}")
        used = {name: places for name, places in geometry.items() if name in asked}
        self.geometry_names = list(used)
        self.geometry = nn.ModuleList(
            _Geometry([atoms[place] for place in places], n_atoms) for places in used.values()
        )
        self.coordinates = {k: v for k, v in coordinates.items() if k in asked}
        places = sorted({place for place, _ in self.coordinates.values()})
        self.takes = nn.ModuleDict({str(p): take(atoms[p], n_atoms) for p in places})
        self.parameter_names = list(parameters)
        for k, values in enumerate(parameters.values()):
            self.parameter_column(f"parameter_{k}", values)
        self.n_rows = len(atoms[0])

    def forward(self, frames: Frames) -> Tensor:
        """Return the energy, kJ/mol, [B]."""
        x = frames.xyz[0]
        variables: Variables = dict(self.globals)
        for k, name in enumerate(self.parameter_names):
            variables[name] = getattr(self, f"parameter_{k}")
        for name, geometry in zip(self.geometry_names, self.geometry, strict=True):
            variables[name] = geometry(frames.xyz)
        for name, (place, axis) in self.coordinates.items():
            variables[name] = self.takes[str(place)](frames.xyz[axis])
        value = torch.as_tensor(self.expression(variables), dtype=x.dtype, device=x.device)
        return value.expand(self.n_rows, x.shape[1]).sum(0)


def _never(*_: Value) -> Value:
    raise AssertionError("geometry is a variable of the expression, not a function")


def _between(size: int, c: tuple[Value, ...]) -> list[Vector]:
    like = next((v for v in c if isinstance(v, Tensor)), torch.ones((), dtype=torch.float64))
    flat = [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in c]
    points = [flat[3 * k : 3 * k + 3] for k in range(size)]
    return [(b[0] - a[0], b[1] - a[1], b[2] - a[2]) for a, b in pairwise(points)]


def _point_distance(*c: Value) -> Value:
    return norm(_between(2, c)[0])


def _point_angle(*c: Value) -> Value:
    u, v = _between(3, c)
    return angle((-u[0], -u[1], -u[2]), v)


def _point_dihedral(*c: Value) -> Value:
    u, v, w = _between(4, c)
    return dihedral(u, v, w)


_POINT: dict[str, tuple[int, Callable[..., Value]]] = {
    "pointdistance": (6, _point_distance),
    "pointangle": (9, _point_angle),
    "pointdihedral": (12, _point_dihedral),
}


def _rows(force: Any, kind: str, n_places: int) -> tuple[list[list[int]], dict[str, list[float]]]:
    """Read atoms and parameters of a custom force whose getters are named after `kind`."""
    count = getattr(force, f"getNum{kind}s")()
    rows = [getattr(force, f"get{kind}Parameters")(k) for k in range(count)]
    atoms = [[row[place] for row in rows] for place in range(n_places)]
    names = [
        getattr(force, f"getPer{kind}ParameterName")(k)
        for k in range(getattr(force, f"getNumPer{kind}Parameters")())
    ]
    return atoms, {name: [plain(row[-1][k]) for row in rows] for k, name in enumerate(names)}


def _simple(kind: str, variable: str, n_places: int) -> Callable[[Any, int], Custom]:
    def translate(force: Any, n_atoms: int) -> Custom:
        reject_periodic(force)
        atoms, parameters = _rows(force, kind, n_places)
        places = tuple(range(n_places))
        return Custom(force, n_atoms, atoms=atoms, parameters=parameters,
                      geometry={variable: places}, coordinates={})  # fmt: skip

    return translate


custom_bond = _simple("Bond", "r", 2)
custom_angle = _simple("Angle", "theta", 3)
custom_torsion = _simple("Torsion", "theta", 4)


def custom_compound(force: Any, n_atoms: int) -> Custom:
    """Translate CustomCompoundBondForce."""
    reject_periodic(force)
    n_places = force.getNumParticlesPerBond()
    rows = [force.getBondParameters(k) for k in range(force.getNumBonds())]
    names = [force.getPerBondParameterName(k) for k in range(force.getNumPerBondParameters())]
    return Custom(
        force,
        n_atoms,
        atoms=[[row[0][place] for row in rows] for place in range(n_places)],
        parameters={name: [plain(row[1][k]) for row in rows] for k, name in enumerate(names)},
        geometry={},
        coordinates={f"{axis}{p + 1}": (p, a) for p in range(n_places) for a, axis in _AXES},
        particles=tuple(f"p{place + 1}" for place in range(n_places)),
    )


def custom_external(force: Any, n_atoms: int) -> Custom:
    """Translate CustomExternalForce."""
    atoms, parameters = _rows(force, "Particle", 1)
    return Custom(force, n_atoms, atoms=atoms, parameters=parameters, geometry={},
                  coordinates={axis: (0, a) for a, axis in _AXES})  # fmt: skip


_AXES = tuple(enumerate("xyz"))
