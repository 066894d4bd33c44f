"""From residue names to a topology, with the atoms and bonds of the force field's templates."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from openmm import app

from energies.errors import MoleculeError
from energies.structure import Quadruple

AMINO_ACIDS = (
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE",
    "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL",
)  # fmt: skip
VARIANTS = ("ASH", "CYM", "CYX", "GLH", "HID", "HIE", "HIP", "HYP", "LYN")
N_CAPS = ("ACE",)
C_CAPS = ("NME", "NH2")
KNOWN = (*AMINO_ACIDS, *VARIANTS, *N_CAPS, *C_CAPS)

# What a force field may call a residue: template name and the patches to apply to it.
_SPELLINGS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "HIS": (("HIS", ()), ("HIE", ()), ("HSE", ())),
    "HID": (("HID", ()), ("HSD", ())),
    "HIE": (("HIE", ()), ("HSE", ())),
    "HIP": (("HIP", ()), ("HSP", ())),
    "ASH": (("ASH", ()), ("ASP", ("ASPP",))),
    "GLH": (("GLH", ()), ("GLU", ("GLUP",))),
    "LYN": (("LYN", ()), ("LYS", ("LSN",))),
    "NH2": (("NHE", ()), ("NH2", ())),
}

# CHARMM writes caps as patches of their neighbour, which `createSystem` finds by itself when it
# sees a residue of its own with these atoms.
_CAP_PATCHES = {"ACE": "ACE", "NME": "CT3", "NH2": "CT2"}
_CAP_ATOMS: dict[str, tuple[tuple[str, str], ...]] = {
    "ACE": (("CH3", "C"), ("HH31", "H"), ("HH32", "H"), ("HH33", "H"), ("C", "C"), ("O", "O")),
    "NME": (("N", "N"), ("H", "H"), ("CH3", "C"), ("HH31", "H"), ("HH32", "H"), ("HH33", "H")),
    "NH2": (("N", "N"), ("HN1", "H"), ("HN2", "H")),
}
_CAP_BONDS: dict[str, tuple[tuple[int, int], ...]] = {
    "ACE": ((0, 1), (0, 2), (0, 3), (0, 4), (4, 5)),
    "NME": ((0, 1), (0, 2), (2, 3), (2, 4), (2, 5)),
    "NH2": ((0, 1), (0, 2)),
}

# Spokes (a, b, c) of a stereocentre with positive handed volume in the natural (L) residue.
_STEREO: dict[str, tuple[tuple[str, tuple[str, str, str]], ...]] = {
    "ILE": (("CB", ("CA", "CG1", "CG2")),),
    "THR": (("CB", ("CA", "OG1", "CG2")),),
    "HYP": (("CG", ("CD", "OD1", "CB")),),
}


PROLINE_PHI = math.radians(-65.0)
"""φ to which its ring holds a proline, whatever that of the other residues."""


@dataclass(frozen=True)
class Residue:
    """One residue of a sequence, resolved against a force field.

    Attributes:
        name: Name as written in the sequence.
        base: Name without the D of a mirrored amino acid.
        mirrored: Whether it is a D amino acid.
        template: Name of the force field's template, or None where patches decide.
        atoms: (name, element symbol) of each atom, in template order.
        bonds: Pairs of indices into `atoms`.
    """

    name: str
    base: str
    mirrored: bool
    template: str | None
    atoms: tuple[tuple[str, str], ...]
    bonds: tuple[tuple[int, int], ...]

    def stereocentres(self) -> Iterator[tuple[str, tuple[str, str, str]]]:
        """Yield (centre, spokes) whose handed volume is positive in this residue."""
        names = {name for name, _ in self.atoms}
        for centre, spokes in (("CA", ("N", "C", "CB")), *_STEREO.get(self.base, ())):
            if {centre, *spokes} <= names:
                a, b, c = spokes
                yield centre, ((b, a, c) if self.mirrored else (a, b, c))


def resolve_sequence(sequence: str, forcefield: app.ForceField) -> list[Residue]:
    """Look every residue of a sequence up in a force field.

    Args:
        sequence: Residue names separated by blanks, N to C. A leading D mirrors an amino acid.
        forcefield: Where the templates are.

    Returns:
        The residues, ends without a cap being charged termini.

    Raises:
        MoleculeError: A residue is unknown, out of place or has no template.
    """
    names = sequence.split()
    if not names:
        raise MoleculeError(f"Expected sequence to name at least one residue, got {sequence!r}.")
    residues = []
    for k, name in enumerate(names):
        base, mirrored = name, False
        if name not in KNOWN and name[:1] == "D" and name[1:] in (*AMINO_ACIDS, *VARIANTS):
            base, mirrored = name[1:], True
        if base not in KNOWN:
            raise MoleculeError(
                f"Expected residue {k + 1} of the sequence to be one of {', '.join(KNOWN)} "
                f"(D amino acids with a leading D), got {name!r}."
            )
        if (base in N_CAPS and k > 0) or (base in C_CAPS and k < len(names) - 1):
            raise MoleculeError(
                f"Expected cap {name} at the end of the sequence, got {sequence!r}."
            )
        first, last = k == 0 and base not in N_CAPS, k == len(names) - 1 and base not in C_CAPS
        residues.append(_resolve(name, base, mirrored, first, last, forcefield))
    return residues


def _resolve(
    name: str, base: str, mirrored: bool, first: bool, last: bool, forcefield: app.ForceField
) -> Residue:
    # OpenMM has no public way to read templates; these attributes have been stable for years.
    templates: dict[str, Any] = forcefield._templates
    patches: dict[str, Any] = forcefield._patches
    tried = []
    for spelling, own in _SPELLINGS.get(base, ((base, ()),)):
        for template, names in _with_ends(spelling, own, first, last):
            tried.append("+".join((template, *names)))
            if template not in templates:
                continue
            found = templates[template]
            for patch in names:
                variants = [p for p in patches if p == patch or p.startswith(f"{patch}_")]
                found = found and _patched(found, [patches[p] for p in variants])
            if found is not None:
                atoms = tuple((a.name, a.element.symbol) for a in found.atoms)
                return Residue(
                    name, base, mirrored, None if names else template, atoms, tuple(found.bonds)
                )
    if base in _CAP_ATOMS and any(p.split("_")[0] == _CAP_PATCHES[base] for p in patches):
        return Residue(name, base, mirrored, None, _CAP_ATOMS[base], _CAP_BONDS[base])
    place = " as a lone residue" if first and last else " at the N end" if first else (
        " at the C end" if last else "")  # fmt: skip
    raise MoleculeError(
        f"Expected the force field to have a template for residue {name}{place}, got none "
        f"(tried {', '.join(tried)})."
    )


def _with_ends(
    template: str, own: tuple[str, ...], first: bool, last: bool
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the ways in which force fields write a residue at a chain end."""
    if not first and not last:
        yield template, own
        return
    if first != last and not own:
        yield ("N" if first else "C") + template, ()
    start = {"GLY": "GLYP", "PRO": "PROP"}.get(template, "NTER")
    yield template, (*own, *([start] if first else []), *(["CTER"] if last else []))


