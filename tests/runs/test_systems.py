"""Systems with and without a molecule go through the same commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from energies.analytic import GaussianMixture
from energies.base import R
from flows.errors import FlowInputError
from runs import evaluate, train
from runs.plane_figure import plane_density
from tests.runs.in_process import command

SMALL = [
    "flow.n_couplings=2", "flow.hidden=[16]", "flow.n_bins=4", "trainer.compile=false",
    "trainer.log_every=5", "trainer.batch_size=64", "trainer.max_steps=10", "evaluation.n=500",
    "evaluation.chunk=200", "evaluation.n_saved=300", "evaluation.n_frames=40",
]  # fmt: skip


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on the mixture of Gaussians, by the real command."""
    folder = tmp_path_factory.mktemp("runs") / "mixture"
    command(train, "system=gaussian_mixture", *SMALL, f"hydra.run.dir={folder}")
    return folder


def test_density_leaves_samples_and_pictures_but_no_trajectory(mixture: Path) -> None:
    names = {str(p.relative_to(mixture)) for p in mixture.rglob("*") if p.is_file()}
    assert {
        "config.yaml", "metrics.json", "samples.npz", "figures/density.png",
        "figures/energy.png", "figures/weights.png", "figures/training.png",
    } <= names  # fmt: skip
    assert not {"samples.xtc", "topology.pdb"} & names


def test_density_reports_exact_values_beside_its_own(mixture: Path) -> None:
    metrics = json.loads((mixture / "metrics.json").read_text())
    data = np.load(mixture / "samples.npz")
    assert metrics["log_z_exact"] == 0.0
    assert set(metrics["means"]) == {"0", "1"}
    y = np.stack([data["y_0"], data["y_1"]], axis=1)
    assert y == pytest.approx(23.0 * data["x"], rel=1e-5)
    # 300 of the 500 samples that the mean is over.
    mean = metrics["means"]["0"]["raw"]
    assert abs(y[:, 0].mean() - mean["value"]) < 6 * mean["se"]
    log_w = -data["potential"] / (R * 300) + data["log_jac"] - data["log_q"]
    assert log_w == pytest.approx(data["log_w"], rel=1e-9)
    assert data["log_jac"] == pytest.approx(2 * np.log(23.0))


def test_density_is_held_against_exact_points(mixture: Path) -> None:
    metrics = json.loads((mixture / "metrics.json").read_text())
    # What forward and reverse KL share is log Z, exact here: E_p - E_q of the log weights.
    assert metrics["forward_kl"] == metrics["eubo"]
    assert metrics["eubo"] > metrics["elbo"]
    assert metrics["forward_kl"] > 5 * metrics["forward_kl_se"] > 0
    basins = metrics["basins"]
    assert basins["of"] == 40
    y = np.stack([np.load(mixture / "samples.npz")[f"y_{k}"] for k in range(2)], axis=1)
    means = GaussianMixture().means.numpy()
    nearest = ((y[:, None] - means) ** 2).sum(-1).argmin(1)
    share = np.bincount(nearest, minlength=40) / len(y)  # of 300 out of 500 samples
    assert abs(basins["found"] - (share > 0.1 / 40).sum()) <= 4
    assert 0 <= basins["worst"] < 0.5


def test_density_is_evaluated_again(mixture: Path) -> None:
    before = json.loads((mixture / "metrics.json").read_text())
    command(evaluate, f"run={mixture}", "compile=false", "evaluation.n=500",
            "evaluation.chunk=200", "evaluation.n_saved=300",
            "evaluation.n_frames=40")  # fmt: skip
    assert json.loads((mixture / "metrics.json").read_text()) == before


def test_torsion_of_a_config_is_observed(tmp_path: Path) -> None:
    command(train, "system=butane", *SMALL, f"hydra.run.dir={tmp_path}")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["populations"]) == {"gauche_plus", "gauche_minus"}
    assert np.load(tmp_path / "samples.npz")["torsion_CCCC"].shape == (300,)
    assert (tmp_path / "samples.xtc").is_file()
    assert (tmp_path / "figures" / "torsions.png").is_file()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["system=double_well", "system.plane=[0,2]"],
         "Expected system.plane to be two of the coordinates 0 to 1, got 0 and 2."),
        (["system=double_well", "system.scale=0"], "Expected scale > 0, got 0"),
        (["system=double_well", "system.temperature=-3"], "> 0 kelvin, got -3"),
        (["system=many_well", "system.density.n_wells=0"], "Expected n_wells >= 1, got 0"),
        (["system=butane", "system.torsions.CCCC=[BUT1-C1,BUT1-C2,BUT1-C3,BUT1-C9]"],
         "Expected system.torsions.CCCC to be four labels out of BUT1-C1, "),
        (["system=butane", "system.molecule.path=ethane.pdb"],
         "Expected path to be an existing file, got ethane.pdb."),
        (["system=butane", "+system.basin=1"], "Expected arguments that the config's _target_"),
        (["system=double_well", "system.plan=1"],
         "Expected a key of system (_target_, centre, density, name, plane, scale, temperature), "
         "got 'plan'. Did you mean 'plane'?"),
        (["system=pentane"], "Available options in 'system': aldp aldp_vacuum butane"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    overrides: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command(train, *overrides, f"hydra.run.dir={tmp_path}")
    said = capsys.readouterr().err
    assert exit_.value.code == 1
    assert "Traceback" not in said
    assert sentence in said


def panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def test_plane_shows_raw_reweighted_and_exact_densities() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4000, 2, generator=generator)
    log_w = torch.where(points[:, 0] < 0.5, 0.0, -torch.inf)
    figure = plane_density(points, log_w, reference=points, names=("y_0", "y_3"), bins=20)
    axes = panels(figure)
    assert [ax.get_title() for ax in axes] == ["Flow, raw", "Flow, reweighted", "Exact"]
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("y_0", "y_3")
    raw, weighted, exact = (ax.collections[0].get_array().filled(0.0) for ax in axes)
    assert np.array_equal(raw, exact)
    area = (1.1 / 20) ** 2  # of one bin: 5 % more than the reference on each side
    assert raw.sum() * area == pytest.approx(1.0, rel=1e-2)
    assert weighted.sum() * area == pytest.approx(1.0, rel=1e-2)
    # Rows are the second coordinate; the weights leave the left half of the first.
    assert weighted[:, 11:].sum() == 0
    assert weighted[:, 2:9].mean() == pytest.approx(2.0, rel=0.2)
    assert len({ax.collections[0].get_clim() for ax in axes}) == 1


def test_plane_refuses_weights_of_other_points() -> None:
    with pytest.raises(FlowInputError, match=r"log_w of shape \(5,\), got \(4,\)"):
        plane_density(np.zeros((5, 2)), np.zeros(4), reference=np.eye(2), names=("a", "b"))
