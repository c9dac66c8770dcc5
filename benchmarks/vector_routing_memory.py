"""Peak memory of one training step of vector routing as the number of input vectors grows.

    python -m benchmarks.vector_routing_memory

One JSON line for each number of inputs, each measured in a process of its own, and all of them in a CSV file. A step is
forward and backward, with the gradients of the input and of all weights. `step_mib` is the peak above what the process
held before the step: with TensorFlow loaded, and input and weights in memory. It should grow as n_inp does.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.process import ROOT, describe_machine, held_mib, peak_mib
from caps_tf import startup

HERE = Path(__file__).resolve().parent
STEPS = 3


def measure(n_inp: int, n_out: int, d_inp: int, d_out: int) -> dict:
    """Runs the steps in this process."""
    startup.set_environment()
    import numpy as np
    import tensorflow as tf

    from caps_tf.layers import HeinsenVectorRouting

    def make_step(layer):
        @tf.function(autograph=False)
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(tf.square(layer(x) - 1.0))
            return tape.gradient(loss, [x, *layer.trainable_variables])

        return step

    def random_input(inputs):
        return tf.constant(np.random.default_rng().standard_normal((inputs, d_inp), np.float32))

    # What the first step of any size allocates once and for all is not of interest here.
    make_step(HeinsenVectorRouting(8, n_out, d_inp, d_out))(random_input(8))
    layer = HeinsenVectorRouting(n_inp, n_out, d_inp, d_out)
    layer.build((n_inp, d_inp))
    x = random_input(n_inp)
    step, before = make_step(layer), held_mib()
    for _ in range(STEPS):
        gradients = step(x)
        assert all(bool(tf.math.is_finite(tf.reduce_sum(gradient))) for gradient in gradients)
        del gradients  # so that the next step does not add to it
    return {
        "n_inp": n_inp,
        "n_out": n_out,
        "d_inp": d_inp,
        "d_out": d_out,
        "peak_mib": round(peak_mib(), 1),
        "step_mib": round(peak_mib() - before, 1),
        "step_kib_per_input": round((peak_mib() - before) * 2**10 / n_inp, 2),
        "all_proposals_mib": round(n_inp * n_out * d_out * 4 / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_inp", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--n_out", type=int, default=100)
    parser.add_argument("--d_inp", type=int, default=256)
    parser.add_argument("--d_out", type=int, default=256)
    parser.add_argument("--output", type=Path, default=HERE / "vector_routing_memory.csv")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = arguments.n_out, arguments.d_inp, arguments.d_out
    if arguments.child:
        print(json.dumps(measure(arguments.n_inp[0], *sizes)))
        return
    rows = []
    for n_inp in arguments.n_inp:
        options = [f"--{name}={size}" for name, size in zip(("n_out", "d_inp", "d_out"), sizes, strict=True)]
        command = [sys.executable, "-m", "benchmarks.vector_routing_memory", "--child", f"--n_inp={n_inp}", *options]
        output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append({**json.loads(output), **describe_machine()})
        print(json.dumps(rows[-1]), flush=True)
    with open(arguments.output, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
