"""Run folders with samples whose weights are known, made without training."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from energies.base import R
from flows.transforms.shift import wrap
from flows.types import Samples
from runs.building import build_system
from runs.cli import CONFIGS
from runs.samples import write_samples
from runs.systems import System

GROUPS = ("system", "energy")


def composed(*overrides: str) -> DictConfig:
    """The config of a training run."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def write_run(folder: Path, *overrides: str, n: int = 600, turn: float = 3.0) -> System:
    """Write config.yaml and samples.npz: points around the minimum, all of weight one.

    Their log_q is that of the target, so the weights at another condition are Boltzmann factors
    of the difference.

    Args:
        folder: The run folder.
        overrides: Of the training command.
        n: Number of samples.
        turn: How far torsions go to either side, radians.
    """
    config = composed(*overrides)
    system = build_system(config, device=torch.device("cpu"))
    folder.mkdir(parents=True)
    plain = {key: OmegaConf.to_container(config[key], resolve=True) for key in GROUPS}
    OmegaConf.save(OmegaConf.create(plain | {"name": "tiny", "seed": 0}), folder / "config.yaml")
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(n, system.target.dim, generator=generator)
    around = 2 * torch.rand(x.shape, generator=generator) - 1
    shape = (1, system.target.energy.n_atoms, system.target.energy.n_dims)
    home = system.target.from_xyz(system.start((1, 1), generator).reshape(shape))
    x = torch.where(system.target.periodic, wrap(home + turn * around, system.target.periodic), x)
    with torch.no_grad():
        e = system.target.evaluate(x)
        observed = dict(zip(system.observed, system.observe(x).unbind(-1), strict=True))
    log_p = e.log_jac - e.potential / (R * system.temperature)
    samples = Samples(x, log_p, log_p, torch.zeros(n).double(), e.potential, e.log_jac)
    write_samples(
        folder / "samples.npz", samples, observed,
        kind=system.kind, temperature=system.temperature,
    )  # fmt: skip
    return system
