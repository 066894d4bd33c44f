"""Hydra entry points that answer bad input with one sentence instead of a traceback."""

import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from energies.errors import EnergyInputError
from flows.errors import FlowInputError, TrainingError
from flows.training import InterruptedRunError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class CommandError(ValueError):
    """A command cannot do what was asked; the message says what was expected."""


def run_command(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Run `task` on the config that the command line asks for, and exit.

    Exit status: 0 done, 1 wrong input or a failed run (one sentence on standard error),
    130 stopped from outside.

    Args:
        task: Receives the composed config.
        config_name: Name of the primary config in `configs/`.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here rather than to Hydra's printer
    main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    try:
        main()
    except InterruptedRunError as error:
        sys.exit(_say(str(error), 130))
    except KeyboardInterrupt:
        sys.exit(_say("Stopped.", 130))
    except (CommandError, EnergyInputError, FlowInputError, TrainingError) as error:
        sys.exit(_say(str(error), 1))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_say(_explain(error, config_name), 1))


def _say(sentence: str, status: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    return status


def _explain(error: Exception, config_name: str) -> str:
    """One sentence for an override that Hydra refused, with the valid names."""
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if match := re.search(r"full_key: (\S+)", str(cause)):
            return _unknown_key(match.group(1), config_name)
        if match := re.search(r"Error (?:in call to|instantiating|locating)[^']*'(.+?)'", text):
            reason = str(error.__cause__ or text).splitlines()[0]
            return f"Expected valid arguments for {match.group(1)}, got: {reason}"
        cause = cause.__cause__
    return " ".join(text.split())


def _unknown_key(key: str, config_name: str) -> str:
    """Name the keys that stand where `key` was looked for."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node = compose(config_name)
    *parents, leaf = key.split(".")
    for name in parents:
        node = OmegaConf.select(node, name, default=None)
        if not isinstance(node, DictConfig):
            return f"Expected a config key, got {key!r}."
    valid = sorted(str(k) for k in node)
    close = difflib.get_close_matches(leaf, valid, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    where = ".".join(parents) or "the config"
    return f"Expected a key of {where} ({', '.join(valid)}), got {leaf!r}.{hint}"
