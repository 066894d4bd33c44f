"""Parallel tempering against closed forms and against OpenMM's own Langevin integrator."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from torch import Tensor

from energies.base import Energy, R
from energies.dihedrals import torsions
from energies.errors import EnergyInputError
from energies.forcefield import ForceField
from energies.reference import (
    Langevin,
    ParallelTempering,
    Plan,
    Reference,
    ReferenceSession,
    chain_mean,
    configurational_temperature,
    free_energies,
    geometric_ladder,
    log_weights,
    masses_from_openmm,
    pack_reference,
    read_reference,
    repartition,
    torus_counts,
)

SPRINGS = torch.tensor([100.0, 400.0, 1000.0, 2500.0], dtype=torch.float64)  # kJ/mol/nm²


class Harmonic(Energy):
    """½ Σ k_i |r_i|²."""

    def __init__(self) -> None:
        super().__init__(n_atoms=4)

    def _potential(self, xyz: Tensor) -> Tensor:
        return 0.5 * (SPRINGS * xyz.double().square().sum(-1)).sum(-1)


class DoubleWell(Energy):
    """30 (x² - 1)² + 1.2 x: at 300 K a barrier of 12 RT, and the left well is the lower one."""

    def __init__(self) -> None:
        super().__init__(n_atoms=1, n_dims=1)

    def _potential(self, xyz: Tensor) -> Tensor:
        x = xyz[..., 0, 0].double()
        return 30 * (x.square() - 1).square() + 1.2 * x


def tempering(energy: Energy, xyz: Tensor, **changes: object) -> ParallelTempering:
    arguments = {
        "temperatures": [300.0, 400.0, 540.0], "n_chains": 8, "time_step": 0.005,
        "friction": 2.0, "swap_every": 5, "seed": 0,
        "masses": torch.ones(energy.n_atoms), **changes,
    }  # fmt: skip
    langevin = Langevin(
        energy,
        arguments.pop("masses"),
        **{k: arguments.pop(k) for k in ("time_step", "friction")},
    )
    generator = torch.Generator().manual_seed(arguments.pop("seed"))
    return ParallelTempering(langevin, xyz=xyz, generator=generator, **arguments)


def positions(xyz: Tensor) -> Tensor:
    return xyz.flatten(-2)


def run(session: ReferenceSession) -> dict[str, Tensor]:
    while not session.finished:
        session.advance()
    return session.records


def close(estimate: object, exact: float, n_errors: float = 6.0) -> bool:
    return abs(estimate.value - exact) < n_errors * estimate.se


def test_harmonic_moments_at_every_temperature() -> None:
    """U, U², <x²> and the configurational temperature, within 6 standard errors."""
    replicas = tempering(Harmonic(), torch.zeros(4, 3), n_chains=500)
    velocities = []

    def observe(xyz: Tensor) -> Tensor:
        velocities.append(replicas.phase.velocity.double().square().mean((-2, -1)))
        return positions(xyz).square()

    records = run(ReferenceSession(replicas, Plan(10, 30, 30, 100), observe))
    for k, temperature in enumerate(replicas.temperatures.tolist()):
        RT = R * temperature
        u = records["potential"][:, k]
        assert close(chain_mean(u), 6 * RT)
        assert close(chain_mean(u.square()), 42 * RT**2)  # a gamma distribution of shape 6
        assert chain_mean(u).se < 0.01 * 6 * RT
        assert close(chain_mean(records["temperature"][:, k]), temperature)
        for i, spring in enumerate(SPRINGS.tolist()):
            x2 = records["observed"][:, k, :, 3 * i : 3 * i + 3].mean(-1)
            assert close(chain_mean(x2), RT / spring)
    # Velocities after exchanges: BAOAB's own <v²> = RT/m (1 - ω²h²/4) for a harmonic energy.
    v2 = torch.stack(velocities[-100:])
    shadow = 1 - 0.005**2 * float(SPRINGS.mean()) / 4
    for k, temperature in enumerate(replicas.temperatures.tolist()):
        assert close(chain_mean(v2[:, k]), R * temperature * shadow)
    assert replicas.langevin.energy.n_evals == 3 * 500 * (1 + 10 * 160)
    # Exchanges of independent draws from gamma distributions of shape 6: E min(1, exp(Δβ ΔU)).
    generator = torch.Generator().manual_seed(6)
    shape = torch.full((2, 400_000), 6.0, dtype=torch.float64)
    for k in (0, 1):
        low, high = replicas.temperatures[k : k + 2].tolist()
        cold, hot = torch._standard_gamma(shape, generator=generator)
        ratio = ((1 / low - 1 / high) * (low * cold - high * hot)).exp().clamp(max=1.0)
        assert replicas.attempted[k] == 500 * 100
        assert float(replicas.acceptance[k]) == pytest.approx(float(ratio.mean()), abs=0.012)


@pytest.mark.parametrize("friction", [0.5, 50.0])
def test_harmonic_positions_are_exact_at_any_stable_step(friction: float) -> None:
    """Unlike other splittings: here ωh = 1.5, where OBABO has <x²> 2.3 times too large."""
    replicas = tempering(
        Harmonic(), torch.zeros(4, 3), temperatures=[300.0], n_chains=4000, time_step=0.03,
        friction=friction,
    )  # fmt: skip
    records = run(ReferenceSession(replicas, Plan(20, 0, 20, 10), lambda x: positions(x).square()))
    estimate = chain_mean(records["observed"][:, 0, :, 9:].mean(-1))  # the stiffest
    assert close(estimate, R * 300.0 / 2500.0, 4.0)
    assert estimate.se < 0.01 * R * 300.0 / 2500.0
    # So is the configurational temperature, but not the kinetic one: RT (1 - ω²h²/4).
    assert close(chain_mean(records["temperature"][:, 0]), 300.0, 4.0)
    kinetic = replicas.phase.velocity[0, :, 3].double().square().mean(-1)
    expected = R * 300.0 * (1 - 1.5**2 / 4)
    assert float(kinetic.mean()) == pytest.approx(expected, rel=0.05)


def right_population(temperature: float) -> float:
    x = torch.linspace(-3, 3, 20001, dtype=torch.float64)
    u = DoubleWell().potential(x[:, None, None])
    p = (-u / (R * temperature)).softmax(0)
    return float(p[x > 0].sum())


def test_exchanges_carry_the_double_well_over_its_barrier() -> None:
    start, plan = torch.tensor([[1.0]]), Plan(10, 0, 100, 200)
    settings = {"time_step": 0.02, "n_chains": 256}
    stuck = tempering(DoubleWell(), start, temperatures=[300.0], **settings)
    alone = run(ReferenceSession(stuck, plan, positions))["observed"]
    assert (alone > 0).double().mean() > 0.99  # without exchanges it stays where it was put
    ladder = geometric_ladder(300.0, 2000.0, 7)
    replicas = tempering(DoubleWell(), start, temperatures=ladder, **settings)
    records = run(ReferenceSession(replicas, plan, positions))
    right = (records["observed"][..., 0] > 0).double()
    for k, temperature in enumerate(ladder):
        assert close(chain_mean(right[:, k]), right_population(temperature))
        assert close(chain_mean(records["temperature"][:, k]), temperature)
    estimate = chain_mean(right[:, 0])
    assert estimate.se < 0.02
    assert estimate.split_rhat < 1.2
    assert int(replicas.round_trips.sum()) > 500
    assert bool((replicas.acceptance > 0.4).all())
    # All temperatures together say the same with a smaller error.
    u = records["potential"].transpose(0, 1)
    log_w = log_weights(
        u.flatten(1), replicas.temperatures,
        free_energies(u.flatten(1), replicas.temperatures), temperature=300.0,
    ).reshape(u.shape)  # fmt: skip
    merged = chain_mean(right.flatten(0, 1), log_w.exp().transpose(0, 1).flatten(0, 1))
    assert close(merged, right_population(300.0))
    assert merged.se < estimate.se


def butane() -> openmm.System:
    """United atoms: Ryckaert-Bellemans torsion, soft bonds and angles, nothing else."""
    system = openmm.System()
    for mass in (15.0, 14.0, 14.0, 15.0):
        system.addParticle(mass)
    bonds, angles, torsion = (
        openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.RBTorsionForce(),
    )  # fmt: skip
    for i in range(3):
        bonds.addBond(i, i + 1, 0.153, 2e4)
    for i in range(2):
        angles.addAngle(i, i + 1, i + 2, 1.95, 200.0)
    torsion.addTorsion(0, 1, 2, 3, 9.28, 12.16, -13.12, -3.06, 26.24, -31.5)
    for force in (bonds, angles, torsion):
        system.addForce(force)
    return system


TRANS = torch.tensor(
    [[0.0, 0.142, 0.0], [0.057, 0.0, 0.0], [0.21, 0.0, 0.0], [0.267, -0.142, 0.0]]
)


def is_gauche(angle: Tensor) -> Tensor:
    return (angle.abs() < 2 * math.pi / 3).double()


def openmm_butane(temperature: float, n_blocks: int = 100) -> tuple[Tensor, Tensor]:
    """Potential and gauche fraction of OpenMM's integrator, [S, n_blocks] in blocks of time."""
    integrator = openmm.LangevinMiddleIntegrator(temperature, 2.0, 0.006)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(butane(), integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(TRANS.numpy())
    context.setVelocitiesToTemperature(temperature, 2)
    integrator.step(2000)
    potential, frames = [], []
    for _ in range(100 * n_blocks):
        integrator.step(50)
        state = context.getState(positions=True, energy=True)
        potential.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        frames.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    gauche = is_gauche(torsions(torch.tensor(np.array(frames)), [(0, 1, 2, 3)])[:, 0])
    return tuple(t.reshape(n_blocks, 100).T for t in (torch.tensor(potential).double(), gauche))


def exact_butane(temperature: float) -> tuple[float, float, float]:
    """<U>, <U²> and the gauche fraction: bonds, angles and torsion are independent."""
    r = torch.linspace(0.05, 0.3, 20_001, dtype=torch.float64)
    theta = torch.linspace(0.0, math.pi, 20_003, dtype=torch.float64)[1:-1]
    phi = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:-1]
    cosine = torch.cos(phi - math.pi)
    torsion = sum(c * cosine**n for n, c in enumerate((9.28, 12.16, -13.12, -3.06, 26.24, -31.5)))
    terms = [
        (3, 1e4 * (r - 0.153).square(), 2 * r.log()),
        (2, 100.0 * (theta - 1.95).square(), theta.sin().log()),
        (1, torsion, torch.zeros_like(phi)),
    ]
    mean = variance = 0.0
    for count, u, log_measure in terms:
        p = (log_measure - u / (R * temperature)).softmax(0)
        mean += count * float(p @ u)
        variance += count * float(p @ u.square() - (p @ u).square())
    return mean, variance + mean**2, float(p @ is_gauche(phi))


