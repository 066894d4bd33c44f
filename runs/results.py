"""What became of runs: how they stand, their figures, and which differ by their seeds alone."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from runs.errors import CommandError
from runs.resolvers import of_session
from runs.status import Status, read_status

Figures = dict[str, float]
Leaves = dict[str, Any]


class Run(NamedTuple):
    """One run, whatever became of it.

    Attributes:
        folder: Where it lies.
        system: Name of its system; "" if it has not started.
        name: Name of the run.
        seed: Of flow and samples; None if it has not started.
        figures: All numbers of metrics.json by dotted name, and what training cost.
        state: As in status.json, "running" with how far it is; "unknown" of a run from before
            runs said how they stand.
        error: Why it is not done, in a sentence.
        kind: Its config but for the seed and what changes no result, by dotted key.
    """

    folder: Path
    system: str
    name: str
    seed: int | None
    figures: Figures
    state: str = "done"
    error: str | None = None
    kind: Leaves = {}  # noqa: RUF012  # nobody writes into it


class Group(NamedTuple):
    """Runs of one kind: they differ by their seeds.

    Attributes:
        system: Name of their system.
        name: Their name, and what tells their config from others of that name.
        runs: By seed.
    """

    system: str
    name: str
    runs: list[Run]


def find_runs(folder: Path) -> list[Run]:
    """Return the runs below a folder, by system, name and seed.

    Raises:
        CommandError: The folder is not there, or holds no run.
    """
    if not folder.is_dir():
        raise CommandError(f"Expected the folder of some runs, got {folder}: no such one.")
    runs = [_found(path, str(path.relative_to(folder))) for path in _run_folders(folder)]
    if not runs:
        raise CommandError(f"Expected runs below {folder}, got none.")
    return sorted(runs, key=lambda run: (run.system, run.name, run.seed or 0, run.folder))


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders that hold a run, without a look at what else is in them."""
    for path, below, files in os.walk(folder):
        if "status.json" in files or {"config.yaml", "metrics.jsonl"} <= set(files):
            below.clear()
            yield Path(path)


def _found(path: Path, name: str) -> Run:
    """Return a run as it stands; what of it cannot be read is told as its error.

    Args:
        path: Its folder.
        name: For one whose config does not tell.
    """
    status = read_status(path)
    if not (path / "config.yaml").is_file():  # not yet started, or never came that far
        status = status or Status("failed")
        return Run(path, "", name, None, {}, status.state, status.error)
    evaluated = (path / "metrics.json").is_file()
    try:
        run = read_run(path, evaluated=evaluated)
    except CommandError as error:
        return Run(path, "", name, None, {}, "failed", str(error))
    if status is None:
        return run if evaluated else run._replace(state="unknown")
    done = status.state == "running" and status.n_steps
    share = f" {status.step / status.n_steps:.0%}" if done else ""
    return run._replace(state=f"{status.state}{share}", error=status.error)


def read_run(folder: Path, *, evaluated: bool = True) -> Run:
    """Return the figures of one run.

    Args:
        folder: Of the run.
        evaluated: Whether it has come to its metrics.json.

    Raises:
        CommandError: The folder lacks them, or they cannot be read.
    """
    figures: Figures = {}
    try:
        config = leaves(yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), _Loader))
        if evaluated:
            figures |= numbers_of(
                json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            )
        row = _last_row(folder / "metrics.jsonl")
        system, name, seed = config["system.name"], config["name"], int(config["seed"])
    except (ValueError, KeyError, OSError, yaml.YAMLError) as error:
        raise CommandError(
            f"Expected config.yaml, metrics.json and metrics.jsonl of a run in {folder}, "
            f"got: {' '.join(str(error).split())}."
        ) from error
    cost = {"n_evals": "n_evals", "steps": "step", "time_s": "time_s"}
    figures |= {to: float(row[key]) for to, key in cost.items() if key in row}
    if "log_z_exact" in figures:
        figures["log_z_error"] = figures["log_z"] - figures["log_z_exact"]
    kind = {k: v for k, v in of_run(config).items() if k.rpartition(".")[2] != "seed"}
    kind["start"] = _name_of(kind.get("start"))
    return Run(folder, str(system), str(name), seed, figures, kind=kind)


def _name_of(start: str | None) -> str | None:
    """Return the name of the run that another began with: each seed may have one of its own."""
    try:
        return str(read_leaves(Path(start) / "config.yaml")["name"]) if start else None
    except (OSError, LookupError, ValueError, yaml.YAMLError):  # it is no longer there
        return start


def _last_row(log: Path) -> dict[str, Any]:
    """Return the last whole row of metrics.jsonl, without reading it from its beginning."""
    if not log.is_file():
        return {}
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _TAIL, 0))
        whole = file.read().split(b"\n")[:-1]
    row = json.loads(whole[-1]) if whole else {}
    return row if isinstance(row, dict) else {}


_TAIL = 1 << 16
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is compiled


def read_leaves(file: Path) -> Leaves:
    """Read YAML: plain values by dotted keys; nothing in it is run."""
    return leaves(yaml.load(file.read_text(encoding="utf-8"), _Loader))


def leaves(node: Any, key: str = "") -> Leaves:
    """Return what nested mappings hold, by dotted keys."""
    if not isinstance(node, Mapping):
        return {key: node}
    found: Leaves = {}
    for name, value in node.items():
        found |= leaves(value, f"{key}.{name}" if key else str(name))
    return found


def of_run(config: Leaves) -> Leaves:
    """Return what of a config makes a run the run it is, whatever device and session it is on."""
    return {k: v for k, v in config.items() if not (of_session(k) or k == "device")}


def numbers_of(node: Mapping[str, Any]) -> Figures:
    """Return the numbers that nested mappings hold, by dotted names."""
    return {k: float(v) for k, v in leaves(node).items() if isinstance(v, int | float)}


def groups(runs: Sequence[Run]) -> list[Group]:
    """Return the runs of each kind, in the order of the first of them."""
    named: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        named[run.system, run.name].append(run)
    found = []
    for (system, name), same in named.items():
        keys = separating([run.kind for run in same])
        alike: dict[tuple[str, ...], list[Run]] = defaultdict(list)
        for run in same:
            alike[tuple(str(run.kind.get(key)) for key in keys)].append(run)
        for values, group in alike.items():
            told = [f"{_short(key)}={_class(v)}" for key, v in zip(keys, values, strict=True)]
            found.append(Group(system, " ".join([name, *told]), group))
    return found


def separating(configs: Sequence[Leaves]) -> list[str]:
    """Return few keys that tell configs apart as well as all keys do.

    Each is the one whose values split what is still together into the most parts; of equal ones
    the first.
    """
    texts = [{key: str(value) for key, value in config.items()} for config in configs]
    different = [dict(items) for items in dict.fromkeys(tuple(t.items()) for t in texts)]
    keys = list(dict.fromkeys(key for config in different for key in config))
    chosen: list[str] = []

    def parts(more: Sequence[str]) -> int:
        return len({tuple(config.get(key) for key in more) for config in different})

    whole = parts(keys)
    while parts(chosen) < whole:
        chosen.append(max(keys, key=lambda key: parts([*chosen, key])))
    return chosen


def _short(key: str) -> str:
    return key.removesuffix("._target_").rpartition(".")[2]


def _class(value: str) -> str:
    return re.sub(r"^[\w.]+\.(?=[A-Z])", "", value)
