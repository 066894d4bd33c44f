"""Whether a run is compiled: asked for, forbidden, or left to what the machine has."""

from pathlib import Path

import pytest

from flows.build import spline_flow
from flows.transforms import couplings
from runs import compiling
from runs.cli import CommandError
from runs.compiling import compile_all, worth_compiling


@pytest.mark.parametrize(
    ("mode", "possible", "rows", "expected"),
    [
        (True, False, 0, True),
        (False, True, 1e9, False),
        ("auto", True, 1e9, True),
        ("auto", False, 1e9, False),
        ("auto", True, 1e3, False),
    ],
)
def test_mode(
    mode: bool | str,
    possible: bool,
    rows: float,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compiling, "can_compile", lambda: possible)
    caplog.set_level("INFO")
    flow = spline_flow([True, False], n_couplings=2)
    assert worth_compiling(mode, flow, rows) is expected
    assert ("1e+03 points are too few" in caplog.text) is (rows == 1e3)


def test_everything_is_compiled() -> None:
    flow, target = spline_flow([True, False], n_couplings=2), Target()
    compile_all(flow, target)
    layers = couplings(flow)
    assert layers
    assert all(layer.wrapper is not None for layer in layers)
    assert target.compiled


class Target:
    compiled = False

    def compile(self) -> None:
        self.compiled = True


def test_unknown_mode() -> None:
    with pytest.raises(CommandError, match="auto, true or false, got 'maybe'"):
        worth_compiling("maybe", spline_flow([True, False]), 1e9)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" goes on uncompiled and says so once; asked for, it is an error of the disk."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="compiled code cannot be kept: .*cache.*names another"):
        assert not compiling.wants_compiled("auto")
    with pytest.raises(OSError, match="cache"):
        compiling.wants_compiled(True)
