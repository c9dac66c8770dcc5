"""Routing of vectors in sequences, as pure functions of tensors.

Source: Heinsen, "An Algorithm for Routing Vectors in Sequences" (2022, arXiv 2211.11754). Each output vector uses or
ignores each input vector, gains or pays for it, and predicts the inputs back; inputs go where they are predicted best.

Every tensor may have any number of leading axes, [..., i, d] for i input vectors of d elements and [..., j, e] for
j output vectors of e elements.
"""

from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from caps_tf.routing.bounds import bounded, bounded_gradient, bounded_values
from caps_tf.tensors import Tensor

IGNORED_SCORE = -1e30
"""Score of an input that an output ignores: finite, so that an input which all outputs ignore gives no NaN."""


class RoutedVectors(NamedTuple):
    """Output vectors as routing leaves them.

    Attributes:
        vectors: [..., j, e].
        credit: phi, [..., i, j], what each input vector adds to each output vector; zero where it is ignored.
        routing_weights: R, [..., i, j], how each input vector shared itself among the outputs in the last iteration.
        scores: a, [..., i]; f(a) = sigmoid(a) is how active an input vector is.
    """

    vectors: Tensor
    credit: Tensor
    routing_weights: Tensor
    scores: Tensor


class VectorRoutingWeights(NamedTuple):
    """Parameters of the efficient form, under the paper's names.

    Attributes:
        W_A: [i, d], or [1, d] if the number of inputs varies; activation of an input.
        B_A: [i] or [1].
        W_F1: [j, d], and
        W_F2: [d, e], and
        B_F2: [j, e]; what an input proposes as an output.
        W_G1: [e, d], and
        W_G2: [j, d], and
        B_G2: [j, d]; what an output predicts for the inputs.
        W_S: [i, j] or [1, j], and
        B_S: [i, j] or [1, j]; score of a prediction.
    """

    W_A: Tensor
    B_A: Tensor
    W_F1: Tensor
    W_F2: Tensor
    B_F2: Tensor
    W_G1: Tensor
    W_G2: Tensor
    B_G2: Tensor
    W_S: Tensor
    B_S: Tensor


