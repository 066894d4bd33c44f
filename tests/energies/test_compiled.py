"""Compiled energies: one graph, the same numbers, no corrupted memory."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import openmm
import pytest
import torch
from torch import Tensor

from energies.compiled import Compiled, Function
from energies.forcefield import ForceField
from energies.internal import InternalCoordinates
from energies.target import MolecularTarget
from tests.energies.against_openmm import evaluate, frames, molecule, relative_force_error


def numbers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers a row, the first without a finite gradient where a coordinate is 0."""
    return x.abs().sqrt().sum((1, 2)), (x[:, 0] * x[:, 1]).sum(-1).sin()


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of "compiled" code is given; nothing is compiled."""
    met = []

    def compile_nothing(function: Function, **how: object) -> Function:
        def code(rows: Tensor) -> tuple[Tensor, ...]:
            assert not torch.is_grad_enabled()
            met.append(len(rows))
            return function(rows)

        return code

    monkeypatch.setattr("torch.compile", compile_nothing)
    return met


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 8, 29])
def test_pieces_of_one_size_give_the_numbers_of_the_whole(
    n: int, threads: int, sizes: list[int]
) -> None:
    before = torch.get_num_threads()
    x = torch.randn(n, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, n, dtype=torch.float64)

    def derived(columns: tuple[Tensor, ...]) -> Tensor:
        return torch.autograd.grad((weights * torch.stack(columns)).sum(), x)[0]

    function = Compiled(numbers, piece=8)
    try:
        torch.set_num_threads(threads)
        found = function(x)
        gradient = derived(found)
        with torch.no_grad():
            alone = function(x)
    finally:
        torch.set_num_threads(before)
    assert set(sizes) == {8}
    for column, again, expected in zip(found, alone, numbers(x), strict=True):
        torch.testing.assert_close(column, expected, rtol=1e-14, atol=0)
        assert torch.equal(again, column)
        assert not again.requires_grad
    torch.testing.assert_close(gradient, derived(numbers(x)), rtol=1e-13, atol=1e-15)


def test_row_without_a_gradient_has_none_and_spoils_no_other(sizes: list[int]) -> None:
    x = torch.ones(3, 2, 3)
    x[1, 0, 0] = 0.0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(Compiled(numbers, piece=4)(x)[0].sum(), x)
    assert torch.equal(gradient, torch.tensor([0.5, 0.0, 0.5])[:, None, None].expand(3, 2, 3))


def test_no_rows_and_no_second_derivative(sizes: list[int]) -> None:
    function = Compiled(numbers, piece=4)
    assert [len(column) for column in function(torch.ones(0, 2, 3))] == [0, 0]
    assert sizes == []
    x = torch.ones(1, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(x)[1].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="Expected at most one derivative of an energy"):
        gradient.sum().backward()


@pytest.mark.usefixtures("sizes")
def test_target_has_the_gradients_of_energy_and_volume() -> None:
    made = molecule("amber96-obc1")
    forcefield = ForceField.from_openmm(made.system)
    coordinates = InternalCoordinates.from_molecule(made, forcefield)
    eager, compiled = (MolecularTarget(forcefield, coordinates) for _ in range(2))
    compiled.compile()
    x = 0.1 * torch.randn(2, 5, eager.dim, dtype=torch.float64)
    x.requires_grad_()
    for part in ("potential", "log_jac"):
        one, other = (getattr(target.evaluate(x), part) for target in (eager, compiled))
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-10)
        expected, found = (torch.autograd.grad(u.sum(), x)[0] for u in (one, other))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# torch's own tracing uses what torch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("case", "kept"),
    [
        # The whole takes a compiler a minute.
        ("amber96-obc1", {"HarmonicAngleForce", "NonbondedForce"}),
        pytest.param("amber96-obc1", None, marks=pytest.mark.slow),
        pytest.param("ff19SB-cmap", None, marks=pytest.mark.slow),
        pytest.param("ff14SB-gbn2", None, marks=pytest.mark.slow),
        pytest.param("charmm36", None, marks=pytest.mark.slow),
        pytest.param("restrained", None, marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager(case: str, kept: set[str] | None) -> None:
    """One graph without breaks, forward and backward, that counting does not recompile."""
    system, xyz = copy.deepcopy(molecule(case).system), frames(case)[::10]
    for k in reversed(range(system.getNumForces())):
        if kept and system.getForce(k).getName() not in kept:
            system.removeForce(k)
    system.addForce(openmm.CustomBondForce("r"))  # without a bond
    eager, compiled = ForceField.from_openmm(system), ForceField.from_openmm(system)
    compiled.compile()
    xyz = xyz.clone()
    xyz[3, 0, 0] = torch.nan
    with torch.compiler.set_stance("default"):
        u, gradient = evaluate(compiled, xyz)
        alone = compiled.potential(xyz)
        compiled.potential(xyz[:0])
    with torch.compiler.set_stance("fail_on_recompile"):
        again, gradient_again = evaluate(compiled, xyz)
    expected, expected_gradient = evaluate(eager, xyz)
    assert compiled.n_evals == 3 * len(xyz)
    assert u[3] == torch.inf
    assert torch.equal(u, again)
    assert torch.equal(gradient, gradient_again)
    torch.testing.assert_close(u, expected, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-9)
    assert relative_force_error(gradient, expected_gradient).nan_to_num().max() < 1e-10
    x = xyz.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="at most one derivative"):
        torch.autograd.grad(compiled.potential(x).sum(), x, create_graph=True)[0].sum().backward()


SCRIPT = """
import torch
from energies.forcefield import ForceField
from energies.internal import InternalCoordinates
from energies.molecule import Molecule
from energies.target import MolecularTarget

torch.manual_seed(0)
torch.set_num_threads(2)
molecule = Molecule.from_sequence("ACE ALA NME")
forcefield = ForceField.from_openmm(molecule.system)
coordinates = InternalCoordinates.from_molecule(molecule, forcefield)
eager = MolecularTarget(forcefield, coordinates)
compiled = MolecularTarget(forcefield, coordinates)
compiled.compile()
x = 0.1 * torch.randn(257, eager.dim, dtype=torch.float64)
for _ in range(20):
    with torch.no_grad():
        one, other = eager.evaluate(x), compiled.evaluate(x)
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-7)
fast = ForceField.from_openmm(molecule.system)
fast.compile()
xyz = torch.as_tensor(molecule.positions) + 0.01 * torch.randn(257, 22, 3, dtype=torch.float64)
xyz.requires_grad_()
for _ in range(20):
    results = []
    for energy in (forcefield, fast):
        u = energy.potential(xyz)
        results.append((u, *torch.autograd.grad(u.sum(), xyz)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-7)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator checks")
def test_compiled_code_leaves_the_heap_intact(tmp_path: Path) -> None:
    """glibc fills freed memory with a pattern and aborts at the first overrun it finds."""
    checks = {
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": "165",
        "LD_PRELOAD": "libc_malloc_debug.so.0",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **checks},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"
