import functools
import math

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from torch import Tensor

from energies.errors import UnsupportedForceError
from energies.forcefield import ForceField
from energies.molecule import Molecule
from energies.openmm import OpenMMEnergy

ALDP = "ACE ALA NME"
AMBER96 = ("amber96.xml", "implicit/obc1.xml")
CASES = {
    "amber96-obc1": (ALDP, AMBER96),
    "amber99sbildn-obc2-native": (ALDP, ("amber99sbildn.xml", "amber99_obc.xml")),
    "ff19SB-cmap": (ALDP, ("amber19/protein.ff19SB.xml",)),
    **{
        f"ff14SB-{solvent}": (ALDP, ("amber14/protein.ff14SB.xml", f"implicit/{solvent}.xml"))
        for solvent in ("hct", "obc1", "obc2", "gbn", "gbn2")
    },
    "amberfb15": (ALDP, ("amberfb15.xml",)),
    "charmm36": ("ALA GLY", ("charmm36.xml",)),
}


@functools.cache
def molecule(case: str) -> Molecule:
    sequence, forcefield = CASES[case]
    return Molecule.from_sequence(sequence, forcefield=forcefield)


@functools.cache
def frames(case: str, n: int = 50) -> Tensor:
    """4n frames: thermal at 400 K, stretched and squeezed, perturbed, and near clashes."""
    m = molecule(case)
    generator = torch.Generator().manual_seed(1)
    integrator = openmm.LangevinMiddleIntegrator(400.0, 10.0, 0.001)
    integrator.setRandomNumberSeed(3)
    context = openmm.Context(m.system, integrator, openmm.Platform.getPlatformByName("Reference"))
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


def evaluate(energy: torch.nn.Module, xyz: Tensor) -> tuple[Tensor, Tensor]:
    x = xyz.clone().requires_grad_()
    u = energy.potential(x)
    (gradient,) = torch.autograd.grad(u.sum(), x)
    return u.detach(), gradient


def relative_force_error(ours: Tensor, reference: Tensor) -> Tensor:
    largest = reference.abs().amax(dim=(1, 2))
    return (ours - reference).abs().amax(dim=(1, 2)) / largest


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_openmm_reference(case: str) -> None:
    system, xyz = molecule(case).system, frames(case)
    u, gradient = evaluate(ForceField.from_openmm(system), xyz)
    expected, expected_gradient = evaluate(OpenMMEnergy(system), xyz)
    assert len(xyz) == 200
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(u, expected, rtol=1e-6, atol=1e-6)
    assert relative_force_error(gradient, expected_gradient).max() < 1e-5


@pytest.mark.parametrize("case", ["amber96-obc1", "ff19SB-cmap", "charmm36"])
def test_terms_add_up_and_agree_one_by_one(case: str) -> None:
    system, xyz = molecule(case).system, frames(case)[::20]
    forcefield = ForceField.from_openmm(system)
    terms = forcefield.terms(xyz.reshape(2, 5, *xyz.shape[1:]))
    assert list(terms) == [force.getName() for force in system.getForces()]
    total = sum(terms.values())
    torch.testing.assert_close(total.flatten(), forcefield.potential(xyz), rtol=1e-13, atol=1e-9)
    for k, name in enumerate(terms):
        alone = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
        for other in reversed(range(alone.getNumForces())):
            if other != k:
                alone.removeForce(other)
        expected = OpenMMEnergy(alone).potential(xyz)
        torch.testing.assert_close(terms[name].flatten(), expected, rtol=1e-7, atol=1e-7)


def test_float32_error_is_bounded() -> None:
    """5e-6 of the summed magnitudes of the terms, 1e-4 of the largest force."""
    system, xyz = molecule("amber96-obc1").system, frames("amber96-obc1")
    exact = ForceField.from_openmm(system)
    single = ForceField.from_openmm(system).to(torch.float32)
    u, gradient = evaluate(exact, xyz)
    v, coarse = evaluate(single, xyz.float())
    magnitude = sum(term.abs() for term in exact.terms(xyz).values())
    assert v.dtype == torch.float64
    assert coarse.dtype == torch.float32
    assert ((u - v).abs() / magnitude).max() < 5e-6
    assert relative_force_error(coarse.double(), gradient).max() < 1e-4
    thermal = slice(0, 50)
    assert (u - v)[thermal].abs().max() < 2e-3  # kJ/mol


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", ["nan", "inf", "overlap"])
def test_bad_frame_is_infinite_and_alone(bad: str, dtype: torch.dtype) -> None:
    forcefield = ForceField.from_openmm(molecule("amber96-obc1").system).to(dtype)
    xyz = frames("amber96-obc1")[:4].to(dtype)
    alone, gradient_alone = evaluate(forcefield, xyz)
    broken = xyz.clone()
    broken[2, 5] = broken[2, 19] if bad == "overlap" else float(bad)
    u, gradient = evaluate(forcefield, broken)
    others = [0, 1, 3]
    assert u[2] == torch.inf
    assert torch.equal(u[others], alone[others])
    assert torch.equal(gradient[others], gradient_alone[others])
    assert torch.equal(gradient[2], torch.zeros_like(gradient[2]))


