"""What each network's training step multiplies and writes at small sizes, and the numbers that are kept of it.

    python -m tests.program_costs     # accept what the networks cost now

The program is read as XLA gets it: an array that is newly made shows there whether or not XLA would fuse it away, and
nothing needs to be compiled or timed.
"""

import json
import math
import os
import re
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from caps_tf.layers import HeinsenRouting, HeinsenVectorRouting
from tests.networks import tiny

KEPT = Path(__file__).parent / "golden" / "program_costs.json"
BATCH = 4


def heinsen_routing():
    scores, poses = keras.Input((12,)), keras.Input((12, 4, 4))
    return keras.Model([scores, poses], HeinsenRouting(n_inp=12, n_out=5, d_cov=4, d_inp=4, d_out=4)((scores, poses)))


def vector_routing():
    vectors = keras.Input((12, 8))
    return keras.Model(vectors, HeinsenVectorRouting(12, 5, 8, 6)(vectors))


def attention(sequential):
    # Votes of one image at a time, so that the loop over images is counted too.
    return tiny("attention", num_classes=5, iterations=3, sequential_routing=sequential, votes_at_a_time=1)


NETWORKS = {
    "matrix_capsules": lambda: tiny("matrix_capsules", iterations=3),
    "heinsen_norb": lambda: tiny("heinsen_norb"),
    "heinsen_sst": lambda: tiny("heinsen_sst", num_classes=2),
    "attention_concurrent": lambda: attention(False),
    "attention_sequential": lambda: attention(True),
    "heinsen_routing": heinsen_routing,
    "vector_routing": vector_routing,
}
SLOW = ("heinsen_norb", "heinsen_sst", "attention_sequential")
"""Not built in every run of the tests: the others take the same routings."""

TOKENS = 7
"""In place of each size that a network leaves open."""


def count(name: str) -> dict[str, int]:
    """Multiplications and bytes of the forward and backward pass of a network."""
    return read_program(training_program(NETWORKS[name]()))


def training_program(model: keras.Model, batch: int = BATCH) -> str:
    """The program that XLA gets of the forward and backward pass of a network."""

    def gradients(*inputs):
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(model(tf.nest.pack_sequence_as(model.input, inputs), training=True))
            objective = sum(tf.reduce_sum(tf.square(tf.cast(output, tf.float32))) for output in outputs)
        return tape.gradient(objective, model.trainable_variables)

    shapes = [(batch, *(size or TOKENS for size in tensor.shape[1:])) for tensor in tf.nest.flatten(model.input)]
    return program_text(gradients, *shapes)


_RENAMES = {"parameter", "get-tuple-element", "reshape", "bitcast", "constant", "iota", "broadcast"}
"""Instructions that need not write an array."""


def program_text(function, *shapes: tuple[int, ...]) -> str:
    """The program that XLA gets of a function of float arrays."""
    compiled = tf.function(function, jit_compile=True, autograph=False)
    return compiled.experimental_get_compiler_ir(*map(tf.TensorSpec, shapes))(stage="hlo")


def read_program(text: str) -> dict[str, int]:
    """Multiplications and bytes written by a program, in loops as often as they run."""
    computations, entry = {}, None
    for start, name, body in re.findall(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        computations[name] = body
        entry = name if start else entry

    def cost(name):
        multiplications = written = 0
        for line in computations[name].splitlines():
            loop = re.search(r"while\(.* %(\S+)\), condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
            called = [loop[3]] if loop else re.findall(r"(?:to_apply|branch_computations)=\{?%?([\w.\-]+)", line)
            times = max(limits(loop[2]) or first_state(name, loop[1])) if loop else 1
            inner = [cost(each) for each in called]
            multiplications += _multiplications(line) + times * sum(each[0] for each in inner)
            written += _bytes_written(line) + times * sum(each[1] for each in inner)
        return multiplications, written

    def limits(condition):
        """Numbers that a loop may count up to."""
        body = computations[condition]
        found = [int(number) for number in re.findall(r"s32\[\] constant\((\d+)\)", body)]
        return found + [number for name in re.findall(r"to_apply=%?([\w.\-]+)", body) for number in limits(name)]

    def first_state(name, state):
        """The numbers that a loop starts with. A backward pass finds there how often the loop ran."""
        constants = dict(re.findall(r"%(\S+) = s32\[\] constant\((\d+)\)", computations[name]))
        values = re.search(
            rf"%{re.escape(state)} = .* tuple\((.*?)\)(?:, metadata|$)", computations[name], re.MULTILINE
        )[1]
        return [int(constants[value]) for value in re.findall(r"s32\[\] %([\w.\-]+)", values) if value in constants]

    return dict(zip(("multiplications", "bytes written"), cost(entry), strict=True))


def _bytes_written(line: str) -> int:
    found = re.search(r" = [a-z]+(\d*)\[([\d,]*)\]\S* ([\w\-]+)\(", line)
    if not found or found[3] in _RENAMES:
        return 0
    return int(found[1] or 8) // 8 * math.prod(_sizes(found[2]))


def _multiplications(line: str) -> int:
    found = re.search(
        r" = \w+\[([\d,]*)\]\S* (dot|convolution)\(\w+\[([\d,]*)\][^,]*(?:,\d+)*\S* %\S+, \w+\[([\d,]*)\]", line
    )
    if not found:
        return 0
    output, left, right = (_sizes(found[group]) for group in (1, 3, 4))
    if found[2] == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
        return math.prod(output) * math.prod(left[axis] for axis in _sizes(contracted[1] if contracted else ""))
    kernel = re.search(r"dim_labels=\w+_(\w+)->", line)[1]
    return math.prod(output) * math.prod(right) // right[kernel.index("o")]


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


if __name__ == "__main__":
    KEPT.write_text(json.dumps({name: count(name) for name in NETWORKS}, indent=2) + "\n")
    print(f"kept in {KEPT}")
