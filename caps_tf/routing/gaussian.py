"""The two passes over all votes of routing that fits a Gaussian to each parent's votes.

EM routing (Hinton et al. 2018) and Heinsen's routing (2019) both alternate between the weighted mean and variance of the
votes that a parent got, and the distance of each vote from the mean in units of that variance.

Children come last, so that each pass runs along hundreds of them. The gradients are written out because the gradient of
an einsum is another einsum: each would lay out a tensor as large as the votes, where a compiler makes one loop of what
follows.
"""

from keras import ops

from caps_tf.routing.bounds import clipped
from caps_tf.routing.hand_written_gradient import Gradient, with_gradient
from caps_tf.tensors import Tensor


def mean_and_variance(share: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean sum_c share V and variance sum_c share (V - mean)^2 of each parent's votes.

    The gradients that arrive, and the one of `share`, are clipped to +-`bounds.LARGEST`.

    Args:
        share: [n, j, c], how much of a parent's data is of each child; sums to 1 over c, or to less.
        votes: [n, j, d, c].

    Returns:
        Means and variances, both [n, j, d].

    Example:
        >>> votes = np.array([1.0, 3.0]).reshape(1, 1, 1, 2)
        >>> mean, variance = mean_and_variance(np.full((1, 1, 2), 0.5), votes)
        >>> float(ops.squeeze(mean)), float(ops.squeeze(variance))
        (2.0, 1.0)
    """
    moments = _mean_and_variance(ops.convert_to_tensor(share), ops.convert_to_tensor(votes))
    return moments[0], moments[1]


def squared_distance(votes: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """sum_d precision (V - mean)^2, how far each vote lies from its parent.

    Args:
        votes: [n, j, d, c].
        mean: [n, j, d].
        precision: [n, j, d], what a squared difference counts.

    Returns:
        [n, j, c].

    Example:
        >>> votes = np.array([1.0, 3.0]).reshape(1, 1, 1, 2)
        >>> np.array(squared_distance(votes, np.full((1, 1, 1), 2.0), np.full((1, 1, 1), 0.5))).ravel()
        array([0.5, 0.5])
    """
    return _squared_distance(*map(ops.convert_to_tensor, (votes, mean, precision)))


@with_gradient
def _mean_and_variance(share: Tensor, votes: Tensor) -> tuple[Tensor, Gradient]:
    """sum_c share V and sum_c share (V - mean)^2 for share [n, j, c] and votes [n, j, d, c]: [2, n, j, d]."""
    mean = ops.einsum("njc,njdc->njd", share, votes)
    deviation = votes - mean[..., None]
    variance = ops.einsum("njc,njdc->njd", share, ops.square(deviation))

    def gradient(arriving):
        arriving = clipped(arriving)
        to_mean, to_variance = arriving[0], arriving[1]
        # Zero but for rounding where shares sum to 1; they sum to a little less, or to 0 where no child is active. Summed
        # from the deviations: as mean (1 - sum share) it would be all rounding.
        to_mean = to_mean - 2.0 * to_variance * ops.einsum("njc,njdc->njd", share, deviation)
        to_share = ops.einsum("njdc,njd->njc", votes, to_mean)
        to_share = to_share + ops.einsum("njdc,njd->njc", ops.square(deviation), to_variance)
        return clipped(to_share), share[:, :, None] * (to_mean[..., None] + deviation * (2.0 * to_variance)[..., None])

    return ops.stack((mean, variance)), gradient


@with_gradient
def _squared_distance(votes: Tensor, mean: Tensor, precision: Tensor) -> tuple[Tensor, Gradient]:
    """sum_d precision (V - mean)^2 for votes [n, j, d, c], mean and precision [n, j, d]: [n, j, c]."""
    deviation = votes - mean[..., None]
    distance = ops.einsum("njdc,njd->njc", ops.square(deviation), precision)

    def gradient(arriving):
        to_mean = -2.0 * precision * ops.einsum("njc,njdc->njd", arriving, deviation)
        to_precision = ops.einsum("njc,njdc->njd", arriving, ops.square(deviation))
        return arriving[:, :, None] * (deviation * (2.0 * precision)[..., None]), to_mean, to_precision

    return distance, gradient
