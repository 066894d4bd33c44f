"""The command that makes ground truth, end to end."""

import json
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from energies.dihedrals import torsions
from energies.forcefield import ForceField
from energies.molecule import Molecule
from energies.reference import read_reference
from flows.training.checkpoint import load_checkpoint
from runs import reference
from runs.building import build_system
from runs.cli import CONFIGS
from runs.folder import RunFolder

TINY = [
    "system=aldp_vacuum", "n_chains=4", "temperatures.n=3", "temperatures.highest=350",
    "plan.block=5", "plan.hot=3", "plan.burn_in=2", "plan.production=8", "plan.n_frames=16",
    "swap_every=2", "bins=10", "hydrogen_mass=3", "compile=false", "device=cpu",
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("reference", list(overrides))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reference"
    command = [sys.executable, "-W", "ignore", "-m", "runs.reference", *TINY]
    out = subprocess.run(
        [*command, f"hydra.run.dir={folder}"],
        check=True, cwd=ROOT, timeout=300, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "7.920e+02 energy evaluations with forces" in out
    assert "populations, alpha_L: raw" in out
    return folder


def test_folder_holds_records_maps_and_diagnostics(finished: Path) -> None:
    records = np.load(finished / "records.npz")
    assert records["potential"].shape == (8, 3, 4)
    assert records["xyz"].shape == (4, 4, 22, 3)
    assert records["xyz"].dtype == np.float32
    names = list(records["observed_names"])
    assert records["observed"].shape == (8, 3, 4, len(names))
    # phi and psi of the last frame, from its positions, are those that were recorded.
    xyz = torch.tensor(records["xyz"][-1, 0])
    phi_psi = torsions(xyz, [(4, 6, 8, 14), (6, 8, 14, 16)])
    recorded = records["observed"][-1, 0, 0, [names.index("phi_2"), names.index("psi_2")]]
    assert phi_psi.tolist() == pytest.approx(recorded.tolist(), abs=1e-5)

    small = read_reference(finished / "reference.npz")
    assert small.counts["2"].sum(dim=(1, 2)).tolist() == [32, 32, 32]
    assert float(small.density["2"].sum()) * (2 * np.pi / 10) ** 2 == pytest.approx(1.0)
    lengths = (small.xyz[:, 4] - small.xyz[:, 6]).norm(dim=-1)
    expected = np.linalg.norm(records["xyz"][..., 4, :] - records["xyz"][..., 6, :], axis=-1)
    assert lengths.tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-4)

    diagnostics = json.loads((finished / "diagnostics.json").read_text())
    assert diagnostics == small.diagnostics
    assert diagnostics["n_evals"] == 3 * 4 * (1 + 5 * 13)
    assert diagnostics["temperatures"] == pytest.approx([300.0, 105000**0.5, 350.0])
    assert diagnostics["ps_per_replica"] == pytest.approx(0.04)
    potential = records["potential"][:, 0]
    assert diagnostics["potential"][0]["value"] == pytest.approx(potential.mean())
    by_chain = potential.mean(0)
    assert diagnostics["potential"][0]["se"] == pytest.approx(by_chain.std(ddof=1) / 2)
    assert len(diagnostics["swap_acceptance"]) == 2
    assert diagnostics["frames_outside_domain"] == 0.0
    population = diagnostics["averages"]["populations"]["alpha_L"]
    assert len(population["by_temperature"]) == 3
    assert (population["exact"], population["z_score"]) == (None, None)
    assert small.populations["alpha_L"].value == population["all"]["value"]


def test_reference_file_says_where_it_comes_from(finished: Path) -> None:
    small = read_reference(finished / "reference.npz")
    provenance = small.provenance
    assert provenance["system"] == "aldp_vacuum"
    assert (provenance["n_replicas"], provenance["n_chains"], provenance["n_steps"]) == (12, 4, 40)
    assert "system=aldp_vacuum" in provenance["origin"]["command"]
    assert provenance["origin"]["packages"]["torch"] == version("torch")
    config = provenance["origin"]["config"]
    assert config["system"]["molecule"]["forcefield"] == ["amber96.xml"]
    assert config["plan"]["production"] == 8


def test_frames_have_the_energies_that_stand_beside_them(finished: Path) -> None:
    """Of the lowest temperature, centred; 16-bit positions cost about 0.01 kJ/mol."""
    small, records = read_reference(finished / "reference.npz"), np.load(finished / "records.npz")
    assert small.potential.numpy() == pytest.approx(records["potential"][1::2, 0].flatten())
    assert float(small.xyz.mean(1).abs().max()) < 1e-5
    molecule = Molecule.from_sequence("ACE ALA NME", forcefield=["amber96.xml"])
    again = ForceField.from_openmm(molecule.system).potential(small.xyz)
    assert float((again - small.potential).abs().max()) < 0.1


LONGER = [
    "swap_every=5", "plan.block=10", "plan.hot=5", "plan.burn_in=80", "plan.production=80",
    "plan.n_frames=200", "compile=false", "device=cpu",
]  # fmt: skip
# Dimensions, and what makes a short simulation long enough: a hot end, a low barrier, a ladder of
# the mixture's own.
DENSITIES = {
    "double_well": (
        2,
        ["n_chains=100", "temperatures.n=5", "temperatures.highest=1500",
         "langevin.time_step=0.005"],
    ),
    "gaussian_mixture": (2, ["n_chains=40", "plan.burn_in=160"]),
    "many_well": (
        32,
        ["n_chains=100", "temperatures.n=3", "temperatures.highest=500",
         "langevin.time_step=0.005", "+system.density.b=-3.0"],
    ),
}  # fmt: skip


def command(*overrides: str) -> None:
    """Run the command in this process."""
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reference", *overrides])
        reference.main()


@pytest.mark.parametrize("name", DENSITIES)
def test_density_agrees_with_its_exact_moments(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Means and squares of every coordinate within 6 standard errors, which are small."""
    dim, ladder = DENSITIES[name]
    command(f"system={name}", *LONGER, *ladder, f"hydra.run.dir={tmp_path}")
    small = read_reference(tmp_path / "reference.npz")
    averages = small.diagnostics["averages"]
    assert set(averages) == {"means", "squares"}
    for group in averages.values():
        assert len(group) == dim
        assert all(abs(a["z_score"]) < 6 for a in group.values())
        assert all(
            a["all"]["se"] < 0.1 * averages["squares"]["0"]["exact"] for a in group.values()
        )
    for k, mean in averages["means"].items():
        assert mean["all"]["se"] < 0.1 * averages["squares"][k]["exact"] ** 0.5
    assert small.counts == small.populations == {}
    assert len(small.potential) == len(small.xyz) == small.diagnostics["n_frames"] >= 160
    # y is kept as it is, not centred: its energy is that of the place.
    overrides = [f"system={name}", *ladder]
    energy = build_system(composed(*overrides), device=torch.device("cpu")).target.energy
    again = energy.potential(small.xyz)
    assert float((again - small.potential).abs().max()) < 0.1
    for k, t in enumerate(small.diagnostics["configurational_temperature"]):
        assert abs(t["value"] - float(small.temperatures[k])) < 6 * t["se"]
    out = capsys.readouterr().out
    assert f"means: {dim} with exact values, worst" in out
    assert f"{len(small.xyz)} frames, 0.00% outside" in out


QUICK = [
    "system=double_well", "n_chains=4", "temperatures.n=3", "plan.block=3", "plan.hot=2",
    "plan.burn_in=3", "plan.production=8", "swap_every=20", "checkpoint_every=4", "compile=false",
    "device=cpu",
]  # fmt: skip


@pytest.mark.parametrize(
    ("end", "status", "saved"), [(signal.SIGTERM, 143, 6), (signal.SIGKILL, -9, 4)]
)
def test_killed_command_goes_on_as_if_nothing_had_happened(
    end: signal.Signals,
    status: int,
    saved: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Asked to stop it writes a checkpoint; killed it leaves the last one. Either continues."""
    command(*QUICK, f"hydra.run.dir={tmp_path / 'whole'}")
    half = tmp_path / "half"
    killer = f"""
import os, signal, sys
from energies.reference import ReferenceSession
from runs import reference

advance = ReferenceSession.advance

def mortal(session):
    advance(session)
    if session.n_blocks == 6:
        os.kill(os.getpid(), {int(end)})

ReferenceSession.advance = mortal
sys.argv = ["reference", *{[*QUICK, f"hydra.run.dir={half}"]}]
reference.main()
"""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", killer], cwd=ROOT, timeout=300, capture_output=True
    )
    assert process.returncode == status
    folder = RunFolder(half)
    assert load_checkpoint(folder.checkpoint)["n_blocks"] == saved
    assert not (half / "records.npz").exists()
    command(*QUICK, f"resume={half}", f"hydra.run.dir={tmp_path / 'other'}")
    whole, resumed = (np.load(f / "records.npz") for f in (tmp_path / "whole", half))
    for name in whole.files:
        assert np.array_equal(whole[name], resumed[name])
    assert re.search(r"exchanges accepted: \d+%, untried;", capsys.readouterr().out)
    expected, found = (
        json.loads((f / "diagnostics.json").read_text()) for f in (tmp_path / "whole", half)
    )
    assert expected.pop("origin") != found.pop("origin")  # another command
    assert expected == found
    assert not list((tmp_path / "other").glob("*"))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("bins=0", "Expected bins >= 1 and a whole number, got 0"),
        ("checkpoint_every=0", "Expected checkpoint_every >= 1 and a whole number, got 0"),
        ("plan.blok=3", "Expected a key of plan (block, burn_in, hot, n_frames, production)"),
        ("resume=/nowhere", "Expected resume to be the folder of a run, got /nowhere"),
        ("n_chains=0", "Expected n_chains >= 1, got 0"),
        ("temperatures.highest=200", "highest temperature above the lowest, got 200"),
        ("system.molecule.constraints=HBonds", "Expected a System without constraints"),
        ("system=double_well", "hydrogen_mass=null for double_well, which has no hydrogens"),
    ],
)
def test_bad_input_is_one_sentence(
    override: str,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command(*TINY, override, f"hydra.run.dir={tmp_path}")
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert sentence in said.strip().splitlines()[-1]
