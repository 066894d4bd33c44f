"""The command that makes ground truth, end to end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from energies.dihedrals import torsions
from energies.reference import read_reference
from flows.training.checkpoint import save_checkpoint
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reference"
    command = [sys.executable, "-W", "ignore", "-m", "runs.reference", *TINY]
    out = subprocess.run(
        [*command, f"hydra.run.dir={folder}"],
        check=True, cwd=ROOT, timeout=300, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "7.920e+02 energy evaluations with forces" in out
    assert "population of alpha_L: raw" in out
    return folder


def test_folder_holds_records_maps_and_diagnostics(finished: Path) -> None:
    records = np.load(finished / "records.npz")
    assert records["potential"].shape == (8, 3, 4)
    assert records["xyz"].shape == (4, 4, 22, 3)
    assert records["xyz"].dtype == np.float32
    names = list(records["torsion_names"])
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
    assert len(diagnostics["populations"]["alpha_L"]["by_temperature"]) == 3


def test_resumed_command_equals_the_uninterrupted_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("reference", TINY)
    device = torch.device("cpu")
    session = reference.build_session(config, build_system(config, device=device), device=device)
    for _ in range(7):
        session.advance()
    folder = RunFolder(tmp_path / "half")
    folder.start(config)
    save_checkpoint(folder.checkpoint, session.state_dict())
    GlobalHydra.instance().clear()
    overrides = [*TINY, f"resume={folder.path}", f"hydra.run.dir={tmp_path / 'other'}"]
    monkeypatch.setattr(sys, "argv", ["reference", *overrides])
    reference.main()
    whole, resumed = (np.load(f / "records.npz") for f in (finished, folder.path))
    for name in whole.files:
        assert np.array_equal(whole[name], resumed[name])


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
        ("system=double_well", "Expected system to be a molecule, got double_well"),
    ],
)
def test_bad_input_is_one_sentence(
    override: str,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    GlobalHydra.instance().clear()
    overrides = [*TINY, override, f"hydra.run.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["reference", *overrides])
    with pytest.raises(SystemExit) as exit_:
        reference.main()
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert sentence in said.strip().splitlines()[-1]
