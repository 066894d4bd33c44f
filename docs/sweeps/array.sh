#!/bin/bash
# A sweep as a job array, one job a line:
#
#   python -m runs.jobs sweep=losses > jobs.txt
#   sbatch --array=1-$(wc -l < jobs.txt)%20 docs/sweeps/array.sh jobs.txt
#
# Started again, runs.jobs prints what is missing or failed. For PBS or LSF put their index in
# place of SLURM_ARRAY_TASK_ID; without a scheduler: xargs -a jobs.txt -d '\n' -P 4 -n 1 bash -c
#SBATCH --job-name=boltzflow
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x_%A_%a.log
set -euo pipefail
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
line="$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")"
eval "exec $line"
