#!/usr/bin/env bash
# CLUSTER=NAME TPU_TYPE=v6e-64 IMAGE=IMAGE scripts/xpk.sh [options of `satjax train`]
#
# A workload on GKE by xpk, of NUM_SLICES slices (default 1). The image has
# satjax[tpu] installed; the workdir is on a volume that the pods mount. A pod
# that is stopped starts again and goes on: the restarts are counted by xpk.
set -euo pipefail
: "${CLUSTER:?the cluster}" "${TPU_TYPE:?such as v6e-64}" "${IMAGE:?an image}"

exec xpk workload create \
  --cluster="$CLUSTER" \
  --workload="${WORKLOAD:-satjax-$(date +%m%d%H%M)}" \
  --tpu-type="$TPU_TYPE" \
  --num-slices="${NUM_SLICES:-1}" \
  --docker-image="$IMAGE" \
  --max-restarts="${RESTARTS:-10}" \
  --command="satjax train --coordinator=auto $(printf '%q ' "$@")"
