import pytest
import torch

from energies.forcefield.pairs import (
    collect,
    pair_distances,
    pair_indices,
    pair_weights,
    spread,
)


@pytest.mark.parametrize("n", range(8))
def test_every_pair_counts_once(n: int) -> None:
    count = torch.zeros(n, n, dtype=torch.float64)
    first, second = pair_indices(n)
    count.index_put_((first, second), pair_weights(n), accumulate=True)
    assert torch.equal(count + count.T, 1.0 - torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("n", range(1, 8))
def test_spread_follows_the_indices_and_collect_is_its_transpose(n: int) -> None:
    x = torch.randn(n, 5, dtype=torch.float64, requires_grad=True)
    first, second = pair_indices(n)
    one, two = spread(x)
    assert torch.equal(one, x[first])
    assert torch.equal(two, x[second])
    a, b = torch.randn(2, *two.shape, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros_like(x).index_add(0, first.flatten(), a.flatten(0, 1))
    expected = expected.index_add(0, second.flatten(), b.flatten(0, 1))
    torch.testing.assert_close(collect(a, b), expected)
    assert torch.autograd.gradcheck(spread, (x,))
    assert torch.autograd.gradgradcheck(spread, (x,))
    a, b = (y.detach().requires_grad_() for y in (a, b))
    assert torch.autograd.gradcheck(collect, (a, b))
    assert torch.autograd.gradgradcheck(collect, (a, b))


@pytest.mark.parametrize("n", range(2, 8))
def test_distances_and_their_derivatives(n: int) -> None:
    xyz = torch.randn(3, n, 2, dtype=torch.float64, requires_grad=True)
    first, second = pair_indices(n)
    r = pair_distances((xyz[0], xyz[1], xyz[2]))
    expected = (xyz[:, first] - xyz[:, second]).norm(dim=0)
    torch.testing.assert_close(r, expected)
    w = torch.randn_like(r)
    ours, theirs = (torch.autograd.grad((w * y).sum(), xyz) for y in (r, expected))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda c: pair_distances(tuple(c)), (xyz,))
    assert torch.autograd.gradgradcheck(lambda c: pair_distances(tuple(c)), (xyz,))
