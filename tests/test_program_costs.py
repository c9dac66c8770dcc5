"""No change makes a training step multiply or write more, or less, without somebody noticing."""

import json

import keras
import pytest

if keras.config.backend() != "tensorflow":
    pytest.skip("the programs that are counted are TensorFlow's", allow_module_level=True)

import tensorflow as tf

from tests.program_costs import KEPT, NETWORKS, SLOW, count, program_text, read_program

TOLERANCE = 0.03
MARKS = {"matrix_capsules": pytest.mark.campaign} | dict.fromkeys(SLOW, pytest.mark.slow)
"""What XLA compiles long waits."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in NETWORKS])
def test_a_training_step_costs_what_it_did(name):
    kept, found = json.loads(KEPT.read_text())[name], count(name)
    changed = [
        f"{what} {'rose' if found[what] > before else 'fell'} from {before:,} to {found[what]:,}"
        for what, before in kept.items()
        if abs(found[what] - before) > TOLERANCE * before
    ]
    assert not changed, (
        f"a training step of {name} costs something else than before: {'; '.join(changed)}. If that is what you want, "
        "accept it with `python -m tests.program_costs` and say why where you commit it"
    )


def program(function, *shapes):
    return read_program(program_text(function, *shapes))


def test_products_and_convolutions_count_their_multiplications():
    assert program(lambda x, y: x @ y, (8, 4), (4, 16))["multiplications"] == 8 * 4 * 16
    batched = program(lambda x, y: tf.einsum("bxy,byz->bxz", x, y), (3, 8, 4), (3, 4, 16))
    assert batched["multiplications"] == 3 * 8 * 4 * 16
    convolution = program(lambda x, w: tf.nn.conv2d(x, w, strides=2, padding="VALID"), (2, 9, 9, 3), (3, 3, 3, 5))
    assert convolution["multiplications"] == 2 * 4 * 4 * 5 * 3 * 3 * 3


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x, w):
        return tf.while_loop(lambda i, _: i < 7, lambda i, value: (i + 1, value @ w), (0, x), maximum_iterations=7)[1]

    assert program(loop, (8, 8), (8, 8))["multiplications"] == 7 * 8 * 8 * 8


def test_an_array_that_is_newly_stored_is_noticed():
    one, two = program(lambda x: tf.exp(x), (1000,)), program(lambda x: tf.exp(x) * tf.sin(x), (1000,))
    assert one["bytes written"] == 4 * 1000
    assert two["bytes written"] == 3 * 4 * 1000
