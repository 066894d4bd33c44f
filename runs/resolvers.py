"""What configs compute: parts of a budget, and the folder of a job."""

import hashlib
import re
from collections.abc import Sequence

from omegaconf import OmegaConf

LONGEST = 100
"""Characters of a folder that is named after an override; file systems allow 255 bytes."""


def share(fraction: float, total: int | float | None) -> int | float | None:
    """Return a share of a budget that may be None; of a whole number, a whole one of at least 1.

    In configs it is written ${share:0.3,${trainer.max_steps}}.
    """
    if total is None:
        return None
    part = float(fraction) * total
    return max(round(part), 1) if isinstance(total, int) else part


def job_folder(overrides: Sequence[str]) -> str:
    """Return the folder of a job below its sweep: its overrides, whatever order they came in.

    The same job has the same folder whenever the sweep is started, so that a second start finds
    what is done. `loss=l2_plus seed=0` gives `loss-l2_plus/seed-0`: names that every shell and
    Hydra's own grammar take unquoted. Where a name says less than the override, a hash of it
    tells it from others.

    Args:
        overrides: Of the job; which file of `sweep` they came from names the sweep, not the job.
    """
    parts = [_folder(o) for o in sorted(overrides) if not o.startswith("sweep=")]
    return "/".join(parts) or "job"


def _folder(override: str) -> str:
    name = re.sub(r"[^\w.+-]", "_", override.replace("=", "-", 1), flags=re.ASCII).strip("_.")
    if name != override.replace("=", "-", 1) or len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(override.encode()).hexdigest()[:8]}"
    return name


def register() -> None:
    """Make them known to configs."""
    OmegaConf.register_new_resolver("share", share, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