def test_agrees_with_quadrature_and_with_the_integrator_of_openmm() -> None:
    """Energy moments and torsion population of butane: ours, OpenMM's and exact, within 4 errors.

    Ours is within 0.4 % in the energy at one error: a wrong kick, noise or measure shows.
    """
    energy = ForceField.from_openmm(butane()).to(torch.float32)
    replicas = tempering(
        energy, TRANS, temperatures=[800.0, 1000.0], n_chains=2000, time_step=0.006,
        masses=masses_from_openmm(butane()), swap_every=10,
    )  # fmt: skip
    records = run(
        ReferenceSession(replicas, Plan(20, 20, 20, 40), lambda x: torsions(x, [(0, 1, 2, 3)]))
    )
    assert records["xyz"].dtype == torch.float32
    gauche = is_gauche(records["observed"][..., 0])
    for k in (0, 1):
        temperature = replicas.temperatures[k].item()
        u = records["potential"][:, k]
        theirs_u, theirs_gauche = openmm_butane(temperature)
        for ours, theirs, exact, largest in zip(
            (u, u.square(), gauche[:, k]),
            (theirs_u, theirs_u.square(), theirs_gauche),
            exact_butane(temperature),
            (0.004, 0.007, 0.012),
            strict=True,
        ):
            a, b = chain_mean(ours), chain_mean(theirs)
            assert close(a, exact, 4.0)
            assert close(b, exact, 4.0)
            assert a.se < largest * exact
            assert b.se < 10 * largest * exact


