"""Forces one at a time, on two to six particles."""

import functools
import math

import numpy as np
import openmm
import pytest
import torch

from energies.forcefield import ForceField
from energies.openmm import OpenMMEnergy
from tests.energies.against_openmm import evaluate


def compare_single(
    force: openmm.Force, n_atoms: int, *, seed: int = 0, spread: float = 0.3
) -> None:
    """Energy and forces on 200 frames against OpenMM Reference, and the second derivative."""
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(12.0)
    system.addForce(force)
    generator = torch.Generator().manual_seed(seed)
    xyz = spread * torch.randn(200, n_atoms, 3, generator=generator, dtype=torch.float64)
    forcefield = ForceField.from_openmm(system)
    u, gradient = evaluate(forcefield, xyz)
    expected, expected_gradient = evaluate(OpenMMEnergy(system), xyz)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(u, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)
    few = xyz[:2].requires_grad_()
    assert torch.autograd.gradgradcheck(forcefield.potential, (few,), eps=1e-6, atol=1e-3)


def test_rb_torsion() -> None:
    force = openmm.RBTorsionForce()
    force.addTorsion(0, 1, 2, 3, 9.28, 12.16, -13.12, -3.06, 26.24, -31.5)
    force.addTorsion(0, 1, 2, 3, 1.0, 0.5, 0.0, 0.2, 0.0, 0.1)
    compare_single(force, 4)


def test_torsion_with_any_phase() -> None:
    force = openmm.PeriodicTorsionForce()
    for n in range(1, 7):
        force.addTorsion(0, 1, 2, 3, n, 0.3 * n, 1.0 / n)
    force.addTorsion(3, 2, 1, 0, 2, math.pi, 3.0)
    compare_single(force, 4)


def custom_torsion_restraint() -> openmm.Force:
    force = openmm.CustomTorsionForce(
        "0.5*k*min(dtheta, 2*pi-dtheta)^2; dtheta=abs(theta-theta0); pi=3.1415926535"
    )
    force.addPerTorsionParameter("theta0")
    force.addGlobalParameter("k", 25.0)
    force.addTorsion(0, 1, 2, 3, [0.7])
    force.addTorsion(3, 1, 2, 0, [-2.0])
    return force


def custom_angle() -> openmm.Force:
    force = openmm.CustomAngleForce("k*(cos(theta)-c)^2")
    force.addPerAngleParameter("k")
    force.addPerAngleParameter("c")
    force.addAngle(0, 1, 2, [30.0, -0.4])
    return force


def custom_compound() -> openmm.Force:
    force = openmm.CustomCompoundBondForce(
        4,
        "k*(distance(p1,p3)-0.2)^2+angle(p4,p2,p1)*dihedral(p1,p2,p3,p4)^2+z1*x4"
        "+pointdistance(x1,y1,z1,0.1,0.2,z2)+pointangle(x1,y1,z1,x2,y2,z2,x3,y3,z3)"
        "+f(x1)",
    )
    force.addPerBondParameter("k")
    table = np.sin(np.linspace(0, 3, 12))
    force.addTabulatedFunction("f", openmm.Continuous1DFunction(table, -1.0, 0.6))
    force.addBond([0, 1, 2, 3], [5.0])
    force.addBond([3, 0, 2, 1], [2.0])
    return force


def splines() -> openmm.Force:
    """Tables of two and three variables; outside its limits a table is zero, or periodic."""
    force = openmm.CustomCompoundBondForce(2, "g(x1,y1)+h(x2,y2,z2)")
    rng = np.random.default_rng(0)
    force.addTabulatedFunction(
        "g", openmm.Continuous2DFunction(6, 5, rng.normal(size=30), -0.5, 0.5, -1.0, 1.0)
    )
    wave = rng.normal(size=(6, 6, 6))
    wave[-1] = wave[0]
    wave[:, -1] = wave[:, 0]
    wave[:, :, -1] = wave[:, :, 0]
    limits = (-0.3, 0.3) * 3
    force.addTabulatedFunction(
        "h", openmm.Continuous3DFunction(6, 6, 6, wave.T.reshape(-1), *limits, True)
    )
    force.addBond([0, 1])
    return force


