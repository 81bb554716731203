#!/bin/sh
# gpu_campaign.sh PART, or `merge FOLDER...`: what a GPU that is at hand by the half hour is used for, in parts of less
# than 8 minutes. docs/gpu_campaign.md says what each is for.
cd "$(dirname "$0")/.." || exit 2
PYTHONPATH=".:kernels${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m benchmarks.gpu_campaign "$@"
