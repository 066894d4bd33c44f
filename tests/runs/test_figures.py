"""What a figure shows is read back from its artists; that it draws is checked on the pixels."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.figure import Figure

from energies.base import R
from flows.errors import FlowInputError
from flows.metrics import torsion_histogram, torus_histogram
from runs import figures

RNG = np.random.default_rng(0)
ANGLES = torch.from_numpy(RNG.normal(0.5, 0.6, (20_000, 2)))
LOG_W = torch.from_numpy(RNG.normal(0.0, 0.4, 20_000))


def panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def texts(figure: Figure) -> set[str]:
    """All axis labels and titles."""
    return {t for ax in figure.axes for t in (ax.get_xlabel(), ax.get_ylabel(), ax.get_title())}


def test_surface_is_minus_rt_log_p_and_masks_empty_bins() -> None:
    surface = figures.free_energy_surface([[0.2, 0.0], [0.1, 0.05]], temperature=300.0)
    assert surface.mask.tolist() == [[False, True], [False, False]]
    expected = R * 300 * np.log([1.0, 2.0, 4.0])
    np.testing.assert_allclose(surface.compressed(), expected, rtol=1e-12)


def test_ramachandran_panels_share_one_scale() -> None:
    raw, weighted = torus_histogram(ANGLES), torus_histogram(ANGLES, LOG_W)
    figure = figures.ramachandran(raw, weighted, temperature=300.0, reference=raw)
    images = [ax.images[0] for ax in panels(figure)]
    assert [ax.get_title() for ax in panels(figure)] == [
        "Flow, raw",
        "Flow, reweighted",
        "Reference",
    ]
    assert len({i.get_clim() for i in images}) == 1
    assert {"φ (rad)", "ψ (rad)", "−RT ln p (kJ/mol)"} <= texts(figure)
    # The first angle runs to the right: the array on screen is the transposed density.
    shown = images[0].get_array()
    assert np.array_equal(shown.mask, (raw.numpy() == 0).T)
    assert len(panels(figures.ramachandran(raw, temperature=300.0))) == 1


def test_scale_ends_at_the_ceiling() -> None:
    density = np.array([[1.0, 1e-30], [0.5, 0.0]])
    figure = figures.ramachandran(density, temperature=300.0, ceiling=25.0)
    assert panels(figure)[0].images[0].get_clim() == (0.0, 25.0)


def test_marginals_have_one_panel_a_torsion() -> None:
    h = torsion_histogram(ANGLES[:, 0], bins=50)
    w = torsion_histogram(ANGLES[:, 0], LOG_W, bins=50)
    marginals = {f"phi_{i}": figures.Marginal(h, w, h if i < 2 else None) for i in range(4)}
    figure = figures.torsion_marginals(marginals)
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == list(marginals)
    assert len(shown[0].lines) == 2
    assert len(shown[3].lines) == 1
    np.testing.assert_array_equal(shown[3].lines[0].get_ydata(), w.numpy())
    assert {"angle (rad)", "density (rad⁻¹)"} <= texts(figure)


def test_energy_histogram_is_a_density_and_says_what_it_cut() -> None:
    u = RNG.normal(-100.0, 5.0, 50_000)
    u[0], u[1:501] = np.inf, 1e6
    log_w = np.where(np.isfinite(u) & (u < 0), -0.1 * u, -np.inf)
    figure = figures.energy_histogram(u, log_w, reference=RNG.normal(-102.5, 3.0, 1000), tail=0.02)
    ax = figure.axes[0]
    assert ax.get_xlim()[1] < 0
    assert "2 % of raw" in ax.texts[0].get_text()
    centres, weighted = ax.lines[0].get_data()
    width = centres[1] - centres[0]
    # exp(-0.1 u) moves a Gaussian of variance 25 down by 2.5.
    assert weighted.sum() * width == pytest.approx(1.0, abs=0.01)
    assert (weighted * centres).sum() * width == pytest.approx(-102.5, abs=0.4)
    assert ax.get_xlabel() == "potential energy U (kJ/mol)"


def rows(n: int) -> list[dict]:
    out: list[dict] = []
    for i in range(n):
        row = {"step": 10 * i, "time_s": 0.5 * i, "loss": math.exp(-i / 50), "n_evals": 100 * i}
        row |= {"temperature": max(300.0, 700.0 - i), "stage": "hot" if i < n // 2 else "cold"}
        if i % 20 == 0:
            row["ess"] = i / n
        out.append(row)
    return out


def test_training_curves() -> None:
    figure = figures.training_curves(rows(600))
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "ESS / N (%)", "T (K)"]
    ess = figure.axes[1].lines[0]
    np.testing.assert_allclose(ess.get_ydata(), 100 * np.arange(0, 600, 20) / 600)
    np.testing.assert_array_equal(ess.get_xdata(), np.arange(0, 6000, 200))
    assert figure.axes[2].lines[0].get_ydata()[0] == 700.0
    assert [t.get_text() for t in figure.axes[0].texts] == ["hot", "cold"]
    assert "59,900 energy evaluations" in figure.get_suptitle()


def test_training_curves_tolerate_missing_keys() -> None:
    sparse = [{"step": 0}, {"loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 2.0}]
    figure = figures.training_curves([*sparse, {"step": 4, "loss": math.nan}])
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss"]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[3.0, 2.0]]
    timed = figures.training_curves(rows(30), against="time_s")
    assert timed.axes[-1].get_xlabel() == "wall time (s)"
    with pytest.raises(FlowInputError, match="Expected rows with 'step'"):
        figures.training_curves([{"step": 1}])
    with pytest.raises(FlowInputError, match="Expected against one of"):
        figures.training_curves(rows(3), against="epoch")


def test_log_weight_figure() -> None:
    log_w = LOG_W.numpy().copy()
    log_w[:100] = -np.inf
    figure = figures.log_weights(log_w)
    left, right = figure.axes
    ess = right.lines[0].get_ydata()[-1]
    assert right.lines[0].get_xdata()[-1] == 20_000
    w = np.exp(log_w)
    assert ess == pytest.approx(100 * w.sum() ** 2 / (20_000 * (w**2).sum()), rel=1e-9)
    # Normal log weights of variance 0.16: the weight they carry is shifted by 0.16.
    x, carried = left.lines[0].get_data()
    peak = np.nansum(x * carried) / np.nansum(carried)
    assert peak == pytest.approx(0.08 + math.log(1 - 100 / 20_000), abs=0.03)


def test_save_writes_a_png_at_150_dpi_and_nothing_else(tmp_path: Path) -> None:
    figure = figures.ramachandran(torus_histogram(ANGLES), temperature=300.0)
    path = figures.save(figure, tmp_path / "plots" / "rama.png")
    pixels = image.imread(path)
    width, height = figure.get_size_inches()
    assert pixels.shape[:2] == (round(150 * height), round(150 * width))
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 50
    assert [p.name for p in path.parent.iterdir()] == ["rama.png"]
    with pytest.raises(FlowInputError, match=r"Expected path ending in \.png"):
        figures.save(figure, tmp_path / "rama.jpg")


def test_import_leaves_pyplot_alone() -> None:
    code = "import sys, runs.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
