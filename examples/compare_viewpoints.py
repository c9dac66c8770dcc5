"""Compares trained networks on novel viewpoints, matched on familiar ones.

    python train_val.py --viewpoints=azimuth --network=... --keep_checkpoints=1000 --checkpoint_every=50   # for each
    python test.py --load_dir=... --ckpt_name=all
    python examples/compare_viewpoints.py --runs=logs/smallNORB/<first>,logs/smallNORB/<second> --picture=compared.png

Runs that differ in nothing but their seed are put together: mean and standard deviation. Novel accuracy is given where a
run first reaches the familiar accuracy to match, on a line between the checkpoints before and after that moment.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.errors import UserError
from caps_tf.evaluation.style import save_figure
from caps_tf.evaluation.viewpoints import comparison_figure, comparison_table, read_networks
from caps_tf.scripts import run_script

RUNS = flags.DEFINE_list("runs", None, "directories that train_val.py wrote and test.py has tested", required=True)
FAMILIAR = flags.DEFINE_float(
    "familiar", None, "familiar accuracy to match, 0 to 1 [the highest that all runs reach]", 0, 1
)
PICTURE = flags.DEFINE_string("picture", None, "PNG to draw: novel against familiar accuracy of every checkpoint")


def main(argv: list[str]) -> None:
    del argv
    if len(RUNS.value) < 2:
        raise UserError("--runs takes at least two directories, separated by commas")
    networks = read_networks(RUNS.value)
    print(comparison_table(networks, FAMILIAR.value))
    if PICTURE.value:
        print(save_figure(comparison_figure(networks, FAMILIAR.value), PICTURE.value), file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