def custom_external() -> openmm.Force:
    force = openmm.CustomExternalForce("k*((x-x0)^2+y^2*z)")
    force.addPerParticleParameter("x0")
    force.addGlobalParameter("k", 2.0)
    force.addParticle(1, [0.1])
    force.addParticle(3, [-0.1])
    return force


def custom_nonbonded(*, groups: bool) -> openmm.Force:
    force = openmm.CustomNonbondedForce("c(t1,t2)*exp(-r/s)*(q1-0.2*q2*w1); s=0.2")
    force.addPerParticleParameter("t")
    force.addPerParticleParameter("q")
    force.addComputedValue("w", "q^2+t")
    force.addTabulatedFunction("c", openmm.Discrete2DFunction(2, 3, [1.0, 2, 3, 4, 5, 6]))
    for k in range(5):
        force.addParticle([k % 2, 0.3 * k if groups else 0.3])
    force.addExclusion(3, 1)
    if groups:
        force.addInteractionGroup([0, 1], [1, 2, 3, 0])
        force.addInteractionGroup([4], [0, 1])
    return force


def custom_gb() -> openmm.Force:
    force = openmm.CustomGBForce()
    force.addPerParticleParameter("a")
    force.addGlobalParameter("k", 1.5)
    force.addComputedValue("I", "a1*exp(-r*a2)", openmm.CustomGBForce.ParticlePair)
    force.addComputedValue("J", "k*I^2+a+x*y", openmm.CustomGBForce.SingleParticle)
    force.addEnergyTerm("J*a+z", openmm.CustomGBForce.SingleParticle)
    force.addEnergyTerm("J1*J2/(r+0.1)", openmm.CustomGBForce.ParticlePair)
    force.addEnergyTerm("I1*I2*r", openmm.CustomGBForce.ParticlePairNoExclusions)
    for k in range(5):
        force.addParticle([1.0 + 0.2 * k])
    force.addExclusion(0, 1)
    force.addExclusion(4, 2)
    return force


def tabulated_nonbonded() -> openmm.Force:
    """A table in the distance, one of particle types and one of three variables."""
    force = openmm.CustomNonbondedForce("f(r)*c(t1)+g(r,q1,q2)+max(q1,r)*select(t2,r,2*r)")
    force.addPerParticleParameter("t")
    force.addPerParticleParameter("q")
    rng = np.random.default_rng(3)
    force.addTabulatedFunction("f", openmm.Continuous1DFunction(rng.normal(size=9), 0.1, 0.8))
    force.addTabulatedFunction("c", openmm.Discrete1DFunction([0.5, -1.5]))
    force.addTabulatedFunction(
        "g",
        openmm.Continuous3DFunction(4, 4, 4, rng.normal(size=64), 0.0, 2.0, 0.0, 1.0, 0.0, 1.0),
    )
    for k in range(5):
        force.addParticle([k % 2, 0.1 + 0.15 * k])
    return force


def tabulated_gb() -> openmm.Force:
    force = openmm.CustomGBForce()
    force.addPerParticleParameter("a")
    rng = np.random.default_rng(4)
    force.addTabulatedFunction("f", openmm.Continuous1DFunction(rng.normal(size=12), 0.0, 1.5))
    force.addTabulatedFunction("w", openmm.Discrete2DFunction(2, 2, [1.0, 2.0, 3.0, 4.0]))
    force.addTabulatedFunction(
        "g", openmm.Continuous2DFunction(5, 6, rng.normal(size=30), 0.0, 2.0, -9.0, 9.0)
    )
    force.addComputedValue("I", "f(r)*w(a1,a2)", openmm.CustomGBForce.ParticlePairNoExclusions)
    force.addComputedValue("J", "g(0.5,I)+I", openmm.CustomGBForce.SingleParticle)
    force.addEnergyTerm("f(abs(J)/4)", openmm.CustomGBForce.SingleParticle)
    force.addEnergyTerm("g(r,J1*J2/9)", openmm.CustomGBForce.ParticlePair)
    for k in range(5):
        force.addParticle([k % 2])
    force.addExclusion(0, 1)
    return force


