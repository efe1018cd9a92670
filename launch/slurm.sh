#!/usr/bin/env bash
# A run on Slurm, or an array of runs. `plmjax launch --target=slurm` fills in the words in
# double braces. By hand: fill them in, remove the lines that you do not need, and `sbatch`
# this file from a folder that all nodes share.
#
#SBATCH --job-name={{name}}
#SBATCH --nodes={{nodes}}
#SBATCH --ntasks-per-node={{tasks_per_node}}
#SBATCH --cpus-per-task={{cpus_per_task}}
#SBATCH --gpus-per-node={{gpus_per_node}}
#SBATCH --time={{time}}
#SBATCH --partition={{partition}}
#SBATCH --account={{account}}
#SBATCH --array={{array}}
#SBATCH {{extra}}
#SBATCH --output={{log}}
#SBATCH --open-mode=append
#SBATCH --requeue
#
# Slurm sends SIGTERM so many seconds before the time limit. Without "B:" it goes to the
# tasks of srun and not to this script. Slurm signals only a task's first process: that is
# Python, which replaces bash by exec, below. It saves and exits with 75.
#SBATCH --signal=TERM@{{grace_seconds}}

set -u
cd {{directory}} || exit 2

# The run; in an array of different runs, the one in the task's line of a file.
eval "set -- $(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {{commands}})"
set -- {{command}}

# srun returns only the highest exit code of its tasks, which may be that of a task that
# another one ended. A task that fails for good writes its code to this file.
export PLMJAX_FAILURE_FILE={{failure_file}}

# Every task sees all GPUs of its node, so that NCCL can reach them, and uses its share: by
# default, JAX would use only the GPU with the task's number.
export GPUS_PER_TASK={{gpus_per_task}} SLURM_GPU_BIND=none
export SRUN_CPUS_PER_TASK={{cpus_per_task}}
export PYTHONUNBUFFERED=1
task='
if [ -n "${GPUS_PER_TASK:-}" ]; then
  first=$((SLURM_LOCALID * GPUS_PER_TASK))
  JAX_LOCAL_DEVICE_IDS=$(seq -s , "$first" $((first + GPUS_PER_TASK - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
exec "$@"'

# A task that has ended must not end one that is still saving; the others notice a dead
# task without srun.
srun --label --kill-on-bad-exit=0 bash -c "$task" task "$@"
code=$?
if [ -s "$PLMJAX_FAILURE_FILE" ]; then
  code=$(cat "$PLMJAX_FAILURE_FILE")
fi

# Saved and stopped (75), aborted because a peer died (134), killed (137, 143): run again
# later. A cancelled job is no longer running and stays cancelled; Slurm itself has already
# requeued a preempted job.
job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi
case $code in
  75 | 134 | 137 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -ge {{restarts}} ]; then
      echo "Stopped with $code after {{restarts}} restarts. To resume, sbatch the same file."
    elif scontrol show job --oneliner "$job" | grep -q 'JobState=RUNNING'; then
      echo "Stopped with $code; back into the queue."
      scontrol requeue "$job"
    fi
    ;;
esac
exit "$code"