def normalize_vectors(vectors: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Layer normalisation N without scale and shift; vectors of a single element stay as they are.

    Args:
        vectors: [..., e].
        epsilon: added to the variance.

    Returns:
        [..., e], with mean 0 and variance near 1 along the last axis.

    Example:
        >>> np.array(normalize_vectors(np.array([[1.0, 3.0]]))).round(3)
        array([[-1.,  1.]])
    """
    if vectors.shape[-1] == 1:
        return vectors
    # Not ops.mean: on PyTorch it computes in float32.
    centred = vectors - ops.sum(vectors, axis=-1, keepdims=True) / vectors.shape[-1]
    variance = ops.sum(ops.square(centred), axis=-1, keepdims=True) / vectors.shape[-1]
    return centred * ops.rsqrt(variance + epsilon)


def route_vectors(
    scores: Tensor,
    combine: Callable[[Tensor], Tensor],
    judge: Callable[[Tensor], Tensor],
    beta_use: Tensor,
    beta_ign: Tensor,
    iterations: int = 2,
    mask: Tensor | None = None,
) -> RoutedVectors:
    """Routes by maximising "bang per bit", whatever proposes outputs and scores predictions (Heinsen 2022, alg. 1).

    Each iteration shares every input among the outputs, R = softmax_j S (equally at first), splits its activation
    into a used and an ignored part, D_use = f(a) R and D_ign = f(a) - D_use, takes the net benefit of both,
    phi = beta_use D_use - beta_ign D_ign, and combines the proposals, x_out = sum_i phi V.

    Args:
        scores: a, [..., i], any real number.
        combine: gives the output vectors [..., j, e] for a credit phi [..., i, j].
        judge: gives the scores S [..., i, j] of what output vectors [..., j, e] predict.
        beta_use: net benefit of using an input, [..., i, j].
        beta_ign: net cost of ignoring an input, [..., i, j].
        iterations: number of iterations, at least 1.
        mask: bool, [..., i, j], true where an output ignores an input. An input that all outputs ignore takes no part;
            an output that ignores all inputs is made from a credit of zero.

    Returns:
        `RoutedVectors`.

    Raises:
        ValueError: if `iterations` is less than 1.

    Example:
        >>> proposals = np.eye(3)                                    # each input proposes a vector of its own
        >>> routed = route_vectors(np.zeros(3), lambda phi: ops.einsum("ij,id->jd", phi, proposals),
        ...                        lambda vectors: ops.einsum("id,jd->ij", proposals, vectors),
        ...                        beta_use=np.ones((3, 2)), beta_ign=np.zeros((3, 2)))
        >>> np.array(routed.vectors)
        array([[0.25, 0.25, 0.25],
               [0.25, 0.25, 0.25]])
    """
    if iterations < 1:
        raise ValueError(f"vector routing needs at least 1 iteration, not {iterations}")
    scores, beta_use, beta_ign = bounded_gradient(scores), bounded_values(beta_use), bounded_values(beta_ign)
    # Ignored without benefit and without cost, an input leaves no credit, whatever its routing weights are.
    attended = None if mask is None else ops.cast(ops.logical_not(mask), beta_use.dtype)
    if attended is not None:
        beta_use, beta_ign = beta_use * attended, beta_ign * attended
    activations, beta_both = ops.sigmoid(scores)[..., None], beta_use + beta_ign
    if attended is None:
        routing_weights = ops.ones_like(beta_both[..., :1, :]) / beta_both.shape[-1]
    else:
        goes_to = ops.sum(attended, axis=-1, keepdims=True)
        routing_weights = attended / ops.maximum(goes_to, ops.ones_like(goes_to))

    def credit_of(routing_weights: Tensor) -> Tensor:
        # The same as beta_use D_use - beta_ign D_ign, in fewer passes over the largest tensors.
        return activations * (routing_weights * beta_both - beta_ign)

    # D-step and M-step of the first iteration, whose routing weights are equal
    credit = credit_of(routing_weights)
    vectors = combine(credit)
    for _ in range(iterations - 1):
        # E-step
        judgements = bounded_gradient(judge(vectors))
        if mask is not None:
            judgements = ops.where(mask, IGNORED_SCORE, judgements)
        routing_weights = ops.softmax(judgements, axis=-1)
        # D-step and M-step
        credit = credit_of(routing_weights)
        vectors = combine(credit)
    if attended is not None:
        routing_weights = routing_weights * attended
    return RoutedVectors(vectors, credit, ops.broadcast_to(routing_weights, ops.shape(credit)), scores)


def efficient_vector_routing(
    x: Tensor,
    weights: VectorRoutingWeights,
    beta_use: Tensor,
    beta_ign: Tensor,
    iterations: int = 2,
    normalize: bool = True,
    memory_efficient: bool = True,
    mask: Tensor | None = None,
) -> RoutedVectors:
    """Routes vectors with the factored networks of Heinsen 2022, section 4, which never meet a proposal V_ij.

    With x_s = x / sqrt(i): a_i = sum_d x_s W_A + B_A and V_ij = ((x_s W_F1_j) W_F2) + B_F2_j, so that
    sum_i phi_ij V_ij = ((sum_i phi_ij x_s) W_F1_j) W_F2 + (sum_i phi_ij) B_F2_j: the sum over inputs comes first, as
    one matrix product. The score of input i with output j is log sigmoid(<x_i, prediction_j> W_S + B_S), with
    prediction_j = (N(x_out_j) W_G1) W_G2_j + B_G2_j. Memory grows with i (d + j) + j (d + e), each size linearly.

    Args:
        x: input vectors, [..., i, d], float.
        weights: parameters.
        beta_use: net benefit of using an input, [..., i, j].
        beta_ign: net cost of ignoring an input, [..., i, j].
        iterations: number of iterations, at least 1.
        normalize: whether the result is N(x_out); inside the iterations N is always applied.
        memory_efficient: false makes all proposals V [..., i, j, e], as the paper's general form does. The result is
            the same up to rounding; for comparison only.
        mask: bool, [..., i, j], true where an output ignores an input.

    Returns:
        `RoutedVectors` with vectors [..., j, e].

    Raises:
        ValueError: if `iterations` is less than 1.

    Example:
        >>> i, j, d, e = 7, 5, 6, 4
        >>> shapes = (i, d), (i,), (j, d), (d, e), (j, e), (e, d), (j, d), (j, d), (i, j), (i, j)
        >>> weights = VectorRoutingWeights(*map(np.random.default_rng(0).normal, [0.0] * 10, [1.0] * 10, shapes))
        >>> routed = efficient_vector_routing(np.ones((2, i, d)), weights, np.ones((i, j)), np.ones((i, j)))
        >>> tuple(routed.vectors.shape), tuple(routed.credit.shape)
        ((2, 5, 4), (2, 7, 5))
    """
    x, weights = bounded_values(x), VectorRoutingWeights(*map(bounded_values, weights))
    scale = ops.cast(ops.shape(x)[-2], x.dtype) ** -0.5
    # Not an einsum: it would be a matrix product for each input vector, and each with a single row.
    scores = scale * ops.sum(x * weights.W_A, axis=-1) + weights.B_A

    proposals = None
    if not memory_efficient:
        proposals = ops.einsum("...id,jd,de->...ije", scale * x, weights.W_F1, weights.W_F2) + weights.B_F2
        proposals = bounded(proposals)

    def judge(vectors: Tensor) -> Tensor:
        predictions = ops.einsum("...je,ed->...jd", normalize_vectors(vectors), weights.W_G1)
        predictions = bounded(predictions * weights.W_G2 + weights.B_G2)
        return ops.log_sigmoid(ops.einsum("...id,...jd->...ij", x, predictions) * weights.W_S + weights.B_S)

    def combine(credit: Tensor) -> Tensor:
        if proposals is not None:
            return bounded(ops.einsum("...ij,...ije->...je", credit, proposals))
        inputs = bounded(scale * ops.einsum("...ij,...id->...jd", credit, x))
        biases = ops.sum(credit, axis=-2)[..., None] * weights.B_F2
        return bounded(ops.einsum("...jd,de->...je", inputs * weights.W_F1, weights.W_F2) + biases)

    routed = route_vectors(scores, combine, judge, beta_use, beta_ign, iterations, mask)
    return routed._replace(vectors=normalize_vectors(routed.vectors)) if normalize else routed
