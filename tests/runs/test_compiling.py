"""Whether a run is compiled: asked for, forbidden, or left to what the machine has."""

from pathlib import Path

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


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" goes on uncompiled and says so once; asked for, it is an error of the disk."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="compiled code cannot be kept: .*cache.*names another"):
        assert not compiling.wants_compiled("auto")
    with pytest.raises(OSError, match="cache"):
        compiling.wants_compiled(True)
