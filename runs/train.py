"""python -m runs.train: train a flow on a system, evaluate it, draw it."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flows import parallel
from flows.flow import Flow
from flows.memory import bytes_of_row, free_memory, rows_that_fit
from flows.training import Stage, Trainer
from flows.training.loggers import JsonLines, Tee, read_rows
from flows.training.mirrors import Outcome
from runs.building import build_flow, build_stages, build_system, choose_device
from runs.cli import CommandError, run_command
from runs.compiling import (
    SAMPLED,
    check_mode,
    compile_all,
    rows_of,
    start_compiling,
    worth_compiling,
)
from runs.evaluate import evaluate, read_sizes
from runs.folder import RunFolder
from runs.reporting import StatusFile, reporting
from runs.results import numbers_of
from runs.sweeps import Swept
from runs.weights import load_flow

log = logging.getLogger(__name__)


def train(config: DictConfig) -> RunFolder:
    """Train, then evaluate; everything is written below one run folder, by the first process.

    Args:
        config: Composed from `configs/train.yaml`.

    Returns:
        The run folder.
    """
    folder = parallel.at_first(lambda: choose_folder(config))
    with ExitStack() as stack:
        status = None
        parallel.at_first(lambda: stack.enter_context(folder.occupied()))
        if parallel.rank() == 0:
            status = stack.enter_context(reporting(folder, "train"))
        _train(config, folder, status)
    return folder


def choose_folder(config: DictConfig) -> RunFolder:
    """Return the folder to run in: that of `resume`, or of Hydra.

    Raises:
        CommandError: A folder to go on with holds no run, or one to begin in does.
    """
    if config.resume not in (None, "auto"):
        return RunFolder.open(config.resume, key="resume", needs=("config.yaml",))
    folder = RunFolder(HydraConfig.get().runtime.output_dir)
    if config.resume is None and folder.checkpoint.exists():
        raise CommandError(
            f"Expected hydra.run.dir without a run for resume=null, got {folder.path}; "
            "resume=auto goes on with it."
        )
    return folder


def _train(config: DictConfig, folder: RunFolder, status: StatusFile | None) -> None:
    started = time.monotonic()
    check_mode(config.trainer.compile)
    sizes = read_sizes(config.evaluation)
    device = choose_device(config.device)
    first = None
    if config.start is not None:
        first = RunFolder.open(config.start, key="start")
        config.flow = first.config.flow  # the weights are of this one
    stages = build_stages(config)
    if status is not None:
        status.plan(sum(stage.steps for stage in stages))
    trainer = Trainer(**{k: v for k, v in config.trainer.items() if k not in _NOT_TRAINER})
    torch.manual_seed(config.seed)
    system = build_system(config, device=device)
    flow = build_flow(config, system.target) if first is None else load_flow(first, system)
    flow = flow.to(device)
    parallel.at_first(lambda: folder.start(config))
    log.info(
        "%s: %s, %d coordinates of which %d periodic; %.2e parameters; run folder %s",
        system.name,
        system.size,
        system.target.dim,
        int(system.target.periodic.sum()),
        sum(p.numel() for p in flow.parameters()),
        folder.path,
    )
    _fit_into_memory(flow, stages, device)
    rows = rows_of(stages) + SAMPLED * sizes.n
    if worth_compiling(config.trainer.compile, flow, rows):
        compile_all(flow, system.target)
        start_compiling(flow, stages)
    generator = torch.Generator().manual_seed(config.seed)
    logger = _loggers(config, folder, status)
    try:
        trained = trainer.fit(
            flow,
            system.target,
            stages,
            checkpoint=folder.checkpoint,
            logger=logger,
            generator=generator,
        )
        log.info("trained in %.0f s", time.monotonic() - started)
        report = evaluate(trained, system, folder, sizes, seed=config.seed)
        logger.conclude(_outcome(folder, report))
    finally:
        logger.close()
    log.info("done in %.0f s", time.monotonic() - started)


def _fit_into_memory(flow: Flow, stages: Sequence[Stage], device: torch.device) -> None:
    """Let points go through the flow in pieces where those of a batch need more than there is."""
    largest = max((stage.batch_size for stage in stages), default=0)
    n, per_row, free = parallel.share(largest), bytes_of_row(flow), free_memory(device)
    flow.rows_at_once = rows_that_fit(per_row, n, free)
    if flow.rows_at_once is not None:
        log.info(
            "points go through the flow %d at a time: %d together would take %.2g of %.2g GiB",
            flow.rows_at_once, n, n * per_row / 2**30, free / 2**30,
        )  # fmt: skip


_NOT_TRAINER = ("max_steps", "batch_size", "budget", "compile")


def _loggers(config: DictConfig, folder: RunFolder, status: StatusFile | None) -> Tee:
    """The file of lines, status.json, and the mirror that the config asks for; of the first."""
    if status is None:
        return Tee([])
    plain = OmegaConf.to_container(config, resolve=True)
    mirrors = [partial(instantiate(config.logger), folder.path, plain)] if config.logger else []
    return Tee([JsonLines(folder.log), status], mirrors)


def _outcome(folder: RunFolder, report: dict[str, Any]) -> Outcome:
    """What mirrors show of a run that was evaluated."""
    rows = read_rows(folder.log) if folder.log.is_file() else []
    return Outcome(
        step=rows[-1]["step"] if rows else 0,
        figures=numbers_of(report),
        pictures={path.stem: path for path in sorted(folder.figures.glob("*.png"))},
        files=[folder.checkpoint, folder.config_file],
    )


def main() -> None:
    """Run the command, in as many processes as `torchrun` started."""
    with parallel.processes():
        run_command(Swept(train, "runs.train"), "train")


if __name__ == "__main__":
    main()
