"""The run folder: what a run leaves behind, and how other commands find it."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flows.files import locked, replacing, write_json
from runs.cli import CommandError
from runs.status import LOCK
from runs.targets import check_targets

__all__ = [
    "RunFolder", "git_revision", "provenance", "write_arrays", "write_json",
    "writing_into",
]  # fmt: skip

PACKAGES = ("torch", "nflows", "openmm", "mdtraj", "hydra-core", "numpy")


_PACKAGE = Path(__file__).resolve().parent


class RunFolder:
    """Names of the files of one run.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.checkpoint = self.path / "checkpoints" / "last.pt"
        self.exported = self.path / "flow.safetensors"
        self.log = self.path / "metrics.jsonl"
        self.metrics = self.path / "metrics.json"
        self.samples = self.path / "samples.npz"
        self.figures = self.path / "figures"

    @classmethod
    def open(
        cls,
        path: Path | str | None,
        *,
        key: str = "run",
        needs: Sequence[str] = ("config.yaml", "checkpoints/last.pt or flow.safetensors"),
    ) -> "RunFolder":
        """Return an existing run folder.

        Args:
            path: The folder; or one that comes with the package, such as pretrained/aldp.
            key: The config key that named it, for messages.
            needs: Files that must be there; of several joined by "or" one.

        Raises:
            CommandError: It is not there, or holds no run.
        """
        if path is None:
            raise CommandError(f"Expected {key}=<folder of a training run>, got none.")
        folder = cls(path)
        if not folder.path.is_dir() and (_PACKAGE / path / "config.yaml").is_file():
            folder = cls(_PACKAGE / path)
        if not folder.path.is_dir():
            raise CommandError(
                f"Expected {key} to be the folder of a run, got {path}: no such one."
            )
        for name in needs:
            if not any((folder.path / one).is_file() for one in name.split(" or ")):
                raise CommandError(
                    f"Expected {key} to be the folder of a run, got {path}, which lacks {name}."
                )
        return folder

    @property
    def shipped(self) -> bool:
        """Whether it comes with the package, and is not to be written into."""
        return self.path.resolve().is_relative_to(_PACKAGE / "pretrained")

    @property
    def config(self) -> DictConfig:
        """The resolved config that the run was started with, safe to build from."""
        config = self.read_config()
        check_targets(config, self.config_file)
        return config

    def read_config(self) -> DictConfig:
        """Return the config to look at, not to build from: it may be someone else's."""
        try:
            config = OmegaConf.load(self.config_file)
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            why = " ".join(str(error).split())
            raise CommandError(
                f"Expected the config of a training run in {self.config_file}, got: {why}."
            ) from error
        if not isinstance(config, DictConfig) or "system" not in config:
            raise CommandError(f"Expected the config of a training run in {self.config_file}.")
        return config

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Keep other runs out of this folder while this one goes on.

        Raises:
            CommandError: One of them is at work here.
            OSError: It cannot be written into.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / LOCK))
            except BlockingIOError as error:
                raise CommandError(
                    f"Expected a run folder of its own, got {self.path}, in which another "
                    "process is at work."
                ) from error
            yield

    def start(self, config: DictConfig) -> None:
        """Create the folder and write down what is about to run."""
        self.path.mkdir(parents=True, exist_ok=True)
        plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        with replacing(self.config_file) as temporary:
            OmegaConf.save(plain, temporary)
        write_json(self.path / "versions.json", provenance())


def provenance() -> dict[str, Any]:
    """Return what else a result depends on: code, packages, machine, command."""
    return {
        "git_revision": git_revision(),
        "git_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "command": shlex.join([*_program(), *sys.argv[1:]]),
    }


def git_revision() -> str | None:
    """Return the revision of this code; None where it is in no repository."""
    return _git("rev-parse", "HEAD") or None


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        said = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:  # no git here
        return ""
    return said.stdout.strip()


def _program() -> list[str]:
    """What was started: a module by its name, whose file lies elsewhere on another machine."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return [sys.argv[0]] if module is None else ["python", "-m", module.name]


@contextmanager
def writing_into(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a CommandError."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"Expected to write into {path}, got: {error}.") from error


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write a compressed npz whole or not at all."""
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)
