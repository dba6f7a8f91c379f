#!/usr/bin/env bash
# A sweep on one rented machine (RunPod, Vast, Lambda, any box with GPUs): everything it needs and leaves is on the
# machine's volume, so that a pod that was stopped, or another one with the same volume, goes on.
#   bash deploy/rented.sh sweeps/warmdown.yaml resources.gpus_per_run=8
# As a pod's start command it begins again by itself whenever the pod does.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$#" -gt 0 ] || { echo "usage: bash deploy/rented.sh SWEEP.yaml [launch.py options]" >&2; exit 2; }
volume=${VOLUME:-/workspace}             # RunPod's and Vast's place for a volume
[ -d "$volume" ] && [ -w "$volume" ] || { echo "no volume at $volume: set VOLUME to a folder that stays" >&2; exit 2; }

if ! "$volume/venv/bin/python" -c "import ray, torch" 2>/dev/null; then
  python3 -m venv --clear "$volume/venv" && "$volume/venv/bin/pip" install -q -c constraints.txt -e .
fi
export RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 HF_HOME="${HF_HOME:-$volume/huggingface}"

# A stopped pod sends SIGTERM: exec, so that launch.py hears it, writes checkpoints and ends.
exec "$volume/venv/bin/python" launch.py --output "$volume/results" "$@"
