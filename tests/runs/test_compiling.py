"""Whether a run is compiled: asked for, forbidden, or left to what the machine has."""

import pytest

from flows.build import spline_flow
from flows.flow import Flow
from flows.transforms import SplineCoupling
from runs import compiling
from runs.cli import CommandError
from runs.compiling import compile_all


class Target:
    compiled = False

    def compile(self) -> None:
        self.compiled = True


def is_compiled(flow: Flow) -> list[bool]:
    return [m.wrapper is not None for m in flow.modules() if isinstance(m, SplineCoupling)]


@pytest.mark.parametrize(
    ("mode", "possible", "expected"),
    [(True, False, True), (False, True, False), ("auto", True, True), ("auto", False, False)],
)
def test_mode(
    mode: bool | str, possible: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "can_compile", lambda: possible)
    flow, target = spline_flow([True, False], n_couplings=2), Target()
    compile_all(flow, target, mode)
    assert set(is_compiled(flow)) == {expected}
    assert target.compiled is expected


def test_unknown_mode() -> None:
    with pytest.raises(CommandError, match="auto, true or false, got 'maybe'"):
        compile_all(spline_flow([True, False]), Target(), "maybe")
