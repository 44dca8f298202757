#!/bin/bash
# sbatch --nodes 2 slurm.sh RECIPE [options of glamm-mini train]        one torchrun a node, eight GPUs each
#SBATCH --job-name=glamm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
# Five minutes before the time is out, this script (B:) is told.
#SBATCH --signal=B:USR1@300
set -u

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Torchrun hands SIGTERM on to the trainers, which save after the running step; 240 seconds are left for that.
# Older releases of torch, 2.9 among them, do not read this and leave 30 seconds: there, save often.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
  --rdzv-endpoint "$head:29500" -m glamm_mini.cli.main train "$@" --resume &
step=$!

requeue() {
  scancel --signal=TERM "$SLURM_JOB_ID.0"
  wait "$step"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap requeue USR1

wait "$step"
