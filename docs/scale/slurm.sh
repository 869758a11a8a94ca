#!/bin/bash
# Carries out a request on the nodes of a Slurm job: sbatch docs/scale/slurm.sh spec.yaml --out /shared/runs/study
#
# All arguments go to `longeval run`. Submit the same line again to go on where a job has ended.
#SBATCH --job-name=longeval
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --no-kill
#SBATCH --signal=B:TERM@120
# --exclusive and --mem=0: whole nodes. Add what your site needs for GPUs, such as --gpus-per-node=8 or --gres=gpu:8.
# --no-kill: the job goes on without a node that fails. --signal: longeval gets two minutes to end before the time limit.
set -u

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # the node of this script
others=$((SLURM_JOB_NUM_NODES - 1))
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node don't meet
address=$(hostname --all-ip-addresses | cut -d ' ' -f 1) # that of another network, if nodes reach one another there
RAY_ADDRESS=$address:$port
RAY_AUTH_MODE=token # without one, anybody in the network could run code as you
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

steps=()
command=
finish() {
    for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null; done
    wait
}
trap finish EXIT
trap '[ -n "$command" ] && kill -TERM "$command" 2>/dev/null' TERM INT

# Ray counts the processors and GPUs of each node itself, so nodes may differ. --block keeps it under srun, which ends it.
srun --nodes=1 --ntasks=1 --nodelist="$first" --cpu-bind=none \
    ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false --block &
steps+=($!)
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --exclude="$first" --cpu-bind=none --kill-on-bad-exit=0 \
        bash -c 'until timeout 20 ray health-check --address "$RAY_ADDRESS"; do sleep 2; done &>/dev/null
                 exec ray start --address="$RAY_ADDRESS" --block' &
    steps+=($!)
fi

until timeout 20 ray health-check --address "$RAY_ADDRESS" &>/dev/null; do
    kill -0 "${steps[0]}" 2>/dev/null || { echo "Ray has not started on $first" >&2; exit 1; }
    sleep 2
done
# longeval uses the nodes that are there when it starts. After five minutes it goes on without those that are missing.
python -P - "$SLURM_JOB_NUM_NODES" <<'PYTHON' || exit 1
import logging, sys, time
import ray

wanted, until = int(sys.argv[1]), time.monotonic() + 300
ray.init(log_to_driver=False, logging_level=logging.ERROR)
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < until:
    time.sleep(2)
print(f"{there} of {wanted} nodes are there", flush=True)
PYTHON

longeval run "$@" --executor ray &
command=$!
wait "$command"
status=$?
if kill -0 "$command" 2>/dev/null; then # a signal ended `wait`, and longeval stores what it has
    wait "$command"
    status=$?
fi
exit "$status"
