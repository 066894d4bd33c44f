"""Compiled equals eager in every direction, with one graph for all couplings."""

import copy
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flows import compile as flow_compile
from flows.bases import NormalUniform
from flows.build import spline_flow
from flows.compile import can_compile, compile_ahead, compile_flow, compiled
from flows.conditioners import Conditioner, PeriodicFeatures
from flows.flow import Flow
from flows.transforms import SplineCoupling, couplings
from tests.flows.bent import bent

PERIODIC = [True, True, False, False] * 2
N = 40

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler"
)


def pair() -> tuple[Flow, Flow]:
    """Couplings of angles and lines together, of one size: one graph a use."""
    periodic = torch.tensor(PERIODIC)
    layers = []
    for half in (torch.arange(8) < 4, torch.arange(8) >= 4):
        features = PeriodicFeatures(~half, periodic, n_frequencies=1)
        conditioner = partial(Conditioner, features, hidden=(16,), gain=2.0)
        layers.append(SplineCoupling(half, periodic, conditioner, n_bins=2))
    flow = bent(Flow(layers, NormalUniform(periodic)), 0.2)
    return flow, compile_flow(copy.deepcopy(flow))


def everything(flow: Flow) -> dict[str, list[Tensor]]:
    """All directions that training and evaluation use, and their gradients."""
    generator = torch.Generator().manual_seed(3)
    x = 2 * flow.base.draw(N, generator=generator)
    parameters = list(flow.parameters())
    out = {}
    log_q = flow.log_prob(x)
    out["log_prob"] = [log_q, *torch.autograd.grad(log_q.mean(), parameters)]
    leaf = x.clone().requires_grad_()
    log_q = flow.log_prob(leaf)
    out["log_prob by x"] = list(torch.autograd.grad(log_q.sum(), [leaf, *parameters]))
    y, log_q = flow.rsample_and_log_prob(N, generator=generator)
    loss = (log_q + y.square().sum(1)).mean()
    out["rsample"] = [y, log_q, *torch.autograd.grad(loss, parameters)]
    with torch.no_grad():
        out["log_prob without gradient"] = [flow.log_prob(x)]
    out["sample"] = list(flow.sample_and_log_prob(N, generator=generator))
    return out


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_equals_eager() -> None:
    torch.set_default_dtype(torch.float64)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = pair()
    expected, got = everything(eager), everything(compiled)
    for name, values in expected.items():
        for a, b in zip(values, got[name], strict=True):
            scale = float(a.detach().abs().max())
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10 * scale, msg=name)
    # Both directions, with and without gradient.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    assert not torch._dynamo.utils.counters["graph_break"]
    # A compiled flow can be copied, and the copy has its own parameters.
    other = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        x = other.base.draw(N, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(other.log_prob(x), other.base.log_prob(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4


def test_what_is_missing_is_said_in_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(flow_compile.shutil, "which", lambda name: None)
    monkeypatch.setattr(flow_compile.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.warns(UserWarning, match=r"a C\+\+ compiler .* and Python's headers") as record:
        assert not can_compile()
    assert len(record) == 1
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(flow_compile.shutil, "which", lambda name: name == "g++" and "/bin/g++")
    assert can_compile()


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_second_process_compiles_the_direction_of_the_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its code comes through the cache on disk: nothing is left to generate here."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(flow_compile, "_ahead", [])
    torch._dynamo.reset()
    compiled.cache_clear()
    torch._dynamo.utils.counters.clear()
    flow = compile_flow(spline_flow([False] * 4, n_couplings=2, hidden=(8,), n_bins=2))
    compile_ahead(flow, N)
    compile_ahead(flow, N)  # it has begun: no third one
    assert len(flow_compile._ahead) == 1
    x = flow.base.draw(N, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(flow.log_prob(x).mean(), list(flow.parameters()))
    assert flow_compile._ahead[0].exitcode == 0
    counters = torch._dynamo.utils.counters["inductor"]
    assert counters["fxgraph_cache_hit"] == 2  # forward and backward
    assert counters["fxgraph_cache_miss"] == 0
    for layer in couplings(flow):
        layer.wrapper = None
    expected = torch.autograd.grad(flow.log_prob(x).mean(), list(flow.parameters()))
    torch.testing.assert_close(gradients, expected)