def session(**changes: object) -> ReferenceSession:
    return ReferenceSession(
        tempering(Harmonic(), torch.zeros(4, 3), **changes), Plan(7, 3, 3, 12, 20), positions
    )


@pytest.mark.parametrize("stop", [1, 4, 10])  # while heating, burning in, recording
def test_resumed_equals_uninterrupted(stop: int, tmp_path: Path) -> None:
    whole = session()
    expected = run(whole)
    first = session()
    for _ in range(stop):
        first.advance()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    run(first)  # what goes on after a checkpoint does not reach into it
    second = session(seed=99)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    records = run(second)
    for name, table in expected.items():
        assert torch.equal(records[name], table)
        assert table[-1].abs().max() > 0
    assert torch.equal(second.tempering.phase.velocity, whole.tempering.phase.velocity)
    assert torch.equal(second.tempering.round_trips, whole.tempering.round_trips)
    assert torch.equal(second.tempering.accepted, whole.tempering.accepted)
    assert second.tempering.langevin.energy.n_evals == 3 * 8 * (1 + 7 * 18)


def test_resuming_with_other_settings_is_refused() -> None:
    with pytest.raises(EnergyInputError, match=r"the n_chains of the checkpoint, 9, got 8"):
        session().load_state_dict(session(n_chains=9).state_dict())


