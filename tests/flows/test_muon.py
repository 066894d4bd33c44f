"""Muon against singular values, against torch's Adam, and through a checkpoint."""

import math

import pytest
import torch

from flows.errors import FlowInputError
from flows.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(5, 5), (40, 12), (12, 40)])
def test_singular_values_become_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    n = min(shape)
    left = torch.linalg.qr(torch.randn(shape[0], n, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(shape[1], n, dtype=torch.float64)).Q
    result = orthogonalised(left @ torch.diag(torch.logspace(0, -2, n)).double() @ right.T)
    core = left.T @ result @ right
    torch.testing.assert_close(left @ core @ right.T, result, rtol=0, atol=1e-12)
    off_diagonal = core - torch.diag(core.diagonal())
    assert off_diagonal.abs().max() < 1e-12
    assert core.diagonal().min() > 0.65
    assert core.diagonal().max() < 1.25


def test_zero_gradient_moves_nothing() -> None:
    matrix = torch.nn.Parameter(torch.ones(3, 4))
    matrix.grad = torch.zeros(3, 4)
    Muon([matrix]).step()
    assert torch.equal(matrix, torch.ones(3, 4))


def test_first_step_of_a_matrix_has_the_stated_length() -> None:
    """The root mean square of 0.2 lr √max(m, n) U Vᵀ is 0.2 lr, singular values being one."""
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(64, 16, dtype=torch.float64))
    matrix.grad = torch.randn(64, 16, dtype=torch.float64)
    Muon([matrix], lr=0.1).step()
    assert matrix.pow(2).mean().sqrt().item() == pytest.approx(0.02, rel=0.2)
    assert (matrix * matrix.grad).sum() < 0


def test_other_parameters_follow_adam() -> None:
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(7))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizers = (
        Muon([ours], lr=0.01, betas=(0.9, 0.99)),
        torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99)),
    )
    for _ in range(20):
        gradient = torch.randn(7)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_state_that_is_stored_and_loaded_gives_the_same_steps() -> None:
    def problem() -> tuple[torch.nn.Linear, Muon]:
        torch.manual_seed(3)
        layer = torch.nn.Linear(6, 4)
        return layer, Muon(layer.parameters(), lr=0.05)

    def steps(layer: torch.nn.Linear, optimizer: Muon, first: int, last: int) -> None:
        for k in range(first, last):
            generator = torch.Generator().manual_seed(k)
            x, y = torch.randn(8, 6, generator=generator), torch.randn(8, 4, generator=generator)
            optimizer.zero_grad()
            torch.autograd.backward((layer(x) - y).pow(2).mean())
            optimizer.step()

    whole, optimizer = problem()
    steps(whole, optimizer, 0, 6)
    half, optimizer = problem()
    steps(half, optimizer, 0, 3)
    weights, state = half.state_dict(), optimizer.state_dict()
    resumed, optimizer = problem()
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    steps(resumed, optimizer, 3, 6)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, r"Expected lr > 0, got 0\.0"),
        ({"momentum": 1.0}, r"Expected momentum in \[0, 1\), got \[1\.0\]"),
        ({"betas": (0.9, math.nan)}, r"Expected betas in \[0, 1\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(FlowInputError, match=message):
        Muon([torch.nn.Parameter(torch.zeros(2))], **arguments)
