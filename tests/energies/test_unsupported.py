"""What the torch force field does not translate is named, and so is what to use instead."""

import functools
from collections.abc import Callable

import openmm
import pytest
import torch

from energies.errors import UnsupportedForceError
from energies.forcefield import ForceField
from tests.energies.against_openmm import evaluate


def one_atom(force: openmm.Force) -> openmm.System:
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force)
    return system


def with_method(force: openmm.Force, method: str) -> openmm.Force:
    force.setNonbondedMethod(getattr(type(force), method))
    return force


def periodic(force: openmm.Force) -> openmm.Force:
    force.setUsesPeriodicBoundaryConditions(True)
    return force


NO_CUTOFF = "got {} .*only nonbondedMethod=NoCutoff is translated, no cutoffs or PME"
NO_BOX = "got {} .*periodic boundary conditions are not translated"


@pytest.mark.parametrize(
    ("force", "message"),
    [
        *(
            (functools.partial(with_method, openmm.NonbondedForce(), method),
             NO_CUTOFF.format("NonbondedForce"))
            for method in ("CutoffNonPeriodic", "CutoffPeriodic", "Ewald", "PME", "LJPME")
        ),
        *(
            (functools.partial(with_method, force, "CutoffNonPeriodic"),
             NO_CUTOFF.format(type(force).__name__))
            for force in (openmm.CustomNonbondedForce("r"), openmm.CustomGBForce(),
                          openmm.GBSAOBCForce())
        ),
        *(
            (functools.partial(periodic, force), NO_BOX.format(type(force).__name__))
            for force in (openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(),
                          openmm.PeriodicTorsionForce(), openmm.RBTorsionForce(),
                          openmm.CMAPTorsionForce(), openmm.CustomBondForce("r"),
                          openmm.CustomAngleForce("theta"), openmm.CustomTorsionForce("theta"),
                          openmm.CustomCompoundBondForce(2, "x1"))
        ),
        (lambda: openmm.CustomExternalForce("periodicdistance(x,y,z,0,0,0)"),
         "got CustomExternalForce .*periodicdistance"),
        (lambda: openmm.CustomBondForce("a*r"), r"got CustomBondForce .*asks for \['a'\]"),
        (lambda: openmm.CustomCompoundBondForce(2, "distance(p1,p9)"),
         r"got CustomCompoundBondForce .*distance\(p1,p9\) asks for particles"),
    ],
)  # fmt: skip
def test_unsupported_option_is_named(force: Callable[[], openmm.Force], message: str) -> None:
    with pytest.raises(UnsupportedForceError, match=message) as caught:
        ForceField.from_openmm(one_atom(force()))
    assert "energy=openmm" in str(caught.value)


UNTRANSLATED: dict[str, tuple] = {
    "ATMForce": (0.0, 0.0, 0.1, 0.0, 0.0, 1.0, 0.5, 0.1, 1.0),
    "AmoebaGeneralizedKirkwoodForce": (),
    "AmoebaMultipoleForce": (),
    "AmoebaTorsionTorsionForce": (),
    "AmoebaVdwForce": (),
    "AmoebaWcaDispersionForce": (),
    "CustomCVForce": ("0",),
    "CustomCentroidBondForce": (1, "x1"),
    "CustomHbondForce": ("0",),
    "CustomManyParticleForce": (2, "0"),
    "DrudeForce": (),
    "GayBerneForce": (),
    "HippoNonbondedForce": (),
    "RMSDForce": ([openmm.Vec3(0, 0, 0)],),
}


@pytest.mark.parametrize("kind", UNTRANSLATED)
def test_unsupported_force_is_named(kind: str) -> None:
    force = getattr(openmm, kind)(*UNTRANSLATED[kind])
    force.setName("mine")
    with pytest.raises(UnsupportedForceError, match=rf"got mine \({kind}\).*energy=openmm"):
        ForceField.from_openmm(one_atom(force))


def test_what_changes_no_energy_is_skipped() -> None:
    three = openmm.Vec3(1, 1, 1)
    system = one_atom(openmm.CMMotionRemover())
    for force in (
        openmm.AndersenThermostat(300, 1),
        openmm.MonteCarloBarostat(1, 300),
        openmm.MonteCarloAnisotropicBarostat(three, 300),
        openmm.MonteCarloMembraneBarostat(1, 0, 300, 0, 0),
        openmm.MonteCarloFlexibleBarostat(1, 300),
        openmm.RPMDMonteCarloBarostat(1, 10),
    ):
        system.addForce(force)
    forcefield = ForceField.from_openmm(system)
    assert forcefield.terms(torch.zeros(2, 1, 3)) == {}
    xyz = torch.zeros(2, 1, 3)
    xyz[1, 0, 2] = torch.nan
    u, gradient = evaluate(forcefield, xyz)
    assert u.tolist() == [0.0, torch.inf]
    assert not gradient.any()


def test_virtual_site_is_unsupported() -> None:
    system = openmm.System()
    for mass in (1.0, 1.0, 0.0):
        system.addParticle(mass)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(UnsupportedForceError, match=r"without virtual sites.*energy=openmm"):
        ForceField.from_openmm(system)
