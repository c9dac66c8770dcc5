#!/usr/bin/env bash
# The main job on a small data set that is made on the spot: render, convert, train, test. Five minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
storage=${STORAGE:-build/demo}

run() {
  echo "\$ $*"
  "$@"
}

run "$python" data/render_norb.py --storage="$storage" --elevations=0,4,8 --azimuths=0,6,12,18,24,30 --lightings=0,3
run "$python" data/convert_to_tfrecord.py --dataset=renderedNORB --storage="$storage"
run "$python" train_val.py --dataset=renderedNORB --storage="$storage" --name=demo \
  --A=32 --B=4 --C=8 --D=8 --batch_size=32 --epoch=8 --margin_steps=60 --lrn_decay_steps=200
newest=$(ls -d "$storage"/logs/renderedNORB/*_demo | tail -n 1)
run "$python" test.py --load_dir="$newest"
echo "Look at $newest/test/*/report.html, or run: tensorboard --logdir=$storage/logs"
