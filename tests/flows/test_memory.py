"""Points that go through a flow in pieces give the same, in the memory of a piece."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flows import memory
from flows.build import spline_flow
from flows.errors import FlowInputError
from flows.losses import ForwardKL, L2Plus, Loss, ReverseKL, ReverseKLPath
from flows.memory import bytes_of_row, free_memory, rows_that_fit
from flows.paths import Temperature
from flows.training.session import Session
from flows.transforms import couplings
from tests.flows.ring import SMALL, Ring, stage

PERIODIC = [False] * 12 + [True] * 4


def stored(call: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of what `call` returns."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = call()
    del result
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_couplings": 4, "hidden": (64,) * 4, "n_bins": 16},
        {"n_couplings": 12, "hidden": (16,), "n_bins": 4, "circle_bins": 4},
    ],
)
def test_estimate_is_what_autograd_keeps(sizes: dict[str, object]) -> None:
    flow, n = spline_flow(PERIODIC, **sizes), 512
    weights = sum(p.numel() * p.element_size() for p in flow.parameters())
    x, _ = flow.sample_and_log_prob(n)
    for call in (lambda: flow.log_prob(x), lambda: flow.rsample_and_log_prob(n)):
        assert bytes_of_row(flow) == pytest.approx((stored(call) - weights) / n, rel=0.3)


@pytest.mark.parametrize("loss", [ReverseKL(), ReverseKLPath(), L2Plus(), ForwardKL()])
def test_steps_in_pieces_are_the_same(loss: Loss) -> None:
    torch.set_default_dtype(torch.float64)
    found, seen = [], []
    for size in (None, 100):
        flow = spline_flow(Ring.periodic, **SMALL)
        flow.rows_at_once = size
        for layer in couplings(flow):
            layer.conditioner.register_forward_hook(
                lambda module, args, result: seen.append(args[0].shape[1])
            )
        session = Session(
            flow, Ring(), [stage(loss, path=Temperature(300.0))], ema_decay=0.0,
            generator=torch.Generator().manual_seed(0), clip_norm=20.0,
        )  # fmt: skip
        for _ in range(3):
            session.step()
        found.append([p.detach() for p in session.parameters])
        assert set(seen) == ({256} if size is None else {100, 56})
        seen.clear()
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-12)


def test_pieces_keep_next_to_nothing() -> None:
    flow = spline_flow(PERIODIC)
    x, _ = flow.sample_and_log_prob(512)
    whole = stored(lambda: flow.log_prob(x))
    flow.rows_at_once = 64
    assert stored(lambda: flow.log_prob(x)) < 0.02 * whole


def test_weights_that_are_frozen_get_no_gradient_in_pieces() -> None:
    flow = spline_flow(PERIODIC)
    flow.rows_at_once = 64
    x = flow.sample_and_log_prob(256)[0].requires_grad_()
    flow.requires_grad_(False)
    log_q = flow.log_prob(x)
    flow.requires_grad_(True)
    log_q.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None and p.requires_grad for p in flow.parameters())


@pytest.mark.parametrize(
    ("n", "free", "size"), [(1000, 10**6, None), (1000, 199_999, 500), (1001, 100_000, 251)]
)
def test_batch_is_halved_until_it_fits(n: int, free: int, size: int | None) -> None:
    assert rows_that_fit(100, n, free) == size


def test_batch_that_is_too_large_even_so() -> None:
    with pytest.raises(
        FlowInputError, match=r"trainer.batch_size .* got 1000000, a 64th of which"
    ):
        rows_that_fit(10_000, 10**6, 2**28)


def test_limit_of_a_job_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert free_memory(cpu) > 2**20
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert free_memory(cpu) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(cpu) > 2_000_000
