#!/usr/bin/env bash
# sbatch [sbatch options] scripts/slurm.sh [options of `satjax train`]
#
# One task for each GPU. Five minutes before its time is over the run is told
# to save and stop; a run that says "run me again" (75) is queued again.
#SBATCH --job-name=satjax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92

srun --kill-on-bad-exit=1 .venv/bin/satjax train "$@"
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
