#!/bin/bash
# Four nodes with eight GPUs each, one process for each GPU: sbatch examples/slurm.sh
# Every node starts Ray; the first one then starts the run; when that ends, so does Ray. Submitted again, the run goes on
# where it was.
#SBATCH --job-name=distill
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --exclusive

# What all nodes must see, under one path each: this project with its environment, and the store.
cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit 1
export DISTILL_HOME="${DISTILL_HOME:-$PWD/outputs}"
export HF_HOME="${HF_HOME:-$PWD/huggingface}" # models of the hub are downloaded once
export PATH="$PWD/.venv/bin:$PATH"
run="${1:-llmr-cnndm}"

export RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN # of this job alone: others on the network cannot give its workers work
export RAY_TMPDIR="${SLURM_TMPDIR:-/tmp}" # local to each node
export OMP_NUM_THREADS=4
port=$((20000 + ${SLURM_JOB_ID:-0} % 10000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --ntasks="$SLURM_NNODES" --kill-on-bad-exit=1 \
    ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_NNODES" -- \
    distill run "$run" --engine ray --address auto
