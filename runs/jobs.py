"""python -m runs.jobs: the commands of a sweep, a line each, for a scheduler's job array.

Arguments are those of `python -m runs.train -m`; jobs that are done are left out.
"""

import sys
from functools import partial

from runs.cli import run_command
from runs.sweeps import print_job

QUIET = ["hydra/launcher=basic", "hydra/hydra_logging=none", "hydra/job_logging=none"]


def main() -> None:
    """Run the command."""
    sys.argv[1:1] = ["--multirun", *QUIET]
    run_command(partial(print_job, "runs.train"), "train")


if __name__ == "__main__":
    main()
