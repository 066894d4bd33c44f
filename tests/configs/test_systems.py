"""Every named system composes, builds, and has the energy that it had when it was recorded."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from energies.base import R
from energies.openmm import OpenMMEnergy
from energies.reference import read_reference
from energies.shipped import SHIPPED
from runs.building import build_system
from runs.cli import CONFIGS
from runs.systems import System
from runs.systems.analytic import AnalyticSystem
from runs.systems.molecular import MolecularSystem

STRUCTURES = Path(__file__).parent / "structures"

# Coordinates, angles among them, and the energy of the structure in `structures/`, kJ/mol, by
# OpenMM 8.6's Reference platform. The structures are minima rounded to 1e-4 nm, so that no
# minimiser stands between the record and the test.
MOLECULES = {
    "butane": (36, 3, 16.720367),
    "aldp": (60, 7, -173.164374),
    "aldp_vacuum": (60, 7, -119.464595),
    "proline": (72, 5, -54.925074),
    "tetra": (120, 15, -127.031672),
    "hexa": (180, 23, -127.060076),
    "elil": (219, 26, -1017.203983),
}
# Coordinates, the reduced potential where every flow coordinate is 0.1, and log Z.
DENSITIES = {
    "double_well": (2, -0.1049, 10.2934797),
    "gaussian_mixture": (2, 20.321684, 0.0),
    "many_well": (32, -1.6784, 164.6956753),
}


def config(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@cache
def system(name: str) -> System:
    return build_system(config(f"system={name}"), device=torch.device("cpu"))


def test_every_system_is_recorded_here() -> None:
    names = {path.stem for path in (CONFIGS / "system").glob("*.yaml")}
    assert names == {*MOLECULES, *DENSITIES}
    assert all(config(f"system={name}").system.name == name for name in names)


@pytest.mark.parametrize("name", MOLECULES)
def test_molecule_has_the_recorded_energy(name: str) -> None:
    dim, n_periodic, energy = MOLECULES[name]
    built = system(name)
    assert isinstance(built, MolecularSystem)
    assert (built.target.dim, int(built.target.periodic.sum())) == (dim, n_periodic)
    rows = [
        line
        for line in (STRUCTURES / f"{name}.pdb").read_text().splitlines()
        if line.startswith(("ATOM", "HETATM"))
    ]
    atoms = [f"{row[17:20]}{int(row[22:26])}-{row[12:16].strip()}" for row in rows]
    assert atoms == built.molecule.labels
    xyz = np.array([[float(row[c : c + 8]) for c in (30, 38, 46)] for row in rows]) / 10
    reference = OpenMMEnergy(built.molecule.system).potential(torch.tensor(xyz))
    assert float(reference) == pytest.approx(energy, abs=1e-3)
    ours = built.target.energy.potential(torch.tensor(xyz, dtype=torch.float32))
    assert float(ours) == pytest.approx(energy, abs=0.05)


@pytest.mark.parametrize("name", DENSITIES)
def test_density_has_the_recorded_energy(name: str) -> None:
    dim, reduced, log_z = DENSITIES[name]
    built = system(name)
    assert isinstance(built, AnalyticSystem)
    assert built.target.dim == dim
    assert built.density.log_z(built.temperature) == pytest.approx(log_z, abs=1e-5)
    e = built.target.evaluate(torch.full((1, dim), 0.1))
    assert float(e.potential) / (R * 300.0) == pytest.approx(reduced, abs=1e-4)


def test_density_is_the_literature_s_at_any_temperature_of_the_system() -> None:
    hot = build_system(
        config("system=gaussian_mixture", "system.temperature=600"), device=torch.device("cpu")
    )
    cold, x = system("gaussian_mixture"), torch.randn(4, 2)
    assert torch.allclose(
        hot.target.log_prob(hot.target.evaluate(x), 600.0),
        cold.target.log_prob(cold.target.evaluate(x), 300.0),
    )


@pytest.mark.parametrize(
    ("name", "dim"), [("tetra", 98), ("hexa", 148), ("elil", 178), ("proline", 58)]
)
def test_constraints_are_one_override_away(name: str, dim: int) -> None:
    built = build_system(
        config(f"system={name}", "system.molecule.constraints=HBonds"), device=torch.device("cpu")
    )
    assert built.target.dim == dim


def test_four_lines_make_a_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PDB file, a force field, a temperature; what stands in the README."""
    (tmp_path / "mine.pdb").write_text((STRUCTURES / "aldp.pdb").read_text())
    monkeypatch.chdir(tmp_path)
    lines = """
name: mine
temperature: 300.0
molecule: {_target_: energies.molecule.Molecule.from_pdb, path: mine.pdb,
           forcefield: [amber14/protein.ff14SB.xml, implicit/obc2.xml]}
"""
    whole = config()
    whole.system = OmegaConf.create(lines)
    built = build_system(whole, device=torch.device("cpu"))
    assert built.size == "22 atoms"
    assert built.observed == ("omega_1", "phi_2", "psi_2", "omega_2")


@pytest.mark.parametrize(
    ("name", "basins"),
    [("aldp", ["alpha_L"]), ("tetra", ["alpha_L_2", "alpha_L_3", "alpha_L_4"])],
)
def test_shipped_reference_is_of_the_system_as_it_is(name: str, basins: list[str]) -> None:
    reference = read_reference(f"{name}.npz")
    energy = system(name).target.energy
    with torch.no_grad():
        again = energy.potential(reference.xyz[::50])
    # Positions are kept to 1e-5 nm.
    torch.testing.assert_close(again, reference.potential[::50].to(again), rtol=0, atol=0.5)
    assert len(reference.xyz) >= 2900
    assert sorted(reference.populations) == basins
    assert all(0 < p.se < p.value for p in reference.populations.values())
    for counts in reference.counts.values():
        assert counts.shape == (6, 100, 100)
        assert counts.sum((1, 2)).min() > 1e5
    command = reference.provenance["origin"]["command"]
    assert command.startswith(f"python -m runs.reference system={name}")
    assert (SHIPPED / f"{name}.npz").stat().st_size < 1e6
