"""Compares trained networks on novel viewpoints, matched on familiar ones.

    python train_val.py --viewpoints=azimuth --network=... --keep_checkpoints=1000 --checkpoint_every=50   # for each
    python test.py --load_dir=... --ckpt_name=all
    python examples/compare_viewpoints.py --runs=logs/smallNORB/<first>,logs/smallNORB/<second>
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.errors import UserError, run_script
from caps_tf.evaluation.viewpoints import comparison_table, read_results

RUNS = flags.DEFINE_list("runs", None, "directories that train_val.py wrote and test.py has tested", required=True)


def main(argv: list[str]) -> None:
    del argv
    if len(RUNS.value) < 2:
        raise UserError("--runs takes at least two directories, separated by commas")
    print(comparison_table([read_results(run) for run in RUNS.value]))


if __name__ == "__main__":
    run_script(main)
