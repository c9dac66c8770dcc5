#!/usr/bin/env bash
# The main job on a small data set that is made on the spot: render, convert, train, test.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
storage=${STORAGE:-build/demo}

run() {
  echo "\$ $*"
  "$@"
}

# 50 toys from 3 elevations and 9 azimuths in 2 lights: 2 x 1,350 stereo pairs. The test toys are never trained on.
run "$python" data/render_norb.py --storage="$storage" --elevations=3 --azimuths=9 --lightings=2
run "$python" data/convert_to_tfrecord.py --dataset=renderedNORB --storage="$storage"
# What the preset is: caps_tf/presets/demo.toml.
run "$python" train_val.py --preset=demo --dataset=renderedNORB --storage="$storage" --name=demo
newest=$(find "$storage/logs/renderedNORB" -maxdepth 1 -name '*_demo' | sort | tail -n 1)
run "$python" test.py --load_dir="$newest"
echo "Look at $newest/test/*/report.html, or run: tensorboard --logdir=$storage/logs"
