"""Counted multiplications and bytes: against counts by hand, and against what must hold whatever the sizes."""

import keras
import numpy as np
import pytest

from caps_tf import models
from caps_tf.costs import count_costs
from caps_tf.layers import AttentionClassCapsules, CapsuleStack, EMClassCapsules, HeinsenRouting, HeinsenVectorRouting


def test_dense_layers_multiply_each_input_with_each_output_and_the_first_needs_no_gradient_of_its_input():
    x = keras.Input((7,))
    model = keras.Model(x, keras.layers.Dense(3, use_bias=False)(keras.layers.Dense(5, use_bias=False)(x)))
    costs = count_costs(model, batch=2)
    assert costs.forward == 2 * (7 * 5 + 5 * 3)
    assert costs.step == 2 * (2 * 7 * 5 + 3 * 5 * 3)
    assert costs.forward_bytes == 4 * (2 * (7 + 5 + 5 + 3) + 7 * 5 + 5 * 3)
    assert costs.step_bytes == 4 * (2 * (2 * 7 + 2 * 5 + 3 * 5 + 2 * 3) + 10 * (7 * 5 + 5 * 3))


def test_a_convolution_multiplies_each_output_with_its_receptive_field():
    x = keras.Input((8, 6, 3))
    assert count_costs(keras.Model(x, keras.layers.Conv2D(5, 3, strides=2)(x)), 2).forward == 2 * 3 * 2 * 5 * 9 * 3


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_em_routing_multiplies_each_vote_in_each_iteration(iterations):
    poses, activations = keras.Input((3, 2, 4, 4, 4)), keras.Input((3, 2, 4))
    outputs = EMClassCapsules(5, iterations=iterations)((poses, activations))
    costs = count_costs(keras.Model([poses, activations], outputs), batch=2)
    votes = 2 * 5 * (3 * 2 * 4) * 16
    assert costs.votes == votes
    assert costs.forward == votes * (4 + 1 + 2 * iterations + 2 * (iterations - 1))
    # Votes are products with the network's input, whose gradient nobody needs.
    assert costs.step == 3 * costs.forward - 4 * votes


def test_heinsen_routing_with_shared_weights_counts_the_lesser_of_votes_and_moments():
    scores, poses = keras.Input((30,)), keras.Input((30, 4, 4))
    for iterations, each in ((1, 4 * 14), (3, 4 * (4 * (4 + 1 + 6 + 4)))):
        routing = HeinsenRouting(n_inp=None, n_out=5, d_cov=4, d_inp=4, d_out=4, iterations=iterations)
        costs = count_costs(keras.Model([scores, poses], routing((scores, poses))), batch=2)
        assert costs.forward == 2 * 30 * 5 * each


def test_vector_routing_sums_over_inputs_first():
    x = keras.Input((7, 6))
    model = keras.Model(x, HeinsenVectorRouting(7, 5, 6, 4, iterations=2)(x))
    i, j, d, e = 7, 5, 6, 4
    assert count_costs(model, 3).forward == 3 * (
        i * d + 2 * (i * j * d + j * d + j * d * e) + j * e * d + j * d + i * j * d
    )


SMALL = {
    "backbone": {"output_dim": 4, "kernel_size": 3, "stride": 2, "padding": 1},
    "primary_capsules": {"num_caps": 3, "caps_dim": 4, "kernel_size": 1, "stride": 1, "padding": 0},
    "capsules": [{"type": "CONV", "num_caps": 3, "caps_dim": 4, "kernel_size": 3, "stride": 1, "matrix_pose": True}],
    "class_capsules": {"caps_dim": 4, "matrix_pose": True},
}


def test_attention_routing_counts_the_steps_that_the_schedule_takes():
    def forward(iterations, sequential):
        network = models.attention_capsules((8, 8, 1), 5, SMALL, "simple", iterations, sequential)
        return count_costs(network, batch=1).forward

    # Positions x children x parents x 4 elements of a pose: convolutional, then class capsules.
    convolutional, dense = 4 * (9 * 3) * 3 * 4, (4 * 3) * 5 * 4
    without = forward(1, False)
    # Two concurrent iterations route again in the last layer alone, whose votes are the same.
    assert forward(2, False) - without == 2 * dense
    # In the third, the class capsules read what the convolutional ones have become: votes of two columns anew.
    assert forward(3, False) - without == 2 * convolutional + 2 * 2 * dense + 2 * dense
    assert forward(2, True) - without == 2 * convolutional + 2 * dense


def test_attention_class_capsules_weigh_sums_over_positions_instead_of_votes():
    poses = keras.Input((3, 2, 4, 4, 4))

    def forward(iterations):
        stack = CapsuleStack([AttentionClassCapsules(5)], iterations)
        return count_costs(keras.Model(poses, stack(poses)), batch=2).forward

    # Types x parents x elements times the 4 rows of a weight; then children x parents x elements twice an iteration.
    assert forward(1) == 2 * 4 * 5 * 16 * 4
    assert forward(2) - forward(1) == 2 * 2 * (3 * 2 * 4) * 5 * 16


@pytest.mark.parametrize(
    "network",
    [
        lambda: models.conv_capsules((16, 20, 1), 3, routing="attention"),
        lambda: models.conv_capsules((16, 20, 1), 3, routing="em"),
        lambda: models.matrix_capsules((20, 24, 1), 3, A=4, B=2, C=3, D=3),
        lambda: models.heinsen_norb((29, 33, 2), 3, channels=4, parts=4),
        lambda: models.attention_capsules((8, 8, 1), 5, SMALL, iterations=3),
        lambda: models.cnn_baseline((8, 8, 1), 3),
    ],
)
def test_costs_of_whole_networks_grow_linearly_in_the_batch(network):
    model = network()
    one, two, three = (np.array(count_costs(model, batch)) for batch in (1, 2, 3))
    assert (two > one).sum() >= 4
    np.testing.assert_array_equal(three - two, two - one)


def test_a_network_of_open_size_is_refused_with_the_name_of_the_layer():
    with pytest.raises(ValueError, match=r"layer features .*known"):
        count_costs(models.heinsen_sst(depth=2, width=3, num_classes=2), batch=1)
