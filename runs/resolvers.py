"""What configs compute: parts of a budget, and the folder of a job."""

import hashlib
import re
from collections.abc import Sequence

from omegaconf import OmegaConf

OF_SESSIONS = (
    "sweep", "resume", "logger", "allow", "trainer.max_time", "trainer.progress_bar",
)  # fmt: skip
"""Keys that say how a session of a run goes on rather than which run it is."""

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
        overrides: Of the job; those of sessions are no part of its name.
    """
    parts = [_folder(o) for o in sorted(overrides) if not of_session(o.partition("=")[0])]
    return "/".join(parts) or "job"


def of_session(key: str) -> bool:
    """Return whether a key of the config may change from one session of a run to the next."""
    return any(key == one or key.startswith(f"{one}.") for one in OF_SESSIONS)


def _folder(override: str) -> str:
    name = re.sub(r"[^\w.+-]", "_", override.replace("=", "-", 1), flags=re.ASCII).strip("_.")
    if name != override.replace("=", "-", 1) or len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(override.encode()).hexdigest()[:8]}"
    return name


def register() -> None:
    """Make them known to configs."""
    OmegaConf.register_new_resolver("share", share, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
