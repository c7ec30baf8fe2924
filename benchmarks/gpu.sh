#!/bin/bash
# Trains a generator on features of ImageNet for a few minutes of one GPU, and says how fast it was.
#
#   benchmarks/gpu.sh PHOTOS OUT [SECONDS]
#
# PHOTOS is a folder of photos, OUT is made. SECONDS (430 by default) is how long it trains; all
# takes about two minutes more. SIZE, BATCH and WEIGHTS (a file of EfficientNet-Lite0; by default
# that of the installed package) come from the environment. OUT holds, when it is done:
#
#   speed.json                  images per second of trainings without and with features
#   report.html, metrics.jsonl  samples and distances over time
#   training.tar.part-*         the training folder in parts of less than 16 MB
#
# `cat OUT/training.tar.part-* | tar x` gives the folder back; the same command goes on from there:
# latentseg train-generator PHOTOS training ... with the options in training/command.txt.
set -euo pipefail

photos=$1 out=$2 seconds=${3:-430}
size=${SIZE:-128} batch=${BATCH:-64}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

options=(--features efficientnet-lite0 --size "$size" "$size" --batch "$batch"
    --images 100000000 --report-images "${REPORT_IMAGES:-50000}" --device "${DEVICE:-auto}"
    ${WEIGHTS:+--feature-weights "$WEIGHTS"})

timeout 100 python3 "$here/training.py" --presets --side "$size" --generator-batch "$batch" \
    --generator-steps 64 --device "${DEVICE:-auto}" --json "$out/speed.json" ||
    echo "the speed was not measured"

# SIGINT lets the training save its state; 130 is how it then ends.
timeout --signal INT --kill-after 60 "$seconds" python3 -m latentseg train-generator "$photos" "$work/training" \
    "${options[@]}" || [ $? -eq 124 ]

echo "latentseg train-generator PHOTOS training ${options[*]}" >"$work/training/command.txt"
for file in metrics.jsonl report.html; do # there are none before the first report
    [ ! -f "$work/training/$file" ] || cp "$work/training/$file" "$out"
done
rm -f "$out"/training.tar.part-*
# The newest state alone: that and the generator are all that is needed to go on.
ls -d "$work"/training/checkpoints/step-* | head -n -1 | xargs -r rm -r
tar -C "$work" --exclude .lock --exclude .holder --exclude previews -c training |
    split -b 15000000 -d - "$out/training.tar.part-"
ls -l "$out"
