"""Trained flows against parallel tempering on the same energy: populations, averages, errors.

The flows are rough, so that weights have something to do; the simulations are short, and their
errors enter every comparison.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from energies.base import R
from energies.reference import Reference, chain_mean, log_weights, read_reference
from flows.metrics import bootstrap_means, bootstrap_populations, in_box
from runs import reference, reweight, train
from runs.free_energy import free_energy
from runs.samples import read_samples
from tests.runs.in_process import command

pytestmark = pytest.mark.slow

ROUGH = [
    "trainer.compile=false", "trainer.log_every=100", "evaluation.n=100000",
    "evaluation.n_saved=100000", "evaluation.n_frames=2", "stages=forward_kl",
    "stages.hot.steps=150", "stages.cool.steps=300", "stages.polish.steps=200",
    "stages.hot.batch_size=512", "stages.cool.batch_size=512", "stages.polish.batch_size=512",
]  # fmt: skip
SHORT = ["n_chains=64", "plan.hot=100", "plan.burn_in=100", "plan.production=500"]


class Tried(NamedTuple):
    """A molecule with a run, and what parallel tempering says of it."""

    name: str
    run: Path
    truth: Reference
    records: dict[str, np.ndarray]

    def inside(self, observed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        config = self.truth.diagnostics["origin"]["config"]
        return {name: in_box(observed, box) for name, box in config["system"]["basins"].items()}


@pytest.fixture(scope="module", params=["butane", "aldp"])
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    name: str = request.param
    simulated, run = (
        tmp_path_factory.mktemp(f"{name}_truth"),
        tmp_path_factory.mktemp(name) / "run",
    )
    command(reference, f"system={name}", *SHORT, f"hydra.run.dir={simulated}")
    command(train, f"system={name}", *ROUGH, f"hydra.run.dir={run}")
    with np.load(simulated / "records.npz") as data:
        records = {key: data[key] for key in data.files}
    return Tried(name, run, read_reference(simulated / "reference.npz"), records)


def test_free_energies_of_basins_and_temperatures(tried: Tried) -> None:
    """Within 3 combined standard errors, by every method."""
    truth, temperature = tried.truth, float(tried.truth.temperatures[1])
    basins = free_energy(tried.run)["basins"]
    ends = free_energy(tried.run, to={"temperature": temperature})["ends"]
    total = sum(p.value for p in truth.populations.values())
    for name, found in basins["differences"].items():
        # Of one basin and the rest of them: 1 - all populations.
        p = truth.populations[name]
        value = -R * 300 * math.log(p.value / (1 - total))
        se = R * 300 * p.se * math.hypot(1 / p.value, 1 / (1 - total))
        assert abs(found["value"] - value) < 3 * math.hypot(found["se"], se), name
    free = truth.diagnostics["free_energies"]
    for name, found in ends["reduced"].items():
        error = math.hypot(found["se"], 0.02)
        assert abs(found["value"] - (free[1] - free[0])) < 3 * error, name


def test_averages_at_other_temperatures(tried: Tried) -> None:
    """280, 310 and 350 K from samples of 300 K, within 3 combined standard errors; 1200 K not."""
    temperatures = (280.0, 310.0, 350.0, 1200.0)
    command(reweight, f"run={tried.run}", f"temperatures={list(temperatures)}")
    *near, far = json.loads((tried.run / "reweight.json").read_text())["conditions"]
    potential = torch.from_numpy(tried.records["potential"]).transpose(0, 1)  # [K, S, C]
    names = [str(name) for name in tried.records["observed_names"]]
    angles = torch.from_numpy(tried.records["observed"]).transpose(0, 1)
    inside = tried.inside(dict(zip(names, angles.unbind(-1), strict=True)))
    free = torch.tensor(tried.truth.diagnostics["free_energies"], dtype=torch.float64)
    for temperature, found in zip(temperatures, near, strict=False):
        log_w = log_weights(
            potential.flatten(1), tried.truth.temperatures, free, temperature=temperature
        ).reshape(potential.shape)
        weights = (log_w - log_w.max()).exp()
        for average, values in (
            (found["averages"]["potential"], potential),
            *((found["populations"][name], rows) for name, rows in inside.items()),
        ):
            expected = chain_mean(values.flatten(0, 1).double(), weights.flatten(0, 1))
            error = math.hypot(average["se"], expected.se)
            assert abs(average["value"] - expected.value) < 3 * error, (temperature, average)
    assert not far["reliable"]
    assert "averages" not in far


def test_intervals_cover_as_often_as_they_say(tried: Tried) -> None:
    """Of 20 parts of the samples, 95 % intervals of each average around that of all samples."""
    stored = read_samples(tried.run / "samples.npz")
    log_w = stored.samples.log_w
    averages = {"potential": stored.samples.potential} | {
        f"cos {name}": angle.cos() for name, angle in stored.observed.items()
    }
    inside = tried.inside(stored.observed)
    populations = {name: rows for name, rows in inside.items() if rows.double().mean() > 0.01}
    generator = torch.Generator().manual_seed(0)
    covered = []
    for kind, columns in ((bootstrap_means, averages), (bootstrap_populations, populations)):
        if not columns:
            continue
        whole = kind(columns, log_w, generator=generator)
        for part in torch.arange(len(log_w)).chunk(20):
            found = kind(
                {k: v[part] for k, v in columns.items()}, log_w[part], generator=generator
            )
            covered += [p.low <= whole[name].value <= p.high for name, p in found.items()]
    share = sum(covered) / len(covered)
    # Averages of one sample go together: the error is that of the parts.
    assert abs(share - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 20), f"{share:.1%} of {len(covered)}"
