"""A molecule: torsions, populations of torsion boxes, Ramachandran surfaces, a trajectory."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import torch
from matplotlib.figure import Figure
from torch import Tensor

from energies.base import Energy
from energies.dihedrals import Quadruple, backbone_torsions, torsions
from energies.errors import EnergyInputError
from energies.internal import InternalCoordinates
from energies.molecule import Molecule
from energies.reference import masses_from_openmm, repartition
from energies.target import MolecularTarget
from flows.metrics.bootstrap import bootstrap_populations, free_energy_of
from flows.metrics.boxes import in_box
from flows.metrics.histograms import torsion_histogram, torus_histogram
from runs.figures import Marginal, ramachandran, torsion_marginals
from runs.systems.base import Axis, Observable, Structure, System, check_temperature
from runs.trajectory import write_pdb, write_trajectory

BINS = 100
_GREEK = {"phi": "φ", "psi": "ψ", "omega": "ω"}


class MolecularSystem(System):
    """A molecule at a temperature.

    Args:
        name: What it is called.
        temperature: T, kelvin.
        molecule: Topology, OpenMM System, minimised structure.
        torsions: Torsions to look at beside the backbone's: name -> labels of four atoms, such
            as "BUT1-C1".
        basins: Populations to report: name -> torsion name -> (lo, hi), radians.
        energy: Makes an energy of an OpenMM System.
        device: Where the energy is computed.

    Raises:
        EnergyInputError: The temperature is not positive, a torsion names no four atoms.
    """

    kind = "torsion"
    target: MolecularTarget

    def __init__(
        self,
        name: str,
        temperature: float,
        molecule: Molecule,
        *,
        torsions: Mapping[str, Sequence[str]] | None = None,
        basins: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        energy: Callable[[openmm.System], Energy],
        device: torch.device,
    ) -> None:
        check_temperature(temperature)
        potential = energy(molecule.system)
        coordinates = InternalCoordinates.from_molecule(
            molecule, potential, temperature=temperature
        )
        potential.n_evals = 0  # the Hessian's; what is counted is training
        target = MolecularTarget(
            potential.to(device, torch.float32), coordinates.to(device, torch.float32)
        )
        super().__init__(name, temperature, target)
        self.molecule = molecule
        atoms = [(a.residue.index + 1, a.residue.name, a.name) for a in molecule.topology.atoms()]
        self.torsions = backbone_torsions(atoms) | {
            key: _four_atoms(key, labels, molecule.labels)
            for key, labels in (torsions or {}).items()
        }
        self.observed = tuple(self.torsions)
        self.basins = {
            basin: {torsion: (float(lo), float(hi)) for torsion, (lo, hi) in box.items()}
            for basin, box in (basins or {}).items()
        }

    @property
    def coordinates(self) -> InternalCoordinates:
        """Internal coordinates of the molecule."""
        return self.target.coordinates

    @property
    def size(self) -> str:
        """Number of atoms."""
        return f"{self.molecule.n_atoms} atoms"

    @property
    def particles(self) -> tuple[str, ...]:
        """Labels of the atoms, and of the bonds that do not stretch."""
        labels = self.molecule.labels
        rigid = (f"{labels[i]}={labels[j]}" for i, j in self.molecule.constrained_bonds)
        return (*labels, *rigid)

    @property
    def meaning(self) -> tuple[str, ...]:
        """Bonds, angles and torsions by their atoms, and which of them turn symmetric groups."""
        labels = self.molecule.labels
        rotors = (f"{r.order} x t({labels[r.leader]})" for r in self.coordinates.rotors)
        return (*self.coordinates.names, *rotors)

    @property
    def planes(self) -> dict[str, tuple[str, str]]:
        """φ and ψ of each residue that has both, by the names of `maps`."""
        residues = [name.removeprefix("phi_") for name in self.observed]
        return {
            r: (f"phi_{r}", f"psi_{r}")
            for r in residues
            if {f"phi_{r}", f"psi_{r}"} <= {*self.observed}
        }

    def axis(self, name: str) -> Axis:
        """Return the symbol of a torsion, once around."""
        return Axis(f"{_symbol(name)} (rad)", (-math.pi, math.pi))

    def features(self, x: Tensor) -> Tensor:
        """Return cosines and sines of the torsions looked at."""
        torsions = self.observe(x)
        return torch.cat([torsions.cos(), torsions.sin()], dim=-1)

    def measure(self, xyz: Tensor) -> Tensor:
        """Return the torsions, radians, [..., K]."""
        return torsions(xyz, list(self.torsions.values()))

    def report(self, observed: dict[str, Tensor], log_w: Tensor) -> dict[str, Any]:
        """Return populations of the basins and what they are worth in energy, kJ/mol."""
        inside = {name: in_box(observed, box) for name, box in self.basins.items()}
        found = {
            kind: bootstrap_populations(
                inside, weights, generator=torch.Generator().manual_seed(0)
            )
            for kind, weights in (("raw", torch.zeros_like(log_w)), ("reweighted", log_w))
        }
        return {
            "populations": {
                name: {kind: p[name]._asdict() for kind, p in found.items()} for name in inside
            },
            "free_energies": {
                name: {
                    kind: free_energy_of(p[name], temperature=self.temperature)._asdict()
                    for kind, p in found.items()
                }
                for name in inside
            },
        }

    def summary(self, report: dict[str, Any]) -> list[str]:
        """Say the populations."""
        return [
            f"population of {name}: raw {p['raw']['value']:.3%} ± {p['raw']['se']:.3%}, "
            f"reweighted {p['reweighted']['value']:.3%} ± {p['reweighted']['se']:.3%}"
            for name, p in report["populations"].items()
        ]

    def figures(self, observed: dict[str, Tensor], log_w: Tensor) -> dict[str, Figure]:
        """Draw a Ramachandran surface for each residue that has φ and ψ, and all torsions."""
        figures: dict[str, Figure] = {}
        for residue, pair in self.maps(observed).items():
            figures[f"ramachandran_{residue}"] = ramachandran(
                torus_histogram(pair, bins=BINS),
                torus_histogram(pair, log_w, bins=BINS),
                temperature=self.temperature,
                names=(_symbol(f"phi_{residue}"), _symbol(f"psi_{residue}")),
            )
        if observed:
            figures["torsions"] = torsion_marginals(
                {
                    _symbol(name): Marginal(
                        torsion_histogram(t, bins=BINS), torsion_histogram(t, log_w, bins=BINS)
                    )
                    for name, t in observed.items()
                }
            )
        return figures

    def write_frames(
        self, folder: Path, x: Tensor, generator: torch.Generator, *, file_format: str = "xtc"
    ) -> None:
        """Write samples.<format> and topology.pdb."""
        frames = self._frames(x, generator)
        write_trajectory(folder, frames, self.molecule.topology, file_format=file_format)

    def trajectories(self, x: Tensor, generator: torch.Generator) -> Iterator[mdtraj.Trajectory]:
        """Yield positions with their topology, labels of symmetric rotors exchanged at random."""
        topology = self.molecule.to_mdtraj()
        for xyz in self._frames(x, generator):
            yield mdtraj.Trajectory(xyz.numpy(), topology)

    def write_structures(self, path: Path, x: Tensor, generator: torch.Generator) -> bool:
        """Write a PDB file with a model a sample."""
        write_pdb(path, torch.cat([*self._frames(x, generator)]), self.molecule.topology)
        return True

    def structures(self, x: Tensor) -> list[Structure]:
        """Return samples as atoms and bonds, laid over the first one."""
        molecule = self.molecule
        xyz = self.coordinates.to_xyz(x.to(self.coordinates.centre))[0].cpu().numpy()
        frames = mdtraj.Trajectory(xyz, molecule.to_mdtraj())
        frames.center_coordinates()
        frames.superpose(frames[0])
        return [
            Structure(molecule.elements, molecule.labels, molecule.bonds, frame.astype(np.float64))
            for frame in frames.xyz
        ]

    def masses(self, *, hydrogen_mass: float | None) -> Tensor:
        """Return the masses of the System, those of hydrogens changed if asked for."""
        own = masses_from_openmm(self.molecule.system)
        if hydrogen_mass is None:
            return own
        return repartition(own, self.molecule.bonds, hydrogen_mass=hydrogen_mass)

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return the minimum, for all replicas."""
        return torch.tensor(self.molecule.positions, dtype=torch.float32, device=generator.device)

    def averages(self, observed: dict[str, Tensor]) -> dict[str, dict[str, Observable]]:
        """Return for each basin who is inside."""
        return {
            "populations": {
                name: Observable(in_box(observed, box).to(torch.float64))
                for name, box in self.basins.items()
            }
        }

    def maps(self, observed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return (φ, ψ) of each residue that has both."""
        return {
            residue: torch.stack([observed[phi], observed[psi]], dim=-1)
            for residue, (phi, psi) in self.planes.items()
        }

    def frames(self, xyz: Tensor) -> Tensor:
        """Return positions centred on the origin: a free molecule diffuses."""
        return xyz - xyz.mean(-2, keepdim=True)

    def _frames(self, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Positions of the samples, labels of symmetric rotors exchanged at random."""
        for part in x.split(10_000):
            xyz = self.coordinates.to_xyz(part.to(self.coordinates.centre.device))[0].cpu()
            yield self.coordinates.permute_rotors(xyz, generator=generator)


def _four_atoms(name: str, wanted: Sequence[str], labels: Sequence[str]) -> Quadruple:
    """Indices of four atoms given by label."""
    if len(wanted) != 4 or not set(wanted) <= set(labels):
        raise EnergyInputError(
            f"Expected system.torsions.{name} to be four labels out of {', '.join(labels)}, "
            f"got {', '.join(map(str, wanted))}."
        )
    i, j, k, l = (labels.index(label) for label in wanted)  # noqa: E741
    return i, j, k, l


def _symbol(name: str) -> str:
    """Greek letter and residue number: "phi_2" becomes "φ 2"."""
    kind, _, residue = name.partition("_")
    return f"{_GREEK[kind]} {residue}" if kind in _GREEK else name