def test_frames_are_those_of_the_lowest_temperature() -> None:
    s = session()
    records = run(s)
    assert s.stride == 4
    assert records["xyz"].shape == (3, 8, 4, 3)
    assert torch.equal(positions(records["xyz"]), records["observed"][3::4, 0])


def test_round_trips_are_counted_from_end_to_end_and_back() -> None:
    replicas = tempering(Harmonic(), torch.zeros(4, 3), n_chains=1, temperatures=[1.0, 2.0, 4.0])
    order = [0, 1, 2]  # walker at each temperature
    heading = torch.zeros(3, 1, dtype=torch.int8)
    seen = []
    replicas._follow(heading)
    for pair in (0, 1, 0, 1, 0, 1, 0):  # which neighbours exchange
        order[pair], order[pair + 1] = order[pair + 1], order[pair]
        heading = replicas._heading[[1, 0, 2] if pair == 0 else [0, 2, 1]]
        replicas._follow(heading)
        seen.append((order[0], int(replicas.round_trips)))
    # Walker 0 went up and came back with the fifth exchange; walker 1, which was at the lowest
    # temperature after the first one, with the seventh... of which only full trips count.
    assert seen == TRIPS


TRIPS = [(1, 0), (1, 0), (2, 0), (2, 0), (0, 1), (0, 1), (1, 2)]


