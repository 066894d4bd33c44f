"""No step waits for the device, but where a rung begins: what runs there can always run ahead.

Whatever the host reads of a tensor passes torch's dispatcher, on a CPU as on a GPU: a CPU shows
where a GPU would have to wait.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import Adam
from torch.utils._python_dispatch import TorchDispatchMode

from flows.build import spline_flow
from flows.training import Muon
from flows.training.session import Session
from tests.flows.ring import METHODS, SMALL, Ring, of

READING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select",
    "aten::equal", "aten::_unique2", "aten::unique_dim",
}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class Readings(TorchDispatchMode):
    """Notes the operations whose result, or its shape, the host has to know."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name
        masks = name in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READING or masks:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def session_of(method: str, device: str = "cpu", optimizer: Any = Muon) -> Session:
    stage = of(method, 48)
    stage.optimizer = partial(optimizer, lr=1e-3)
    return Session(
        spline_flow(Ring.periodic, **SMALL).to(device), Ring(), [stage],
        generator=torch.Generator(device).manual_seed(0), clip_norm=20.0, ema_decay=0.9,
    )  # fmt: skip


def begins_rung(session: Session) -> bool:
    """Whether the next step decides about the path or fills a buffer, for which it may read."""
    session.stage.path.update(session.progress)
    return session.stage_steps == 0 or session.stage.path.due


def readings(session: Session) -> list[str]:
    with Readings() as mode:
        session.step()
    return mode.seen


@pytest.mark.parametrize("method", METHODS)
def test_no_step_reads_the_device(method: str) -> None:
    session = session_of(method)
    n_checked = 0
    for _ in range(12):
        if begins_rung(session):
            session.step()
        else:
            assert not readings(session)
            n_checked += 1
    assert n_checked >= 8


def test_reading_is_seen() -> None:
    """The check can fail: Adam that is not fused asks for the number of its step."""
    session = session_of("l2_plus", optimizer=partial(Adam, fused=False, foreach=False))
    assert "aten::_local_scalar_dense" in readings(session)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_gpu(method: str) -> None:
    session = session_of(method, "cuda")
    for _ in range(12):
        torch.cuda.set_sync_debug_mode("default" if begins_rung(session) else "error")
        try:
            session.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
