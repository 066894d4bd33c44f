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
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from energies.errors import EnergyInputError
from flows.errors import FlowInputError, TrainingError
from flows.training import InterruptedRunError
from runs import resolvers
from runs.errors import CommandError as CommandError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


resolvers.register()

OUR_ERRORS = (CommandError, EnergyInputError, FlowInputError, TrainingError)


def run_command(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Run `task` on the config that the command line asks for, and exit.

    Exit status: 0 done, 1 wrong input or a failed run (one sentence on standard error),
    130 stopped from outside.

    Args:
        task: Receives the composed config.
        config_name: Name of the primary config in `configs/`.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here rather than to Hydra's printer
    failed: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)
    def main(config: DictConfig) -> None:
        try:
            task(config)
        except Exception as error:  # raised again below, past Hydra's own report
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise  # a job; the launcher brings it back, from another process too
            failed.append(error)

    try:
        main()
        if failed:
            raise failed[0]
    except InterruptedRunError as error:
        sys.exit(_say(str(error), 130))
    except KeyboardInterrupt:
        sys.exit(_say("Stopped.", 130))
    except OUR_ERRORS as error:
        sys.exit(_say(str(error), 1))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_say(_explain(error, config_name), 1))


def _say(sentence: str, status: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    return status


def _explain(error: Exception, config_name: str) -> str:
    """One sentence for an override that Hydra refused, with the valid names."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OUR_ERRORS):
            return str(cause)
        if match := re.search(r"is not in struct\s+full_key: (\S+)", str(cause)):
            return _unknown_key(match.group(1), config_name)
        if isinstance(cause, TypeError):  # a wrong argument of what `_target_` names
            return f"Expected arguments that the config's _target_ takes, got: {cause}."
        cause = cause.__cause__
    return " ".join(str(error).split())


def _unknown_key(key: str, config_name: str) -> str:
    """Name the keys that stand where `key` was looked for."""
    GlobalHydra.instance().clear()
    choices = [a for a in sys.argv[1:] if (CONFIGS / a.partition("=")[0]).is_dir()]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node = compose(config_name, overrides=choices)
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