def blow_up() -> None:
    replicas = tempering(Harmonic(), torch.zeros(4, 3), time_step=1.0)
    replicas.advance(100)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: tempering(Harmonic(), x, temperatures=[300.0, 300.0]), "ascending order, got"),
        (lambda x: tempering(Harmonic(), x, temperatures=[]), "ascending order, got"),
        (lambda x: tempering(Harmonic(), x, temperatures=[-1.0, 300.0]), "ascending order, got"),
        (lambda x: tempering(Harmonic(), x, n_chains=0), "Expected n_chains >= 1, got 0"),
        (lambda x: tempering(Harmonic(), x, swap_every=0), "Expected swap_every >= 1, got 0"),
        (lambda x: tempering(Harmonic(), x, time_step=0.0), "Expected time_step > 0, got 0"),
        (lambda x: tempering(Harmonic(), x, friction=-1.0), "Expected friction > 0, got -1"),
        (lambda x: tempering(Harmonic(), x, masses=torch.ones(3)), "masses of shape [4], got [3]"),
        (lambda x: tempering(Harmonic(), x, masses=torch.zeros(4)), "masses > 0 dalton, got 0"),
        (lambda x: tempering(Harmonic(), x * math.nan), "Expected finite xyz, got 288 numbers"),
        (lambda x: tempering(Harmonic(), x[:3]), "shape [..., 4, 3], got [3, 8, 3, 3]"),
        (lambda x: tempering(Harmonic(), x.expand(5, 4, 3)), "broadcast to [3, 8, 4, 3], got [5"),
        (lambda x: blow_up(), "a time_step below 1.0 ps"),
        (lambda x: geometric_ladder(300.0, 200.0, 3), "highest temperature above the lowest"),
        (lambda x: geometric_ladder(300.0, 500.0, 0), "Expected n_temperatures >= 1, got 0"),
        (lambda x: Plan(block=0), "Expected plan.block >= 1 and a whole number, got 0"),
        (lambda x: Plan(production=10.5), "Expected plan.production >= 4 and a whole number"),
        (lambda x: chain_mean(torch.zeros(3, 2)), "with S >= 4, got [3, 2]"),
        (lambda x: chain_mean(torch.full((4, 2), math.inf)), "Expected finite values"),
        (lambda x: torus_counts(torch.zeros(3)), "shape [..., n, 2], got [3]"),
        (lambda x: torus_counts(torch.full((2, 2), math.nan)), "Expected finite angles"),
        (lambda x: free_energies(torch.zeros(3, 5), torch.ones(2)), "shape [2, n], got [3, 5]"),
        (lambda x: repartition(torch.tensor([12.0, 1.0]), [(0, 1)], hydrogen_mass=13.0), "13.0"),
        (lambda x: read_reference("/nowhere"), "an existing reference file, got /nowhere"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(call: Callable[[Tensor], object], sentence: str) -> None:
    with pytest.raises(EnergyInputError) as error:
        call(torch.zeros(4, 3))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_masses_of_a_system() -> None:
    system = butane()
    assert masses_from_openmm(system).tolist() == [15.0, 14.0, 14.0, 15.0]
    system.addConstraint(0, 1, 0.153)
    with pytest.raises(EnergyInputError, match="without constraints, which Langevin dynamics"):
        masses_from_openmm(system)
    system.removeConstraint(0)
    system.setParticleMass(2, 0.0)
    with pytest.raises(EnergyInputError, match=r"got none for atoms \[2\]"):
        masses_from_openmm(system)


def test_repartition_keeps_the_mass_of_each_group() -> None:
    methyl = torch.tensor([12.0, 1.0, 1.0, 1.0, 14.0])
    heavier = repartition(methyl, [(0, 1), (0, 2), (3, 0), (0, 4)], hydrogen_mass=2.5)
    assert heavier.tolist() == [7.5, 2.5, 2.5, 2.5, 14.0]


def test_chain_mean_by_hand() -> None:
    values = torch.tensor([[1.0, 3.0], [2.0, 4.0], [1.0, 5.0], [2.0, 2.0]])
    estimate = chain_mean(values)  # chain means 1.5 and 3.5
    assert estimate.value == 2.5
    assert estimate.se == pytest.approx(1.0)  # sqrt(2) / sqrt(2)
    assert estimate.n_effective == pytest.approx(1.75)  # variance 14/8
    # Half chains (1, 2), (3, 4), (1, 2), (5, 2) have means 1.5, 3.5, 1.5, 3.5, between which the
    # variance is 4/3, and variances 0.5, 0.5, 0.5, 4.5, within which it is 1.5: sqrt(1/2 + 8/9).
    assert estimate.split_rhat == pytest.approx(math.sqrt(0.5 + (4 / 3) / 1.5))
    moved = chain_mean(values + torch.tensor([0.0, 0.0, 1.0, 3.0])[:, None])
    assert (moved.first_half, moved.second_half) == (2.5, 4.5)
    weighted = chain_mean(values, torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 2.0]]))
    assert weighted.value == pytest.approx(20 / 8)
    # A - 2.5 B = 4 - 7.5 = -3.5 and 16 - 12.5 = 3.5
    assert weighted.se == pytest.approx(math.sqrt(2 * 2 * 3.5**2) / 8)
    assert math.isnan(chain_mean(values[:, :1]).se)
    assert math.isnan(chain_mean(torch.zeros(4, 3)).split_rhat)


def test_chain_mean_of_correlated_rows() -> None:
    """AR(1): the error of the mean is sqrt((1+a)/(1-a)) times that of independent rows."""
    a, n, n_chains = 0.9, 400, 1000
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n_chains, generator=generator, dtype=torch.float64) / math.sqrt(1 - a * a)
    rows = []
    for _ in range(n):
        x = a * x + torch.randn(n_chains, generator=generator, dtype=torch.float64)
        rows.append(x)
    values = torch.stack(rows)
    estimate = chain_mean(values)
    lags = torch.arange(1, n, dtype=torch.float64)
    inefficiency = float(1 + 2 * ((1 - lags / n) * a**lags).sum())
    exact = math.sqrt(inefficiency / (1 - a * a) / (n * n_chains))
    assert close(estimate, 0.0)
    assert estimate.se == pytest.approx(exact, rel=6 / math.sqrt(2 * n_chains))
    assert estimate.n_effective == pytest.approx(n * n_chains / inefficiency, rel=0.3)
    assert estimate.split_rhat < 1.05
    assert chain_mean(values[:, :4] + torch.tensor([0.0, 0.0, 0.0, 9.0])).split_rhat > 1.5
    drift = torch.linspace(-6, 6, n, dtype=torch.float64)[:, None]
    assert chain_mean(values + drift).split_rhat > 1.2  # only halves show it


