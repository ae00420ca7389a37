#!/bin/bash
# A run on machines that Slurm allocates, one Ray node on each, from a folder that they share:
#
#     sbatch cluster/slurm.sh --tasks humanoid --workers 64
#
# Slurm starts a job anew that was preempted or has lost a machine; it goes on from its last checkpoint. Ray must be at hand
# in this shell: activate the virtual environment before `sbatch`, or here.

#SBATCH --job-name=mtray
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

# Known to this job's processes only: other users of the machines are kept out.
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token OMP_NUM_THREADS=1
# Seconds for all nodes to start; Ray's own 30 are short for a shared disk.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
# Seconds until the other machines are free when the head has ended.
export RAY_gcs_rpc_server_reconnect_timeout_s=20

# Slurm sends SIGTERM to every process of a job that is to end. Only the run takes notice, which saves and ends, and Ray
# with it: `symmetric-run` would kill it, and Ray's processes would end before it has saved.
mask='import os, signal, sys
signal.pthread_sigmask(getattr(signal, sys.argv[1]), [signal.SIGTERM, signal.SIGINT])
os.execvp(sys.argv[2], sys.argv[2:])'

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun python -c "$mask" SIG_BLOCK \
    ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_ON_NODE" -- \
    python -c "$mask" SIG_UNBLOCK \
    python -m mtray.launch --address auto --run-dir "runs/$SLURM_JOB_ID" --resume auto "$@"
