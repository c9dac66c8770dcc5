"""Self-routing: each child decides by its own pose which parent gets how much of it, without agreement or iterations.

Source: Hahn, Pyeon, Kim, "Self-Routing Capsule Networks" (NeurIPS 2019). Child i has the pose u_i, a vector, and the
activation a_i; with weights W_route and W_pose parent j gets

    c_ij   = softmax_j(W_route,ij u_i + b_ij)                what child i gives to parent j; sums to 1 over the parents
    v_ij   = W_pose,ij u_i                                   its vote, a matrix times a vector
    pose_j = sum_i c_ij a_i v_ij / sum_i c_ij a_i            mean vote
    a_j    = sum_i c_ij a_i / sum_i a_i                      sums to 1 over the parents at a position

The biases b are those of the published code. Departures from it: a sum of activations of zero divides nothing there and
gives NaN; here children that are all inactive count alike. Sums of activations are taken in logarithms, so that parents
of which hardly any child knows have exact poses and finite log-activations.

The sum over children goes through W_pose, sum_i W_pose,ij (w_ij u_i), as one matrix product for each parent. Its one factor
is the children's poses, weighed anew for each parent: where each child has weights of its own, as in convolutional capsules,
that takes as much room as votes of the children's size. Positions that share their weights are summed up before the product,
and only this saves the room: class capsules do.
"""

from keras import ops

from caps_tf.routing.bounds import bounded, bounded_gradient, bounded_values
from caps_tf.tensors import Tensor

INACTIVE = 1e-12
"""Added to each child's activation: what a child of activation zero counts."""


def log_routing_weights(poses: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """ln c, what each child gives to each parent.

    Args:
        poses: children's, [n, k, i, d], with k positions that share their weights, 1 if none do.
        kernel: W_route, [i, j, d].
        bias: b, [i, j].

    Returns:
        [n, k, i, j]; exp of it sums to 1 over j.

    Example:
        >>> found = log_routing_weights(np.ones((2, 1, 9, 16)), np.zeros((9, 4, 16)), np.zeros((9, 4)))
        >>> tuple(found.shape), float(np.exp(found)[0, 0, 0, 0])
        ((2, 1, 9, 4), 0.25)
    """
    poses, kernel, bias = map(bounded_values, (poses, kernel, bias))
    return ops.log_softmax(bounded(ops.einsum("nkid,ijd->nkij", poses, kernel) + bias), axis=-1)


def self_routing(
    poses: Tensor, activations: Tensor, routing_kernel: Tensor, bias: Tensor, pose_kernel: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Routes the children of each parent position.

    Args:
        poses: children's, [n, k, i, d], with k positions that share their weights, 1 if none do. Float32 or float64,
            as all.
        activations: children's, [n, k, i], not negative. Their gradient is within `bounds.LARGEST`, at zeros too.
        routing_kernel: W_route, [i, j, d].
        bias: b, [i, j].
        pose_kernel: W_pose, [j, i, d, e]; None for parents without poses.

    Returns:
        Parents' poses [n, j, e], unless there is no `pose_kernel`, and the logarithm of their activations [n, j].

    Example:
        >>> poses, activations = np.ones((2, 1, 9, 16)), np.ones((2, 1, 9))
        >>> weights = np.zeros((9, 4, 16)), np.zeros((9, 4)), np.ones((4, 9, 16, 3))
        >>> parents, log_activations = self_routing(poses, activations, *weights)
        >>> tuple(parents.shape), round(float(parents[0, 0, 0]), 6), round(float(np.exp(log_activations)[0, 0]), 6)
        ((2, 4, 3), 16.0, 0.25)
    """
    # The gradient is bounded on both sides of the logarithm, whose own is 1 / INACTIVE where nothing is active.
    present = bounded_gradient(ops.log(ops.maximum(bounded_gradient(activations), 0.0) + INACTIVE))
    present = present - ops.logsumexp(present, axis=(1, 2), keepdims=True)
    given = log_routing_weights(poses, routing_kernel, bias) + present[..., None]  # ln(c_ij a_i / sum_i a_i)
    log_activations = ops.logsumexp(given, axis=(1, 2))
    if pose_kernel is None:
        return (log_activations,)
    weights = ops.exp(given - log_activations[:, None, None])
    return _mean_votes(bounded_values(poses), weights, bounded_values(pose_kernel)), log_activations


def _mean_votes(poses: Tensor, weights: Tensor, kernel: Tensor) -> Tensor:
    """[n, k, i, d], weights [n, k, i, j] that sum to 1 over k and i, and [j, i, d, e] to [n, j, e]."""
    if poses.shape[1] == 1:  # nothing is summed up: a product in the layout of the one below
        weighed = ops.transpose(weights[:, 0], (2, 0, 1))[..., None] * poses[:, 0]
    else:
        weighed = ops.einsum("nkij,nkid->jnid", weights, poses)
    return bounded(ops.einsum("jnid,jide->nje", weighed, kernel))