def test_free_energies_and_weights_of_harmonic_samples() -> None:
    """Energies drawn exactly: f_k = -(d/2) log T_k and <U> = (d/2) RT, 6 errors of 20 repeats."""
    d, n = 60, 2000
    temperatures = torch.tensor(geometric_ladder(300.0, 600.0, 6), dtype=torch.float64)
    exact = -(d / 2) * (temperatures / temperatures[0]).log()
    generator = torch.Generator().manual_seed(4)
    found, means = [], []
    for _ in range(20):
        chi2 = torch.randn(6, n, d, generator=generator, dtype=torch.float64).square().sum(-1)
        u = -150.0 + 0.5 * R * temperatures[:, None] * chi2
        free = free_energies(u, temperatures)
        found.append(free - 150.0 / R * (1 / temperatures[0] - 1 / temperatures))
        log_w = log_weights(u, temperatures, free, temperature=330.0)
        assert float(log_w.exp().sum()) == pytest.approx(1.0)
        means.append(float((log_w.exp() * u).sum()))
    errors = torch.stack(found).std(0) / math.sqrt(20)
    assert bool(((torch.stack(found).mean(0) - exact)[1:].abs() < 6 * errors[1:]).all())
    assert float(errors.max()) < 0.02
    mean, error = np.mean(means), np.std(means, ddof=1) / math.sqrt(20)
    assert abs(mean + 150.0 - d / 2 * R * 330.0) < 6 * error


@pytest.mark.filterwarnings("ignore")  # of its import
def test_free_energies_and_weights_are_those_of_pymbar() -> None:
    """The reference implementation of MBAR, to rounding; correlated samples are none the worse."""
    from pymbar import MBAR

    temperatures = torch.tensor(geometric_ladder(300.0, 500.0, 4), dtype=torch.float64)
    chi2 = torch.randn(4, 200, 60, generator=torch.Generator().manual_seed(7)).square().sum(-1)
    u = -150.0 + 0.5 * R * temperatures[:, None] * chi2.double().cumsum(1) / torch.arange(1, 201)
    free = free_energies(u, temperatures)
    beta = 1 / (R * temperatures)
    protocol = ({"method": "adaptive", "options": {"min_sc_iter": 0}},)
    theirs = MBAR((beta[:, None] * u.flatten()).numpy(), np.full(4, 200), solver_protocol=protocol)
    assert free.numpy() == pytest.approx(theirs.f_k, abs=1e-9)
    for k, temperature in enumerate(temperatures.tolist()):
        log_w = log_weights(u, temperatures, free, temperature=temperature)
        assert log_w.exp().flatten().numpy() == pytest.approx(theirs.weights()[:, k], rel=1e-8)


def test_temperatures_that_do_not_overlap_are_refused() -> None:
    u = torch.stack([torch.linspace(0, 1, 50), torch.linspace(1e5, 1e5 + 1, 50)])
    with pytest.raises(EnergyInputError, match="whose energies overlap"):
        free_energies(u, torch.tensor([300.0, 310.0]))


def test_torus_counts_by_hand() -> None:
    below = math.nextafter(-math.pi, -4)
    angles = torch.tensor(
        [[-3.0, 0.1], [-3.0, 0.1], [3.0, 3.2], [below, below]], dtype=torch.float64
    )
    counts = torus_counts(angles, bins=4)
    expected = torch.zeros(4, 4, dtype=torch.int64)
    expected[0, 2], expected[3, 0], expected[3, 3] = 2, 1, 1
    assert torch.equal(counts, expected)
    stacked = torus_counts(torch.stack([angles, -angles]), bins=4)
    assert stacked.shape == (2, 4, 4)
    assert torch.equal(stacked[0], expected)


def test_configurational_temperature_ignores_where_the_molecule_is() -> None:
    replicas = tempering(Harmonic(), torch.zeros(4, 3), n_chains=50)
    replicas.advance(20)
    moved = replicas.phase._replace(xyz=replicas.phase.xyz + 7.0)
    assert configurational_temperature(moved) == pytest.approx(
        configurational_temperature(replicas.phase), rel=1e-3, abs=1.0
    )


