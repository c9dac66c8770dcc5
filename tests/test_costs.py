"""Counted multiplications and bytes: against counts by hand, and against what must hold whatever the sizes."""

import keras
import numpy as np
import pytest

from caps_tf.costs import count_costs
from caps_tf.layers import (
    AttentionClassCapsules,
    CapsuleStack,
    EMClassCapsules,
    HeinsenRouting,
    HeinsenVectorRouting,
    SelfRoutingClassCapsules,
    SelfRoutingConvCapsules,
    VBClassCapsules,
)
from tests.networks import tiny


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


def test_full_covariances_multiply_outer_products_triangular_solves_and_cholesky():
    poses, activations = keras.Input((3, 2, 4, 2, 2)), keras.Input((3, 2, 4))
    outputs = VBClassCapsules(5, iterations=2, covariance="full")((poses, activations))
    costs = count_costs(keras.Model([poses, activations], outputs), batch=2)
    parents = 2 * 5
    pairs = parents * (3 * 2 * 4)
    # Votes of 4 elements, each of 2 products. Twice: shares in mean and scatter, 4x4 outer products of votes and means,
    # and the 6 + 4 + 6 divisions, squares and other products of a Cholesky factor. Once: 4 + 3 + 2 + 1 of a solve,
    # and 4 squares.
    assert costs.forward == pairs * 4 * 2 + 2 * (pairs * (4 + 4 + 16) + parents * (16 + 16)) + pairs * (10 + 4)
    diagonal = VBClassCapsules(5, iterations=2)((poses, activations))
    assert count_costs(keras.Model([poses, activations], diagonal), 2).forward == pairs * 4 * (2 + 1 + 4 + 2)


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


def test_attention_routing_counts_the_steps_that_the_schedule_takes():
    def forward(iterations, sequential):
        network = tiny("attention", num_classes=5, iterations=iterations, sequential_routing=sequential)
        return count_costs(network, batch=1).forward

    # Positions x children x parents x 4 elements of a pose: convolutional, then class capsules.
    convolutional, dense = 4 * (9 * 3) * 3 * 4, (4 * 3) * 5 * 4
    without = forward(1, False)
    # Two concurrent iterations route again in the last layer alone, whose votes are the same.
    assert forward(2, False) - without == 2 * dense
    # In the third, the class capsules read what the convolutional ones have become: votes of two columns anew.
    assert forward(3, False) - without == 2 * convolutional + 2 * 2 * dense + 2 * dense
    assert forward(2, True) - without == 2 * convolutional + 2 * dense


def test_self_routing_multiplies_a_pose_for_its_choice_for_its_weight_and_for_its_vote():
    poses, activations = keras.Input((3, 4, 2, 5)), keras.Input((3, 4, 2))

    def costs(layer):
        return count_costs(keras.Model([poses, activations], layer((poses, activations))), batch=2)

    # Positions x children x parents times 5 elements twice, and 5 x 7 in each vote.
    pairs = 2 * (1 * 2) * (3 * 3 * 2) * 6
    convolutional = costs(SelfRoutingConvCapsules(6, 3, pose_shape=(7,)))
    assert (convolutional.forward, convolutional.votes) == (pairs * (2 * 5 + 5 * 7), pairs * 7)
    # Weights that positions share act on sums over them: of each type one.
    pairs = 2 * (3 * 4 * 2) * 6
    assert costs(SelfRoutingClassCapsules(6)).forward == pairs * 2 * 5 + 2 * 2 * 6 * 5 * 5
    assert costs(SelfRoutingClassCapsules(6, share_positions=False)).forward == pairs * (2 * 5 + 5 * 5)
    assert costs(SelfRoutingClassCapsules(6, with_poses=False)).forward == pairs * 5


def test_attention_class_capsules_weigh_sums_over_positions_instead_of_votes():
    poses = keras.Input((3, 2, 4, 4, 4))

    def forward(iterations):
        stack = CapsuleStack([AttentionClassCapsules(5)], iterations)
        return count_costs(keras.Model(poses, stack(poses)), batch=2).forward

    # Types x parents x elements times the 4 rows of a weight; then children x parents x elements twice an iteration.
    assert forward(1) == 2 * 4 * 5 * 16 * 4
    assert forward(2) - forward(1) == 2 * 2 * (3 * 2 * 4) * 5 * 16


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("conv_capsules", {"routing": "attention"}),
        ("conv_capsules", {"routing": "em"}),
        ("matrix_capsules", {}),
        ("heinsen_norb", {}),
        ("attention", {"backbone": "resnet", "iterations": 3}),
        ("self_routing", {}),
        ("cnn_baseline", {}),
    ],
)
def test_costs_of_whole_networks_grow_linearly_in_the_batch(name, arguments):
    model = tiny(name, **arguments)
    one, two, three = (np.array(count_costs(model, batch)) for batch in (1, 2, 3))
    assert (two > one).sum() >= 4
    np.testing.assert_array_equal(three - two, two - one)


def test_a_network_of_open_size_is_refused_with_the_name_of_the_layer():
    with pytest.raises(ValueError, match=r"layer features .*known"):
        count_costs(tiny("heinsen_sst"), batch=1)
