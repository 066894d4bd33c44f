"""python -m runs.bench: measure, print a table against bars, fail where one is missed."""

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig

from runs.bench.against_peers import against_peers
from runs.bench.contenders import check_peers
from runs.bench.on_gpu import ANNEALING, HOT, WHOLE, energies, recipe
from runs.bench.setup import Setup
from runs.bench.step import reverse_kl, scale
from runs.bench.table import HEAD, Bar, Row, Table
from runs.cli import CommandError, run_command
from runs.compiling import check_mode

Section = Callable[[Setup], Iterator[Row]]

SECTIONS: dict[str, dict[str, Section]] = {
    "cpu": {"peers": against_peers, "step": reverse_kl, "scale": scale},
    "cuda": {
        "peers": against_peers,
        "step": reverse_kl,
        "scale": scale,
        "energies": energies,
        "recipe": recipe,
    },
}

BARS: dict[str, dict[str, Bar]] = {
    "cpu": {
        "large flow, train step: times as fast as the fastest peer": Bar("at least", 2.0, "x"),
        "small flow, train step: times as fast as the fastest peer": Bar("at least", 3.0, "x"),
        "large flow, sampling: times as fast as the fastest peer": Bar("at least", 2.4, "x"),
        "small flow, sampling: times as fast as the fastest peer": Bar("at least", 3.0, "x"),
        "large flow, train step: over its matrix products": Bar("at most", 1.3, "x"),
        "aldp, reverse KL step, large flow: over its matrix products": Bar("at most", 1.6, "x"),
        "aldp, reverse KL step, default flow: share of energy and coordinates": Bar(
            "at most", 25.0, "%"
        ),
    },
    "cuda": {
        "large flow, train step: times as fast as the fastest peer": Bar("at least", 10.0, "x"),
        WHOLE: Bar("at most", 30.0, "min"),
        "aldp, energies with forces": Bar("at least", 2e7, "/s"),
        "hexa, energies with forces": Bar("at least", 4e6, "/s"),
    },
}
"""By the name of the row that is held against it; two CPU cores, one H200-class GPU."""

NAMED = {"cpu": (), "cuda": (HOT, ANNEALING)}
"""Further rows that are named where they cannot be measured."""


def bench(config: DictConfig) -> Iterator[str]:
    """Yield the lines of the tables as they are measured, and the verdict at their end.

    Args:
        config: Composed from `configs/bench.yaml`.

    Raises:
        CommandError: A bar is missed, after all lines; or, before any, a peer is not installed
            or the config asks for what there is not.
    """
    check(config)
    torch.set_num_threads(config.threads)
    missed = []
    for kind in ("cpu", "cuda"):
        table = Table(BARS[kind])
        yield from ("", _machine(kind, config.threads), HEAD)
        asked, there = config.device in ("auto", kind), kind == "cpu" or torch.cuda.is_available()
        if asked and there:
            setup = Setup(config, torch.device(kind))
            torch.manual_seed(config.seed)
            for name, section in SECTIONS[kind].items():
                if name in config.sections:
                    yield from table.lines(section(setup))
        why = "not asked for" if there else "no GPU at hand"
        yield from table.remaining([*BARS[kind], *NAMED[kind]], why)
        yield table.verdict
        missed += table.missed
    if missed:
        raise CommandError(f"Expected every bar to be met, got {'; '.join(missed)}.")


def check(config: DictConfig) -> None:
    """Raise CommandError unless the config asks for what there is."""
    check_mode(config.trainer.compile)
    if config.device not in ("auto", "cpu", "cuda"):
        raise CommandError(f"Expected device to be auto, cpu or cuda, got {config.device!r}.")
    for name in ("rounds", "threads"):
        if config[name] < 1:
            raise CommandError(f"Expected {name} >= 1, got {config[name]}.")
    valid = [*SECTIONS["cuda"]]
    if wrong := [name for name in config.sections if name not in valid]:
        raise CommandError(f"Expected sections out of {', '.join(valid)}, got {', '.join(wrong)}.")
    if "peers" in config.sections:
        check_peers()


def _machine(kind: str, threads: int) -> str:
    """Say what is measured on."""
    if kind == "cuda":
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        return f"GPU: {name}; torch {torch.__version__}, float32"
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    name = found[1] if found else platform.machine()
    return (
        f"CPU: {name}, {threads} threads on {os.cpu_count()} cores; torch {torch.__version__}, "
        "float32; medians and quartiles over rounds in turns"
    )


def run(config: DictConfig) -> None:
    """Print the lines as they come.

    Args:
        config: Composed from `configs/bench.yaml`.
    """
    for line in bench(config):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def main() -> None:
    """Run the command."""
    run_command(run, "bench")


if __name__ == "__main__":
    main()