def reference() -> Reference:
    generator = torch.Generator().manual_seed(0)
    xyz = 0.3 * torch.randn(50, 22, 3, generator=generator)
    population = {"value": 0.0023, "se": 0.0001}
    return Reference(
        torch.tensor([300.0, 400.0], dtype=torch.float64),
        {"2": torch.randint(0, 100_000, (2, 8, 8), generator=generator)},
        {"2": torch.rand(8, 8, generator=generator, dtype=torch.float32).double()},
        (xyz - xyz.mean(-2, keepdim=True)).double(),
        torch.randn(50, generator=generator, dtype=torch.float64),
        {
            "system": "aldp", "n_atoms": 22, "temperatures": [300.0, 400.0], "n_evals": 12,
            "n_replicas": 4, "n_chains": 2, "n_steps": 3, "ps_per_replica": 0.003,
            "origin": {"command": "reference system=aldp"},
            "averages": {"populations": {
                "alpha_L": {"all": population}, "one chain": {"all": {"value": 0.5, "se": None}},
            }},
        },
    )  # fmt: skip


def write(path: Path, **changes: object) -> Path:
    np.savez_compressed(path, **{**pack_reference(reference()), **changes})
    return path


def test_reference_file_round_trip(tmp_path: Path) -> None:
    expected, back = reference(), read_reference(write(tmp_path / "reference.npz"))
    assert torch.equal(back.temperatures, expected.temperatures)
    assert torch.equal(back.counts["2"], expected.counts["2"])
    assert torch.equal(back.density["2"], expected.density["2"])
    assert torch.equal(back.potential, expected.potential)
    assert back.diagnostics == expected.diagnostics
    off = (back.xyz - expected.xyz).abs().max()
    assert 0 < float(off) <= 0.5001 * float(expected.xyz.abs().max()) / 32767
    assert back.populations["alpha_L"] == (0.0023, 0.0001)
    assert math.isnan(back.populations["one chain"].se)
    assert back.provenance["origin"] == {"command": "reference system=aldp"}
    assert back.provenance["n_evals"] == 12


def test_shipped_reference_is_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("energies.shipped.SHIPPED", tmp_path)
    write(tmp_path / "aldp.npz")
    assert read_reference("aldp.npz").diagnostics["system"] == "aldp"
    with pytest.raises(EnergyInputError, match=r"an existing reference file, got tetra\.npz"):
        read_reference("tetra.npz")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": np.array("boltzflow reference 99")}, "no format 'boltzflow reference 1'"),
        ({"temperatures": np.array([300.0])}, "temperatures [300.0] and others in diagnostics"),
        ({"xyz": np.zeros((50, 21, 3), np.int16)}, "xyz of shape [50, 21, 3] for 22 atoms"),
        ({"potential": np.zeros(49)}, "one finite number for each of 50 frames"),
        ({"potential": np.full(50, np.nan)}, "one finite number for each of 50 frames"),
        ({"counts_2": np.zeros((2, 9, 9), np.int32)}, "counts of shape [2, 9, 9] for residue 2"),
        ({"counts_3": np.zeros((2, 8, 8), np.int32)}, "counts of ['2', '3'] and density of ['2']"),
        ({"diagnostics": np.array("{}")}, "got"),
        ({"diagnostics": np.array("[")}, "got"),
        ({"xyz": np.array("text")}, "got"),
    ],
)
def test_inconsistent_reference_file_is_named(
    changes: dict[str, object], why: str, tmp_path: Path
) -> None:
    check_refused(write(tmp_path / "bad.npz", **changes), why)


def check_refused(path: Path, why: str = "") -> None:
    with pytest.raises(EnergyInputError) as error:
        read_reference(path)
    sentence = str(error.value)
    assert sentence.startswith(f"Expected path to be a whole reference file, got {path}: ")
    assert why in sentence
    assert "\n" not in sentence


def test_foreign_and_damaged_files_are_named(tmp_path: Path) -> None:
    """A cut anywhere; one byte changed anywhere is either harmless or found."""
    path = tmp_path / "file.npz"
    for content in (b"", b"text", b"PK\x03\x04 no archive"):
        path.write_bytes(content)
        check_refused(path)
    np.savez(path, x=np.zeros(3))
    check_refused(path, "got " + str(path) + ": arrays ['x'] and no format")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    check_refused(path, "a single array")
    whole = write(tmp_path / "whole.npz").read_bytes()
    expected = read_reference(tmp_path / "whole.npz")
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        check_refused(path)
    for at in range(7, len(whole), len(whole) // 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with suppress(EnergyInputError):
            back = read_reference(path)
            assert torch.equal(back.xyz, expected.xyz)
            assert torch.equal(back.potential, expected.potential)
            assert back.diagnostics == expected.diagnostics