def custom_bond() -> openmm.Force:
    force = openmm.CustomBondForce("select(step(r-r0), k*d^2, k*d^4/(1+d^2)); d=r-r0")
    force.addPerBondParameter("r0")
    force.addPerBondParameter("k")
    force.addBond(0, 1, [0.4, 200.0])
    force.addBond(1, 2, [0.6, 100.0])
    return force


def cmap() -> openmm.Force:
    force = openmm.CMAPTorsionForce()
    rng = np.random.default_rng(5)
    for _ in range(2):
        force.addMap(8, rng.normal(size=64))
    force.addTorsion(0, 0, 1, 2, 3, 1, 2, 3, 4)
    force.addTorsion(1, 1, 2, 3, 4, 2, 3, 4, 5)
    return force


def gbsa_obc() -> openmm.Force:
    force = openmm.GBSAOBCForce()
    force.setSolventDielectric(60.0)
    force.setSurfaceAreaEnergy(3.0)
    for k in range(5):
        force.addParticle(0.3 * (-1) ** k, 0.12 + 0.02 * k, 0.8)
    return force


def nonbonded_with_offsets() -> openmm.Force:
    force = openmm.NonbondedForce()
    force.addGlobalParameter("switch", 0.4)
    for k in range(4):
        force.addParticle(0.2 * k - 0.3, 0.2, 0.3)
    exception = force.addException(0, 1, 0.05, 0.15, 0.2)
    force.addException(2, 3, 0.0, 0.1, 0.0)
    force.addParticleParameterOffset("switch", 2, 0.5, 0.01, 0.1)
    force.addExceptionParameterOffset("switch", exception, 0.1, 0.02, 0.3)
    return force


@pytest.mark.parametrize(
    ("force", "n_atoms", "spread"),
    [
        (custom_torsion_restraint, 4, 0.3),
        (custom_bond, 3, 0.3),
        (custom_angle, 3, 0.3),
        (cmap, 6, 0.3),
        (custom_compound, 4, 0.2),
        (splines, 2, 0.3),
        (custom_external, 4, 0.2),
        (functools.partial(custom_nonbonded, groups=False), 5, 0.3),
        (functools.partial(custom_nonbonded, groups=True), 5, 0.3),
        (tabulated_nonbonded, 5, 0.3),
        (custom_gb, 5, 0.3),
        (tabulated_gb, 5, 0.3),
        (gbsa_obc, 5, 0.2),
        (nonbonded_with_offsets, 4, 1.0),
    ],
)
def test_single_force(force: functools.partial, n_atoms: int, spread: float) -> None:
    compare_single(force(), n_atoms, spread=spread)


def test_force_without_terms_is_zero() -> None:
    """CHARMM adds CMAP to molecules without a peptide, constraints empty HarmonicBondForce."""
    system = openmm.System()
    for _ in range(3):
        system.addParticle(1.0)
    for force in (
        openmm.HarmonicBondForce(),
        openmm.HarmonicAngleForce(),
        openmm.PeriodicTorsionForce(),
        openmm.RBTorsionForce(),
        openmm.CMAPTorsionForce(),
        openmm.CustomBondForce("r"),
        openmm.CustomAngleForce("theta"),
        openmm.CustomTorsionForce("theta"),
        openmm.CustomCompoundBondForce(2, "x1*distance(p1,p2)"),
        openmm.CustomExternalForce("x"),
    ):
        system.addForce(force)
    u, gradient = evaluate(ForceField.from_openmm(system), torch.randn(4, 3, 3))
    assert torch.equal(u, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(gradient, torch.zeros(4, 3, 3))


def test_collinear_atoms_have_finite_forces() -> None:
    angles, torsions = openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    angles.addAngle(0, 1, 2, 2.0, 100.0)
    torsions.addTorsion(0, 1, 2, 3, 2, 0.0, 5.0)
    system = openmm.System()
    for _ in range(4):
        system.addParticle(1.0)
    system.addForce(angles)
    system.addForce(torsions)
    line = torch.zeros(1, 4, 3, dtype=torch.float64)
    line[0, :, 0] = torch.arange(4) * 0.1
    u, gradient = evaluate(ForceField.from_openmm(system), line)
    assert u.item() == pytest.approx(50.0 * (math.pi - 2.0) ** 2 + 5.0)
    assert torch.isfinite(gradient).all()
