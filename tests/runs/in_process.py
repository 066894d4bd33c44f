"""Commands in the process of the test: `test_commands.py` has those in their own."""

import contextlib
import io
import sys
import warnings
from types import ModuleType

import pytest
from hydra.core.global_hydra import GlobalHydra


def command(module: ModuleType, *overrides: str) -> None:
    """Run a command with what stands on its command line."""
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["command", *overrides])
        module.main()


def refused(module: ModuleType, *overrides: str) -> str:
    """Return what a command says when it refuses."""
    said = io.StringIO()
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stderr(said):
        command(module, *overrides)
    assert ended.value.code == 1
    assert "Traceback" not in said.getvalue()
    return said.getvalue()
