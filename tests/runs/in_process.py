"""Commands in the process of the test: `test_commands.py` has those in their own."""

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
