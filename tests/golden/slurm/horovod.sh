#!/bin/bash
#SBATCH --job-name=cookbook-horovod-2026-01-31_12-00-00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=60
#SBATCH --output=/shared/outputs/horovod/2026-01-31_12-00-00/logs/job.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
#SBATCH --partition=gpu
#SBATCH --gpus-per-node=4
#SBATCH --qos=high
set -euo pipefail
export OMP_NUM_THREADS=1
export PYTHONUNBUFFERED=1
export MALLOC_MMAP_THRESHOLD_=33554432
export MALLOC_TRIM_THRESHOLD_=1073741824
export PATH=/shared/.venvs/x/bin:$PATH
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
notice=/shared/outputs/horovod/2026-01-31_12-00-00/preempt
rm -f "$notice"
taken_away=
trap 'taken_away=1; echo "SIGTERM of Slurm" > "$notice"' TERM
(
slots=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/:4/' | paste -sd, -)
address=$(getent ahostsv4 "$SLURMD_NODENAME" | awk 'NR==1 {print $1}')
interface=$(ip -o -4 addr show | awk -v a="$address/" 'index($4, a) == 1 {print $2; exit}')
export GLOO_SOCKET_IFNAME=$interface NCCL_SOCKET_IFNAME=$interface
exec /shared/.venvs/x/bin/horovodrun --disable-cache -np 8 --start-timeout 180 -H "$slots" --gloo --network-interfaces "$interface" /shared/.venvs/x/bin/python /shared/recipes/horovod/main.py /shared/outputs/horovod/2026-01-31_12-00-00/config.yaml
) &
status=0
wait $! || status=$?
if [ -n "$taken_away" ]; then
  status=0
  wait $! || status=$?
  # Not one that somebody has cancelled: its processes get SIGTERM, too.
  if [ "$status" -ne 0 ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