def _patched(template: Any, patches: Sequence[Any]) -> Any | None:
    """Apply the first of some variants of a patch that fits the template."""
    for patch in patches:
        try:
            return patch.createPatchedTemplates([template])[0]
        except (ValueError, KeyError):
            continue
    return None


def build_topology(residues: Sequence[Residue]) -> tuple[app.Topology, dict[Any, str]]:
    """Join residues by peptide bonds (and CYX pairs, in order of appearance, by disulfides).

    Returns:
        The topology, and the template of each of its residues where one is known by name.

    Raises:
        MoleculeError: Neighbours that cannot be joined, an odd number of CYX.
    """
    topology = app.Topology()
    chain = topology.addChain("A")
    templates: dict[Any, str] = {}
    by_name: list[dict[str, Any]] = []
    for k, residue in enumerate(residues):
        entry = topology.addResidue(residue.name, chain, str(k + 1))
        if residue.template is not None:
            templates[entry] = residue.template
        atoms = [
            topology.addAtom(name, app.Element.getBySymbol(symbol), entry)
            for name, symbol in residue.atoms
        ]
        for i, j in residue.bonds:
            topology.addBond(atoms[i], atoms[j])
        by_name.append(dict(zip((name for name, _ in residue.atoms), atoms, strict=True)))
        if k:
            if "C" not in by_name[k - 1] or "N" not in by_name[k]:
                raise MoleculeError(
                    f"Expected a peptide bond between {residues[k - 1].name} and {residue.name}, "
                    f"got a residue without C or N."
                )
            topology.addBond(by_name[k - 1]["C"], by_name[k]["N"])
    sulfurs = [names["SG"] for r, names in zip(residues, by_name, strict=True) if r.base == "CYX"]
    if len(sulfurs) % 2:
        raise MoleculeError(f"Expected an even number of CYX to bridge, got {len(sulfurs)}.")
    for one, other in zip(sulfurs[::2], sulfurs[1::2], strict=True):
        topology.addBond(one, other)
    return topology, templates


class Backbone:
    """What the residues of a sequence say about its structure.

    Attributes:
        first: Atom from which the structure is grown.
        bonds: Bonded pairs of atoms.
        priority: Sort key of each atom among the neighbours of another.
        torsions: φ, ψ and ω, radians, by their four atoms.
        hands: Stereocentre -> its spokes with positive handed volume.
        peptide_bonds: The four atoms of each ω.
    """

    def __init__(
        self, topology: app.Topology, residues: Sequence[Residue], phi: float, psi: float
    ) -> None:
        atoms = [{a.name: a.index for a in entry.atoms()} for entry in topology.residues()]
        self.first = atoms[0].get("CH3", atoms[0].get("N", 0))
        self.bonds = [(b[0].index, b[1].index) for b in topology.bonds()]
        # Backbone before side chain before hydrogen: what is placed first owns the torsion.
        self.priority = [
            (a.element.symbol == "H", a.name not in ("N", "CA", "C"), a.index)
            for a in topology.atoms()
        ]
        self.torsions: dict[Quadruple, float] = {}
        self.hands: dict[int, tuple[int, int, int]] = {}
        self.peptide_bonds: list[Quadruple] = []
        for k, residue in enumerate(residues):
            here = atoms[k]
            for centre, (a, b, c) in residue.stereocentres():
                self.hands[here[centre]] = (here[a], here[b], here[c])
            mirror = -1.0 if residue.mirrored else 1.0
            if k and "CA" in here:
                own = PROLINE_PHI if residue.base == "PRO" else phi
                key = (atoms[k - 1]["C"], here["N"], here["CA"], here["C"])
                self.torsions[key] = mirror * own
            if k + 1 < len(residues):
                after = atoms[k + 1]
                if "CA" in here:
                    self.torsions[here["N"], here["CA"], here["C"], after["N"]] = mirror * psi
                ends = here.get("CA", here.get("CH3")), after.get("CA", after.get("CH3"))
                if ends[0] is not None and ends[1] is not None:
                    omega = (ends[0], here["C"], after["N"], ends[1])
                    self.torsions[omega] = math.pi
                    self.peptide_bonds.append(omega)
