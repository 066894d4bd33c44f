"""Torsion angles of Cartesian coordinates, and the backbone torsions of a peptide by name."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from energies.errors import EnergyInputError

Quadruple = tuple[int, int, int, int]

# The methyl carbon of a cap stands where the next residue has its CA, and the N-methyl cap may
# call it C, which it must then not be taken for.
_CAP_NAMES = {("ACE", "CH3"): "CA", ("NME", "CH3"): "CA", ("NME", "C"): "CA"}


def torsions(xyz: Tensor, quadruples: Sequence[Quadruple] | Tensor) -> Tensor:
    """Return torsion angles, with the sign of IUPAC: looking along j -> k, clockwise is positive.

        φ = atan2(|b2| b1 · (b2 × b3), (b1 × b2) · (b2 × b3))

    with b1, b2, b3 the vectors i -> j, j -> k, k -> l. No arc cosine: exact near 0 and π too.

    Args:
        xyz: Positions, nm (any unit gives the same), [..., N, 3].
        quadruples: Atom indices i, j, k, l of each torsion, [K, 4].

    Returns:
        Angles in [-π, π), radians, float64 [..., K]; differentiable.

    Raises:
        EnergyInputError: Wrong shapes, or an index outside 0..N-1.
    """
    if xyz.ndim < 2 or xyz.shape[-1] != 3:
        raise EnergyInputError(f"Expected xyz of shape [..., N, 3], got {list(xyz.shape)}.")
    index = torch.as_tensor(quadruples, dtype=torch.long, device=xyz.device)
    if index.numel() == 0:
        index = index.reshape(0, 4)
    if index.ndim != 2 or index.shape[1] != 4:
        raise EnergyInputError(f"Expected quadruples of shape [K, 4], got {list(index.shape)}.")
    n_atoms = xyz.shape[-2]
    if bool(((index < 0) | (index >= n_atoms)).any()):
        raise EnergyInputError(
            f"Expected quadruples within 0..{n_atoms - 1}, got {index.flatten().tolist()}."
        )
    i, j, k, l = (xyz[..., index[:, c], :].to(torch.float64) for c in range(4))  # noqa: E741
    b1, b2, b3 = j - i, k - j, l - k
    normal = torch.linalg.cross(b2, b3)
    sine = torch.linalg.vector_norm(b2, dim=-1) * (b1 * normal).sum(-1)
    cosine = (torch.linalg.cross(b1, b2) * normal).sum(-1)
    angle = torch.atan2(sine, cosine)
    return torch.where(angle >= math.pi, angle - 2 * math.pi, angle)


def backbone_torsions(names: Iterable[tuple[int, str, str]]) -> dict[str, Quadruple]:
    """Return the backbone torsions of a peptide, found from its atom names.

        phi_r   = C(r-1)  N(r)  CA(r)   C(r)
        psi_r   = N(r)    CA(r) C(r)    N(r+1)
        omega_r = CA(r)   C(r)  N(r+1)  CA(r+1)

    The methyl carbon of an ACE or NME cap counts as its CA, so the peptide bonds to the caps have
    an omega as well; a torsion is there only if its four atoms are.

    Args:
        names: (residue index, residue name, atom name) of every atom, in the order of the
            coordinates. Residues r and r + 1 are taken to be bonded: leave a gap between chains.

    Returns:
        Name -> atom indices, ordered by residue and then phi, psi, omega. The numbers in the
        names are the residue indices given.

    Raises:
        EnergyInputError: A backbone atom name occurs twice in one residue.
    """
    atoms: dict[tuple[int, str], int] = {}
    for index, (residue, residue_name, atom_name) in enumerate(names):
        role = _CAP_NAMES.get((residue_name, atom_name), atom_name)
        if role not in ("N", "CA", "C"):
            continue
        if (residue, role) in atoms:
            raise EnergyInputError(
                f"Expected names with each backbone atom once a residue, "
                f"got a second {atom_name!r} in residue {residue} ({residue_name})."
            )
        atoms[residue, role] = index
    found: dict[str, Quadruple] = {}
    for r in sorted({residue for residue, _ in atoms}):
        wanted = {
            "phi": ((r - 1, "C"), (r, "N"), (r, "CA"), (r, "C")),
            "psi": ((r, "N"), (r, "CA"), (r, "C"), (r + 1, "N")),
            "omega": ((r, "CA"), (r, "C"), (r + 1, "N"), (r + 1, "CA")),
        }
        for name, (i, j, k, l) in wanted.items():  # noqa: E741
            if all(atom in atoms for atom in (i, j, k, l)):
                found[f"{name}_{r}"] = (atoms[i], atoms[j], atoms[k], atoms[l])
    return found
