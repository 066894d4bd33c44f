"""Molecules and frames on which the torch force field is held against OpenMM's Reference."""

import functools
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from energies.base import Energy
from energies.molecule import Molecule
from energies.openmm import OpenMMEnergy
from energies.reading import create_system, load_forcefield
from tests.energies.amber_files import write_amber

ALDP = "ACE ALA NME"


@functools.cache
def relaxed() -> Molecule:
    """Alanine dipeptide, built once: to relax it costs more than all that is tested on it."""
    return Molecule.from_sequence(ALDP, forcefield=["amber96.xml"])


def dipeptide(*forcefield: str) -> Molecule:
    base = relaxed()
    system = create_system(load_forcefield(forcefield), base.topology, None, ALDP, {})
    return Molecule("dipeptide", base.topology, system, base.positions)


def from_prmtop() -> Molecule:
    """Alanine dipeptide from an AMBER parameter file, with OBC2."""
    with TemporaryDirectory() as folder:
        files = write_amber(relaxed(), Path(folder))
        return Molecule.from_amber(*files, implicit_solvent="OBC2")


def restrained() -> Molecule:
    """Alanine dipeptide with a user's restraint on φ and ψ."""
    molecule = dipeptide("amber96.xml", "implicit/obc1.xml")
    system = molecule.system
    force = openmm.CustomTorsionForce(
        "0.5*k*min(d, 2*pi-d)^2; d=abs(theta-theta0); pi=3.141592653589793"
    )
    force.addGlobalParameter("k", 80.0)
    force.addPerTorsionParameter("theta0")
    force.addTorsion(4, 6, 8, 14, [-1.2])
    force.addTorsion(6, 8, 14, 16, [2.9])
    system.addForce(force)
    return Molecule("restrained", molecule.topology, system, molecule.positions)


FF14SB = "amber14/protein.ff14SB.xml"
CASES: dict[str, Callable[[], Molecule]] = {
    "amber96-obc1": lambda: dipeptide("amber96.xml", "implicit/obc1.xml"),
    "amber99sbildn-obc": lambda: dipeptide("amber99sbildn.xml", "amber99_obc.xml"),
    "ff14SB-vacuum": lambda: dipeptide(FF14SB),
    **{
        f"ff14SB-{solvent}": functools.partial(dipeptide, FF14SB, f"implicit/{solvent}.xml")
        for solvent in ("hct", "obc1", "obc2", "gbn", "gbn2")
    },
    "ff19SB-cmap": lambda: dipeptide("amber19/protein.ff19SB.xml"),
    "amberfb15": lambda: dipeptide("amberfb15.xml"),
    "charmm36": lambda: Molecule.from_sequence("ALA GLY", forcefield=["charmm36.xml"]),
    "charmm36_2024": lambda: Molecule.from_sequence(
        "ALA GLY SER", forcefield=["charmm36_2024.xml"]
    ),
    "prmtop-obc2": from_prmtop,
    "butane-charmm36": lambda: Molecule.from_pdb("butane.pdb", forcefield=["charmm36.xml"]),
    "restrained": restrained,
}
SLOW = {"charmm36_2024"}  # OpenMM takes most of a minute to read its file.


@functools.cache
def molecule(case: str) -> Molecule:
    return CASES[case]()


@functools.cache
def frames(case: str, n: int = 50) -> Tensor:
    """4n frames: thermal at 400 K, stretched and squeezed, perturbed, and near clashes."""
    m = molecule(case)
    generator = torch.Generator().manual_seed(1)
    integrator = openmm.LangevinMiddleIntegrator(400.0, 10.0, 0.001)
    integrator.setRandomNumberSeed(3)
    # Only to get about: it need not be exact, and is ten times as fast as Reference.
    platform, alone = openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}
    context = openmm.Context(m.system, integrator, platform, alone)
    context.setPositions(m.positions)
    context.setVelocitiesToTemperature(400.0, 7)
    thermal = []
    for _ in range(n):
        integrator.step(5)
        state = context.getState(positions=True)
        thermal.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    x = torch.tensor(np.array(thermal))
    scale = torch.linspace(0.8, 1.3, n, dtype=x.dtype)[:, None, None]
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    clash = x.clone()
    # Two atoms that are not bonded, 0.05 to 0.15 nm apart: energies of 1e4 to 1e9 kJ/mol.
    gap = torch.linspace(0.05, 0.15, n, dtype=x.dtype)
    clash[:, -1] = clash[:, 1] + gap[:, None] * torch.nn.functional.normalize(noise[:, 0], dim=-1)
    return torch.cat([x, x * scale, x + 0.02 * noise, clash])


@functools.cache
def reference(case: str) -> tuple[Tensor, Tensor]:
    """Return energies and gradient of all frames as OpenMM's Reference platform has them."""
    return evaluate(OpenMMEnergy(molecule(case).system), frames(case))


def evaluate(energy: Energy, xyz: Tensor) -> tuple[Tensor, Tensor]:
    """Return the energies and their gradient."""
    x = xyz.clone().requires_grad_()
    u = energy.potential(x)
    (gradient,) = torch.autograd.grad(u.sum(), x)
    return u.detach(), gradient


def relative_force_error(ours: Tensor, reference: Tensor) -> Tensor:
    """Return the largest error of a force component over the largest component, [B]."""
    largest = reference.abs().amax(dim=(1, 2))
    return (ours - reference).abs().amax(dim=(1, 2)) / largest
