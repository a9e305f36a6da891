#!/usr/bin/env bash
# TPU=NAME ZONE=ZONE scripts/tpu_pod.sh [options of `satjax train`]
#
# Runs on every worker of a Cloud TPU slice. REPOSITORY is cloned to ~/satjax
# if it is not there; the workdir has to be a folder that all workers share.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
repository=${REPOSITORY:-$(git remote get-url origin)}

command="test -d satjax || git clone '$repository' satjax;
cd satjax;
test -x .venv/bin/satjax || (python3 -m venv .venv &&
  .venv/bin/pip install -q -e '.[tpu,data]');
.venv/bin/satjax train --coordinator=auto $(printf '%q ' "$@")"

exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="$command"
