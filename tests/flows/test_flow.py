"""The flow as a density: it integrates to one, samples itself, and learns."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from flows.bases import NormalUniform
from flows.build import halves, spline_flow
from flows.errors import FlowInputError
from flows.flow import Flow
from tests.flows.bent import bent

MIXED = [True, False, False, True, False]


@pytest.fixture(autouse=True)
def _double(_reproducible: None) -> None:
    torch.set_default_dtype(torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_flow(periodic: list[bool], scale: float = 0.15, **options: object) -> Flow:
    small = {"n_couplings": 4, "hidden": (16, 16), "n_circle_couplings": 4, "n_frequencies": 2}
    return bent(spline_flow(periodic, **{**small, "circle_hidden": (16, 16), **options}), scale)


@pytest.mark.parametrize(
    "periodic", [[True], [False], [True, True], [True, False], [False, False]], ids=str
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_density_integrates_to_one(periodic: list[bool], precision: str) -> None:
    flow = random_flow(periodic, precision=precision)
    # Circles: the rectangle rule on one turn; lines: on an interval that holds almost all mass.
    n = 600 if len(periodic) == 2 else 20_000
    limit = [math.pi if p else 15.0 for p in periodic]
    steps = [2 * w / n for w in limit]
    axes = [torch.arange(n) * h - w + h / 2 for h, w in zip(steps, limit, strict=True)]
    grid = torch.cartesian_prod(*axes).reshape(-1, len(periodic))
    with torch.no_grad():
        mass = sum(flow.log_prob(part).exp().sum() for part in grid.split(60_000))
    assert abs(float(mass) * math.prod(steps) - 1) < 1e-3


@pytest.mark.parametrize("periodic", [MIXED, [True] * 3, [False] * 3, [False], [True]], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_samples_carry_their_density(
    periodic: list[bool], dtype: torch.dtype, atol: float
) -> None:
    flow = random_flow(periodic).to(dtype)
    x, log_q = flow.sample_and_log_prob(500, generator=rng())
    assert x.dtype == dtype
    assert log_q.dtype == torch.float64
    assert not x.requires_grad
    assert not log_q.requires_grad
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=atol)
    angles = x[:, flow.periodic]
    assert ((angles >= -math.pi) & (angles <= math.pi)).all()
    again, log_again = flow.rsample_and_log_prob(500, generator=rng())
    assert again.requires_grad
    torch.testing.assert_close((again, log_again), (x, log_q))


def test_rounded_products_change_the_flow_a_little_and_keep_its_density() -> None:
    """Samples come back, with the density they were drawn with, where rounding is the same."""
    fine, coarse = (random_flow(MIXED, precision=p).float() for p in ("fp32", "bf16"))
    z = fine.base.draw(2000, generator=rng())
    with torch.no_grad():
        x, log_q = coarse.from_noise(z, coarse.base.log_prob(z))
        back = coarse.log_prob(x)
        change = (log_q - fine.log_prob(x)).abs()
    # A last bit of x now and then rounds to the other neighbour in bfloat16.
    assert float((back - log_q).abs().median()) < 1e-3
    assert float((back - log_q).abs().max()) < 0.3
    assert 1e-4 < float(change.median()) < 0.1


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(FlowInputError, match="one of fp32, bf16, got 'tf32'"):
        random_flow(MIXED, precision="tf32")


def test_reparametrised_gradient_agrees_with_finite_differences() -> None:
    flow = random_flow(MIXED)
    parameters = list(flow.parameters())
    direction = [torch.randn(p.shape, generator=rng(2)) for p in parameters]
    step = 1e-6

    def loss() -> Tensor:
        x, log_q = flow.rsample_and_log_prob(200, generator=rng())
        return (log_q + x[:, 0].cos() + x[:, 1].tanh() * x[:, 3].sin()).mean()

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(by * d)
            return loss()

    grads = torch.autograd.grad(loss(), parameters)
    slope = torch.stack([(g * d).sum() for g, d in zip(grads, direction, strict=True)]).sum()
    high, low = moved(step), moved(-2 * step)
    torch.testing.assert_close(slope, (high - low) / (2 * step), rtol=1e-5, atol=0)


def test_starts_as_its_base() -> None:
    flow = spline_flow(MIXED, base_scale=1.5)
    x = flow.base.draw(50, generator=rng())
    normal = torch.distributions.Normal(0, 1.5).log_prob(x[:, [1, 2, 4]]).sum(1)
    torch.testing.assert_close(flow.log_prob(x), normal - 2 * math.log(2 * math.pi))


def test_base_draws_its_moments() -> None:
    base = NormalUniform(torch.tensor(MIXED), scale=2.0)
    z = base.draw(40_000, generator=rng())
    variance = torch.where(torch.tensor(MIXED), math.pi**2 / 3, 4.0)
    # Six standard errors; a uniform's kurtosis is smaller than the normal's.
    assert (z.mean(0).abs() < 6 * (variance / 40_000).sqrt()).all()
    assert ((z.var(0) - variance).abs() < 6 * variance * math.sqrt(2 / 40_000)).all()


def test_same_seed_same_flow_and_global_state_untouched() -> None:
    before = torch.get_rng_state()
    a, b, c = (spline_flow(MIXED, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    states = [{k: v.double() for k, v in f.state_dict().items()} for f in (a, b, c)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])
    x, _ = a.sample_and_log_prob(3, generator=rng(5))
    y, _ = b.sample_and_log_prob(3, generator=rng(5))
    z, _ = b.sample_and_log_prob(3, generator=rng(6))
    assert torch.equal(x, y)
    assert not torch.equal(x, z)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 7, 8, 53])
def test_halves_have_one_size_and_separate_every_two(n: int) -> None:
    torch.manual_seed(0)
    mask = torch.arange(n + 3) >= 3
    n_bits = math.ceil(math.log2(n))
    masks = torch.stack(list(halves(mask, 2 * n_bits)))
    assert not masks[:, ~mask].any()
    assert (masks.sum(1) == (n + 1) // 2).all()
    first, second = masks[::2, mask], masks[1::2, mask]
    assert (first | second).all()
    assert ((first & second).sum(1) == n % 2).all()
    apart = (masks[:, mask, None] & ~masks[:, None, mask]).any(0)
    assert torch.equal(apart | apart.T, ~torch.eye(n, dtype=torch.bool))


@pytest.mark.parametrize("n", [0, 1])
def test_halves_of_one_or_none(n: int) -> None:
    masks = list(halves(torch.arange(4) < n, 3))
    assert [int(m.sum()) for m in masks] == [1] * 3 * n


def test_angles_depend_on_angles_only_and_lines_on_everything() -> None:
    flow = random_flow(MIXED)
    x = flow.base.draw(1, generator=rng())
    jacobian = torch.autograd.functional.jacobian(lambda v: flow._transform(v)[0].sum(0), x)
    depends = jacobian[:, 0].abs() > 1e-12
    periodic = torch.tensor(MIXED)
    assert torch.equal(depends[periodic], periodic.expand(int(periodic.sum()), -1))
    assert depends[~periodic].all()


def test_learns_a_wrapped_mixture() -> None:
    """Maximum likelihood comes within 0.05 nats of the entropy, from 0.9 above it."""
    torch.set_default_dtype(torch.float32)
    # φ is von Mises about π, across the seam; given φ, r is normal about 1.5 cos φ.
    n, concentration, width = 8192, 4.0, 0.4
    phi = torch.distributions.VonMises(torch.tensor(math.pi), torch.tensor(concentration))
    angle = phi.sample((n,))
    r = 1.5 * angle.cos() + width * torch.randn(n, generator=rng())
    data = torch.stack([torch.remainder(angle + math.pi, 2 * math.pi) - math.pi, r], dim=1)
    normal = torch.distributions.Normal(1.5 * angle.cos(), width)
    entropy = -float((phi.log_prob(angle) + normal.log_prob(r)).double().mean())
    flow = spline_flow([True, False], n_couplings=4, hidden=(32, 32))
    with torch.no_grad():
        assert -float(flow.log_prob(data).mean()) > entropy + 0.9
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    train, test = data[: n // 2], data[n // 2 :]
    generator = rng()
    for _ in range(150):
        rows = torch.randint(len(train), (256,), generator=generator)
        loss = -flow.log_prob(train[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert abs(-float(flow.log_prob(test).mean()) - entropy) < 0.05


def test_copies_are_independent() -> None:
    flow = random_flow(MIXED)
    other = copy.deepcopy(flow)
    x = flow.base.draw(4, generator=rng())
    before = other.log_prob(x)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    assert torch.equal(other.log_prob(x), before)
    assert not torch.equal(flow.log_prob(x), before)


def test_bad_arguments_are_named() -> None:
    flow = spline_flow(MIXED, n_couplings=1)
    with pytest.raises(FlowInputError, match=r"Expected inputs of shape \[n, 5\], got \[4, 3\]"):
        flow.log_prob(torch.zeros(4, 3))
    with pytest.raises(FlowInputError, match="context"):
        flow.log_prob(torch.zeros(4, 5), torch.zeros(4, 1))
    with pytest.raises(FlowInputError, match="Expected n >= 1, got 0"):
        flow.sample_and_log_prob(0)
    for name in ("n_couplings", "n_circle_couplings"):
        with pytest.raises(FlowInputError, match=f"Expected {name} >= 1, got 0"):
            spline_flow(MIXED, **{name: 0})
    with pytest.raises(FlowInputError, match="hidden"):
        spline_flow(MIXED, hidden=())
    with pytest.raises(FlowInputError, match="Expected scale > 0"):
        spline_flow(MIXED, base_scale=0.0)
    with pytest.raises(FlowInputError, match="squash"):
        spline_flow(MIXED, tail_bound=0.0)
    with pytest.raises(FlowInputError, match="Expected periodic of shape"):
        spline_flow([])


def test_import_is_light() -> None:
    heavy = {"openmm", "mdtraj", "hydra", "wandb"}
    code = f"import sys, flows.build; print(*(set(sys.modules) & {heavy}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
