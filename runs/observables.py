"""What is averaged over frames: mdtraj selections, or a function of a trajectory by `_target_`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import mdtraj
import torch
from hydra.utils import get_method
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from runs.cli import CommandError

Function = Callable[[mdtraj.Trajectory], Any]
"""Takes a trajectory of n frames, nm, to n numbers."""

_KINDS: dict[int, Callable[[mdtraj.Trajectory, list[list[int]]], Any]] = {
    2: mdtraj.compute_distances,
    3: mdtraj.compute_angles,
    4: mdtraj.compute_dihedrals,
}


class Observables(NamedTuple):
    """Functions of frames by name.

    Attributes:
        averaged: Those whose mean makes sense.
        torsions: Angles on a circle, radians: basins may name them.
    """

    averaged: dict[str, Function]
    torsions: dict[str, Function]


def build_observables(config: Mapping[str, Any]) -> Observables:
    """Read what the config wants to be averaged.

    Args:
        config: Name -> either mdtraj selections of one atom each, two for a distance (nm), three
            for an angle (radians), four for a torsion; or a node whose `_target_` is called with
            a `mdtraj.Trajectory` and the node's other keys as arguments, such as
            ``{_target_: mdtraj.compute_rg}``.

    Raises:
        CommandError: A node is neither.
    """
    averaged, torsions = {}, {}
    for name, node in config.items():
        if isinstance(node, DictConfig) and "_target_" in node:
            averaged[name] = _called(name, node)
        elif isinstance(node, ListConfig) and len(node) in _KINDS:
            kind = torsions if len(node) == 4 else averaged
            kind[name] = _selected(name, [str(s) for s in node])
        else:
            raise CommandError(
                f"Expected observables.{name} to be two to four mdtraj selections, or a node with "
                f"_target_, got {node!r}."
            )
    return Observables(averaged, torsions)


def observe(
    functions: Mapping[str, Function], trajectories: Iterable[mdtraj.Trajectory]
) -> dict[str, Tensor]:
    """Compute observables of all frames.

    Args:
        functions: By name.
        trajectories: The frames in pieces, n in all.

    Returns:
        Name -> values, float64 [n].

    Raises:
        CommandError: A function fails, or does not give one number a frame.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in functions}
    for trajectory in trajectories:
        for name, function in functions.items():
            values[name].append(_numbers(name, function, trajectory))
    return {name: torch.cat(parts) for name, parts in values.items()}


def _numbers(name: str, function: Function, trajectory: mdtraj.Trajectory) -> Tensor:
    try:
        found = torch.as_tensor(function(trajectory)).to(torch.float64)
    except CommandError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise CommandError(
            f"Expected observables.{name} to give a number for each frame, "
            f"got {type(error).__name__}: {error}."
        ) from error
    if found.shape == (trajectory.n_frames, 1):  # as mdtraj gives for one pair of atoms
        found = found[:, 0]
    if found.shape != (trajectory.n_frames,):
        raise CommandError(
            f"Expected observables.{name} to give a number for each of {trajectory.n_frames} "
            f"frames, got shape {list(found.shape)}."
        )
    return found


def _called(name: str, node: DictConfig) -> Function:
    arguments = {str(key): value for key, value in node.items() if key != "_target_"}
    try:
        function = get_method(str(node["_target_"]))
    except Exception as error:  # whatever importing a user's module raises
        raise CommandError(
            f"Expected observables.{name}._target_ to be a function, got {node['_target_']!r}: "
            f"{' '.join(str(error).split())}."
        ) from error
    return lambda trajectory: function(trajectory, **arguments)


def _selected(name: str, selections: list[str]) -> Function:
    compute = _KINDS[len(selections)]

    def function(trajectory: mdtraj.Trajectory) -> Any:
        atoms = [_atom(name, selection, trajectory.topology) for selection in selections]
        return compute(trajectory, [atoms])

    return function


def _atom(name: str, selection: str, topology: mdtraj.Topology) -> int:
    try:
        atoms = topology.select(selection)
    except Exception as error:  # mdtraj's parser raises what its libraries do
        raise CommandError(
            f"Expected observables.{name} to be selections of mdtraj, got {selection!r}."
        ) from error
    if len(atoms) != 1:
        found = ", ".join(str(topology.atom(i)) for i in atoms[:4]) or "none"
        raise CommandError(
            f"Expected {selection!r} in observables.{name} to select one atom, "
            f"got {len(atoms)}: {found}{', ...' if len(atoms) > 4 else ''}."
        )
    return int(atoms[0])