@pytest.mark.parametrize("case", ["amber96-obc1", "ff19SB-cmap"])
def test_hessian_agrees_with_finite_differences(case: str) -> None:
    forcefield = ForceField.from_openmm(molecule(case).system)
    x0 = torch.tensor(molecule(case).positions)
    hessian = torch.autograd.functional.hessian(lambda x: forcefield.potential(x), x0)
    hessian = hessian.reshape(x0.numel(), x0.numel())
    steps = 1e-5 * torch.eye(x0.numel(), dtype=x0.dtype).reshape(-1, *x0.shape)
    ahead, behind = (evaluate(forcefield, x0 + s * steps)[1].flatten(1) for s in (1, -1))
    numeric = (ahead - behind) / 2e-5
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(hessian, numeric, rtol=0, atol=1e-4 * hessian.abs().max().item())


# torch's own tracing uses what torch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("size", ["small", pytest.param("whole", marks=pytest.mark.slow)])
def test_compiled_equals_eager(size: str) -> None:
    system, xyz = molecule("amber96-obc1").system, frames("amber96-obc1")[::10]
    if size == "small":  # The whole takes a compiler a minute.
        system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
        for k in reversed(range(system.getNumForces())):
            if system.getForce(k).getName() not in ("HarmonicAngleForce", "NonbondedForce"):
                system.removeForce(k)
    eager, compiled = ForceField.from_openmm(system), ForceField.from_openmm(system)
    compiled.compile(fullgraph=True, dynamic=False)
    xyz = xyz.clone()
    xyz[3, 0, 0] = torch.nan
    for _ in range(3):  # Counting evaluations must not recompile.
        u, gradient = evaluate(compiled, xyz)
    expected, expected_gradient = evaluate(eager, xyz)
    assert compiled.n_evals == 3 * len(xyz)
    torch.testing.assert_close(u, expected, rtol=1e-12, atol=1e-10)
    assert relative_force_error(gradient, expected_gradient).nan_to_num().max() < 1e-10


def test_state_moves_with_the_module() -> None:
    forcefield = ForceField.from_openmm(molecule("amber96-obc1").system)
    x = frames("amber96-obc1")[:2]
    state = forcefield.state_dict()
    assert all(value.dtype in (torch.float64, torch.int64, torch.bool) for value in state.values())
    assert not list(forcefield.parameters())
    u = forcefield.potential(x.float())
    assert u.dtype == torch.float64
    torch.testing.assert_close(u, forcefield.potential(x), rtol=1e-4, atol=1e-2)


# One force at a time, on four to six particles


def compare_single(
    force: openmm.Force, n_atoms: int, *, seed: int = 0, spread: float = 0.3
) -> None:
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(12.0)
    system.addForce(force)
    generator = torch.Generator().manual_seed(seed)
    xyz = spread * torch.randn(40, n_atoms, 3, generator=generator, dtype=torch.float64)
    u, gradient = evaluate(ForceField.from_openmm(system), xyz)
    expected, expected_gradient = evaluate(OpenMMEnergy(system), xyz)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(u, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


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
        (custom_angle, 3, 0.3),
        (custom_compound, 4, 0.2),
        (splines, 2, 0.3),
        (custom_external, 4, 0.2),
        (functools.partial(custom_nonbonded, groups=False), 5, 0.3),
        (functools.partial(custom_nonbonded, groups=True), 5, 0.3),
        (custom_gb, 5, 0.3),
        (nonbonded_with_offsets, 4, 1.0),
    ],
)
def test_single_force(force: functools.partial, n_atoms: int, spread: float) -> None:
    compare_single(force(), n_atoms, spread=spread)


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


def cutoff() -> openmm.Force:
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.PME)
    force.addParticle(0.0, 0.1, 0.0)
    return force


def strange_compound() -> openmm.Force:
    return openmm.CustomCompoundBondForce(2, "distance(p1,p9)")


@pytest.mark.parametrize(
    ("force", "message"),
    [
        (cutoff, "got NonbondedForce .*NoCutoff"),
        (lambda: openmm.CustomCVForce("0"), r"got CustomCVForce"),
        (lambda: openmm.CustomBondForce("a*r"), r"asks for \['a'\]"),
        (strange_compound, r"distance\(p1,p9\) asks for particles"),
    ],
)
def test_unsupported_force_is_named(force: functools.partial, message: str) -> None:
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force())
    with pytest.raises(UnsupportedForceError, match=message) as caught:
        ForceField.from_openmm(system)
    assert "energy=openmm" in str(caught.value)


def test_virtual_site_is_unsupported_and_motion_remover_skipped() -> None:
    system = openmm.System()
    for mass in (1.0, 1.0, 0.0):
        system.addParticle(mass)
    system.addForce(openmm.CMMotionRemover())
    assert ForceField.from_openmm(system).terms(torch.zeros(2, 3, 3)) == {}
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(UnsupportedForceError, match="without virtual sites"):
        ForceField.from_openmm(system)


def test_ends_of_the_reference_data() -> None:
    """`app` gives the same System for a Molecule's topology, so nothing was lost on the way."""
    m = molecule("amber96-obc1")
    system = app.ForceField(*AMBER96).createSystem(m.topology, nonbondedMethod=app.NoCutoff)
    xyz = frames("amber96-obc1")[:3]
    torch.testing.assert_close(
        ForceField.from_openmm(m.system).potential(xyz), OpenMMEnergy(system).potential(xyz)
    )
