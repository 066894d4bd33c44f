"""Observables as a user would write them."""

import mdtraj
import numpy as np


def height(trajectory: mdtraj.Trajectory, *, axis: int) -> np.ndarray:
    return np.ptp(trajectory.xyz[:, :, axis], axis=1)


def one_number(trajectory: mdtraj.Trajectory) -> float:
    return 1.0


def broken(trajectory: mdtraj.Trajectory) -> np.ndarray:
    raise KeyError("no such thing")
