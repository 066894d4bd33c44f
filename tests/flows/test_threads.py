"""How many threads share the work changes nothing that comes out but its last digits."""

from collections.abc import Iterator

import pytest
import torch

from energies.forcefield import ForceField
from energies.internal import InternalCoordinates
from energies.molecule import Molecule
from energies.target import MolecularTarget
from flows.build import spline_flow
from flows.losses import ReverseKL
from flows.paths import Temperature
from flows.training.session import Session
from tests.flows.ring import stage


@pytest.fixture
def _double_precision() -> Iterator[None]:
    """As elsewhere in the suite, but for numbers of threads, which are put back."""
    n = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_num_threads(n)


@pytest.mark.usefixtures("_double_precision")
def test_step_is_the_same_with_one_thread_and_with_two() -> None:
    molecule = Molecule.from_sequence("ACE ALA NME")
    forcefield = ForceField.from_openmm(molecule.system)
    target = MolecularTarget(forcefield, InternalCoordinates.from_molecule(molecule, forcefield))
    found = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        assert torch.get_num_threads() == n_threads
        flow = spline_flow(target.periodic, n_couplings=4, hidden=(64, 64), seed=0)
        session = Session(
            flow, target, [stage(ReverseKL(), path=Temperature(300.0))], ema_decay=0.0,
            generator=torch.Generator().manual_seed(0), clip_norm=20.0,
        )  # fmt: skip
        for _ in range(3):
            session.step()
        found.append([p.detach() for p in session.parameters])
    assert len(found[0]) > 10
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-10)
