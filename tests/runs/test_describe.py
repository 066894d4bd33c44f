"""python -m runs.describe, as a user calls it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command(*overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "runs.describe", *overrides],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_alanine_dipeptide() -> None:
    out = command("system=aldp")
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert lines[0].startswith("ACE ALA NME: 22 atoms, 60 coordinates (53 stiff, 7 periodic)")
    assert len(lines) == 3 + 1 + 1 + 19
    assert sum("symmetric of order 3" in line for line in lines) == 3


def test_a_ring_and_openmm_as_the_energy() -> None:
    out = command("system=aldp_vacuum", 'system.molecule.sequence="ACE PRO NME"', "energy=openmm")
    assert out.returncode == 0, out.stderr
    assert "bonds that close rings: PRO2-" in out.stdout
    assert "axis in a ring" in out.stdout


def test_a_system_without_a_molecule() -> None:
    out = command("~system.molecule")
    assert out.returncode == 1
    assert out.stderr.strip() == (
        "Expected a system with a molecule, got aldp: it has no internal coordinates."
    )
