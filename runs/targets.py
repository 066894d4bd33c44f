"""What a config from a run folder may name: opening someone else's run runs no code of theirs."""

import importlib
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from omegaconf import DictConfig, OmegaConf

from energies.shipped import SHIPPED
from runs.cli import CommandError, allowed

TRUSTED = ("flows", "energies", "runs", "torch.optim")
"""Packages whose classes, and functions that build, a stored config may name."""

BUILDERS = ("flows.build",)
"""Modules of those whose functions may be named as well: others write files, for one."""


def check_targets(config: DictConfig, source: Path) -> None:
    """Look at everything in a stored config that could run code once objects are made of it.

    Args:
        config: As it was stored.
        source: Its file.

    Raises:
        CommandError: A `_target_` is neither a class of `TRUSTED` nor allowed, a value is not
            resolved, or a force field file that is not OpenMM's own has a script in it.
    """
    for key, value in _leaves(OmegaConf.to_container(config, resolve=False)):
        if key.rpartition(".")[2] == "_target_":
            if not (_within(str(value), allowed.get()) or _is_ours(str(value))):
                package = str(value).partition(".")[0]
                raise CommandError(
                    f"Expected every _target_ in {source} to be a class of {', '.join(TRUSTED)}, "
                    f"got {key}: {value}. If you trust it: allow=[{package}]."
                )
        elif isinstance(value, str) and value not in allowed.get():
            if "${" in value:  # would be another text once it is used
                raise CommandError(f"Expected resolved values in {source}, got {key}: {value}.")
            for file in _found_by_openmm(value):
                if _has_script(file, set()):
                    raise CommandError(
                        f"Expected force field files without scripts in {source}, got {key}: "
                        f"{value}, from which OpenMM would run code. If you trust it: "
                        f"'allow=[{value}]'."
                    )


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is not a container, under its dotted key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{key}.{i}")
    else:
        yield key, node


def _within(name: str | None, packages: Sequence[str]) -> bool:
    return name is not None and any(name == p or name.startswith(f"{p}.") for p in packages)


def _is_ours(name: str) -> bool:
    """Whether a dotted name leads to a class, or to what builds one, all the way through ours.

    A name such as flows.files.os.system begins well and ends elsewhere: what is found must have
    been written where its name says.
    """
    if not _within(name, TRUSTED):
        return False
    first, *parts = name.split(".")
    found: Any = importlib.import_module(first)
    for i, part in enumerate(parts):
        module = ".".join([first, *parts[: i + 1]])
        if inspect.ismodule(found):
            found = getattr(found, part, None) or _imported(module)
            if inspect.ismodule(found) and found.__name__ != module:
                return False
        else:  # of a class, its classmethods alone
            found = getattr(inspect.getattr_static(found, part, None), "__func__", None)
    if inspect.ismodule(found) or not _within(getattr(found, "__module__", None), TRUSTED):
        return False
    in_class = inspect.isfunction(found) and "." in found.__qualname__
    return inspect.isclass(found) or in_class or found.__module__ in BUILDERS


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _found_by_openmm(name: str) -> Iterator[Path]:
    """Yield what OpenMM could take this name for, but for the files that came with it."""
    files = [file for file in (Path(name), SHIPPED / name) if os.path.isfile(file)]
    if not files and ".." not in Path(name).parts:
        return  # at most one of OpenMM's own
    from openmm.app.forcefield import _getDataDirectories  # seconds, which few names need

    folders = [Path(folder).resolve() for folder in _getDataDirectories()]
    for file in [*files, *filter(os.path.isfile, (folder / name for folder in folders))]:
        if not any(map(file.resolve().is_relative_to, folders)):
            yield file


def _has_script(file: Path, seen: set[Path]) -> bool:
    """Whether a force field file, or one that it includes, has a script."""
    if file in seen:
        return False
    seen.add(file)
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError):
        return False  # nor can OpenMM read it
    if any(root.findall(tag) for tag in ("Script", "InitializationScript")):
        return True
    included = [node.attrib.get("file", "") for node in root.findall("Include")]
    return any(
        _has_script(found, seen)
        for name in included
        for found in (*_found_by_openmm(name), *_found_by_openmm(str(file.parent / name)))
    )
