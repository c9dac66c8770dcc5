"""Heinsen's routing of scored matrix capsules, as pure functions of scores and poses.

Source: Heinsen, "An Algorithm for Routing Capsules in All Domains" (2019, arXiv 1911.00792), algorithm 1. An E-step
shares each child among the parents by how well they predict its vote, a D-step divides its data into used and
ignored, an M-step computes each parent's score from the net benefit of using rather than ignoring, and fits a
Gaussian to the used votes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from caps_tf.routing.bounds import bounded_gradient, bounded_values
from caps_tf.routing.gaussian import mean_and_variance, squared_distance
from caps_tf.routing.votes import VoteWeights, pose_columns, vote_weights, votes_of_children

Tensor = Any

P_MODELS = ("gaussian", "skm")

FARTHEST = 1e30
"""Bound of a squared distance that is computed in float64 and goes on in float32."""


class HeinsenParents(NamedTuple):
    """Parent capsules as Heinsen routing leaves them.

    Attributes:
        scores: [b, j], real numbers; sigmoid(score) is how active a parent is.
        poses: [b, j, x, z], the mean of the votes each parent used.
        variances: [b, j, x, z], their variance.
        routing_weights: R of the last E-step, [b, j, i]; they sum to 1 over the parents j.
        log_likelihoods: log p of the last E-step, [b, j, i]; zero after a single iteration, which judges no vote.
        used: share of each child's data that each parent used, D_use, [b, j, i].
        ignored: share that it ignored, D_ign, [b, j, i].
    """

    scores: Tensor
    poses: Tensor
    variances: Tensor
    routing_weights: Tensor
    log_likelihoods: Tensor
    used: Tensor
    ignored: Tensor


class Votes(ABC):
    """What routing asks of the votes V_ij = mu_i W_ij + B_ij of children i for parents j, whether or not they are stored.

    Made in two steps, so that weights are laid out once where a few examples at a time are routed: the tensors that
    `lay_out` returns, or a few examples of them, make votes.

    Args:
        of_examples: tensors [b, ...].
        of_weights: tensors that all examples share.

    Attributes:
        parents: number of parents J.
    """

    parents: int | Tensor

    @abstractmethod
    def __init__(self, of_examples: Sequence[Tensor], of_weights: Sequence[Tensor]):
        pass

    @staticmethod
    @abstractmethod
    def lay_out(poses: Tensor, kernel: Tensor, bias: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What votes are made of, `of_examples` and `of_weights`.

        Args:
            poses: mu, child poses, [b, i, x, y].
            kernel: W, [i or 1, j, y, z]; 1 where all children share their weights.
            bias: B, [i or 1, j, x, z].
        """

    @classmethod
    def of(cls, poses: Tensor, kernel: Tensor, bias: Tensor) -> "Votes":
        """The votes of all examples."""
        return cls(*cls.lay_out(poses, kernel, bias))

    @abstractmethod
    def fit(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean sum_i w V and variance sum_i w (V - mean)^2 for weights w [b, j, i]: both [b, j, x, z]."""

    @abstractmethod
    def squared_distance(self, mean: Tensor, precision: Tensor) -> Tensor:
        """sum_xz precision (V - mean)^2 for mean and precision [b, j, x, z]: [b, j, i]."""


class StoredVotes(Votes):
    """Votes of children with weights of their own, as one tensor, children last.

    Attributes:
        values: [b, j, d, i]; d = x z reads a vote row by row.

    Example:
        >>> ones = np.ones
        >>> votes = StoredVotes.of(ones((2, 7, 4, 3)), ones((7, 5, 3, 2)), ones((7, 5, 4, 2)))
        >>> tuple(votes.values.shape), float(votes.values[0, 0, 0, 0])
        ((2, 5, 8, 7), 4.0)
    """

    def __init__(self, of_examples, of_weights):
        bias, by_child, *rows = of_weights
        votes = votes_of_children(of_examples, VoteWeights(by_child, tuple(rows)))
        self._add(bias, votes)

    @staticmethod
    def lay_out(poses, kernel, bias):
        by_child, rows = vote_weights(kernel)
        return pose_columns(poses), (ops.transpose(bounded_values(bias), (1, 2, 3, 0)), by_child, *rows)

    def _add(self, bias: Tensor, votes: Tensor) -> None:
        """Votes [b, j, d, i] and their bias [j, x, z, i or 1]."""
        self.parents, *self._pose_shape, children = ops.shape(bias)
        self.values = bounded_values(votes + ops.reshape(bias, (self.parents, -1, children)))

    def fit(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        moments = mean_and_variance(weights, self.values)
        moments = ops.reshape(moments, (2, -1, self.parents, *self._pose_shape))
        return moments[0], moments[1]

    def squared_distance(self, mean: Tensor, precision: Tensor) -> Tensor:
        in_a_row = (-1, self.parents, math.prod(self._pose_shape))
        return squared_distance(self.values, ops.reshape(mean, in_a_row), ops.reshape(precision, in_a_row))


class StoredSharedVotes(StoredVotes):
    """Votes of children that share their weights, as one tensor.

    Example:
        >>> ones = np.ones
        >>> votes = StoredSharedVotes.of(ones((2, 7, 4, 3)), ones((1, 5, 3, 2)), ones((1, 5, 4, 2)))
        >>> tuple(votes.values.shape), float(votes.values[0, 0, 0, 0])
        ((2, 5, 8, 7), 4.0)
    """

    def __init__(self, of_examples, of_weights):
        [poses], [bias, kernel] = of_examples, of_weights
        votes = ops.einsum("bixy,jyz->bjxzi", poses, kernel)
        b, j, x, z, i = ops.shape(votes)
        self._add(bias, ops.reshape(votes, (b, j, x * z, i)))

    @staticmethod
    def lay_out(poses, kernel, bias):
        poses, kernel, bias = map(bounded_values, (poses, kernel, bias))
        return (poses,), (ops.transpose(bias, (1, 2, 3, 0)), kernel[0])


class SharedVotes(Votes):
    """Votes of children that share their weights, never stored: V = mu W_j + B_j.

    A weighted sum of votes is the weighted sum of the poses times W_j, and a squared distance is a quadratic form in
    the pose, so that both need no more than one product of a [j, i] with an [i, moments] matrix, where `moments` are
    the elements y of each pose row x and their products y y'. The expanded squares cancel where votes agree, so they
    are carried in float64.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> arguments = rng.normal(size=(2, 30, 4, 4)), rng.normal(size=(1, 5, 4, 4)), rng.normal(size=(1, 5, 4, 4))
        >>> weights = np.full((2, 5, 30), 1 / 30)
        >>> stored, shared = (votes.of(*arguments).fit(weights)[1] for votes in (StoredSharedVotes, SharedVotes))
        >>> bool(ops.max(ops.abs(stored - shared)) < 1e-12)
        True
    """

    def __init__(self, of_examples, of_weights):
        [poses], [kernel, bias] = of_examples, of_weights
        self._dtype = keras.backend.standardize_dtype(poses.dtype)
        poses, self._kernel, self._bias = (
            bounded_gradient(ops.cast(value, "float64")) for value in (poses, kernel, bias)
        )
        self._size = poses.shape[-1]
        # Products y <= y' once: those off the diagonal stand for two.
        self._first, self._second = np.triu_indices(self._size)
        self._times = ops.convert_to_tensor(np.where(self._first == self._second, 1.0, 2.0), dtype="float64")
        products = ops.take(poses, self._first, axis=-1) * ops.take(poses, self._second, axis=-1)
        self._moments = ops.concatenate([poses, products], axis=-1)
        self.parents = ops.shape(bias)[0]

    @staticmethod
    def lay_out(poses, kernel, bias):
        poses, kernel, bias = map(bounded_values, (poses, kernel, bias))
        return (poses,), (kernel[0], bias[0])

    def fit(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        weights = ops.cast(weights, "float64")
        amount = ops.sum(weights, axis=-1)[:, :, None, None]
        # [b, j, x, y] and [b, j, x, y y']
        first, second = self._split(ops.einsum("bji,bixm->bjxm", weights, self._moments))
        shifted = ops.einsum("bjxy,jyz->bjxz", first, self._kernel)
        mean = shifted + amount * self._bias
        offset = self._bias - mean
        square = ops.einsum("bjxm,jmz->bjxz", second, self._kernel_products())
        variance = square + 2.0 * shifted * offset + amount * ops.square(offset)
        return ops.cast(mean, self._dtype), ops.cast(ops.relu(variance), self._dtype)

    def squared_distance(self, mean: Tensor, precision: Tensor) -> Tensor:
        mean, precision = ops.cast(mean, "float64"), ops.cast(precision, "float64")
        offset = self._bias - mean
        first = 2.0 * ops.einsum("bjxz,jyz->bjxy", precision * offset, self._kernel)
        second = ops.einsum("bjxz,jmz->bjxm", precision, self._kernel_products())
        constant = ops.sum(precision * ops.square(offset), axis=(-2, -1))
        form = ops.einsum("bixm,bjxm->bji", self._moments, ops.concatenate([first, second], axis=-1))
        return ops.cast(ops.clip(form + constant[..., None], 0.0, FARTHEST), self._dtype)

    def _split(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        return moments[..., : self._size], moments[..., self._size :]

    def _kernel_products(self) -> Tensor:
        """W_yz W_y'z, twice for y < y': [j, y y', z]."""
        products = ops.take(self._kernel, self._first, axis=-2) * ops.take(self._kernel, self._second, axis=-2)
        return products * self._times[:, None]


def votes_form(kernel: Tensor, bias: Tensor) -> type[Votes]:
    """The form of votes that moves fewer bytes.

    Args:
        kernel: W, [i or 1, j, y, z]; 1 where all children share their weights.
        bias: B, [i or 1, j, x, z].

    Returns:
        `SharedVotes` where weights are shared, poses are small and the backend has float64, else votes that are stored.

    Example:
        >>> votes_form(np.ones((1, 5, 4, 4)), np.ones((1, 5, 4, 4))).__name__
        'SharedVotes'
    """
    if kernel.shape[0] != 1:
        return StoredVotes
    size_in, size_out = kernel.shape[-2:]
    moments = size_in + size_in * (size_in + 1) // 2
    if bias.shape[0] == 1 and moments <= 4 * size_out and _has_float64():
        return SharedVotes
    return StoredSharedVotes


def _has_float64() -> bool:
    """JAX computes in float32 unless it was started otherwise."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return bool(jax.config.jax_enable_x64)


def heinsen_routing(
    scores: Tensor,
    votes: Votes,
    beta_use: Tensor,
    beta_ign: Tensor,
    n_iters: int = 3,
    p_model: str = "gaussian",
    eps: float = 1e-5,
) -> HeinsenParents:
    """Routes scored children to scored parents (Heinsen 2019, algorithm 1).

    With f = sigmoid, in each iteration

    - E-step: R = 1/J at first, then softmax over parents of ln f(a_out) + ln p, where for "gaussian"
      ln p = -sum (V - mu)^2 / (2 var) - 1/2 sum ln var (the constant ln 2 pi is the same for all parents), and for
      "skm" (soft k-means) ln p is the log-softmax over parents of -sum (V - mu)^2;
    - D-step: D_use = f(a_inp) R, D_ign = f(a_inp) - D_use;
    - M-step: a_out = sum_i (beta_use D_use - beta_ign D_ign), w = D_use / (sum_i D_use + eps),
      mu = sum_i w V, var = sum_i w (V - mu)^2 + eps.

    Args:
        scores: a_inp, child scores, [b, i], any real number; minus infinity hides a child.
        votes: what each child predicts for each parent.
        beta_use: benefit of using a child's data, [j or 1, i or 1].
        beta_ign: cost of ignoring it, [j or 1, i or 1].
        n_iters: iterations, at least 1.
        p_model: "gaussian" or "skm".
        eps: keeps divisions and variances above zero.

    Returns:
        `HeinsenParents`.

    Raises:
        ValueError: if `n_iters` is less than 1 or `p_model` is unknown.

    Example:
        >>> votes = StoredVotes.of(np.ones((2, 7, 4, 4)), np.ones((7, 5, 4, 4)), np.zeros((7, 5, 4, 4)))
        >>> parents = heinsen_routing(np.zeros((2, 7)), votes, np.ones((5, 7)), np.ones((5, 7)))
        >>> tuple(parents.scores.shape), tuple(parents.poses.shape)
        ((2, 5), (2, 5, 4, 4))
    """
    if n_iters < 1:
        raise ValueError(f"Heinsen routing needs at least 1 iteration, not {n_iters}")
    if p_model not in P_MODELS:
        raise ValueError(f"p_model must be one of {', '.join(P_MODELS)}, not {p_model!r}")
    active = ops.sigmoid(scores)[:, None]
    # What ignoring everything would cost; using data turns their cost into benefit.
    beta_use, beta_ign = bounded_values(beta_use), bounded_values(beta_ign)
    benefit = beta_use + beta_ign
    cost_of_ignoring_all = ops.sum(active * beta_ign, axis=-1)
    log_likelihoods = ops.zeros_like(active) + ops.zeros((1, votes.parents, 1), dtype=active.dtype)
    routing_weights = ops.ones_like(log_likelihoods) / ops.cast(votes.parents, active.dtype)
    for iteration in range(n_iters):
        # D-step: what each parent uses of each child, and ignores
        used = active * routing_weights
        # M-step: scores, means and variances
        parent_scores = ops.sum(benefit * used, axis=-1) - cost_of_ignoring_all
        mean, variance = votes.fit(bounded_gradient(used / (ops.sum(used, axis=-1, keepdims=True) + eps)))
        mean, variance = bounded_gradient(mean), bounded_gradient(variance) + eps
        if iteration < n_iters - 1:
            # E-step of the next iteration
            log_likelihoods = _log_likelihoods(votes, mean, variance, p_model)
            logits = ops.log_sigmoid(parent_scores)[..., None] + log_likelihoods
            routing_weights = ops.softmax(bounded_gradient(logits), axis=1)
    return HeinsenParents(parent_scores, mean, variance, routing_weights, log_likelihoods, used, active - used)


def _log_likelihoods(votes: Votes, mean: Tensor, variance: Tensor, p_model: str) -> Tensor:
    if p_model == "skm":
        return ops.log_softmax(-votes.squared_distance(mean, ops.ones_like(mean)), axis=1)
    log_volume = 0.5 * ops.sum(ops.log(variance), axis=(-2, -1))
    return -votes.squared_distance(mean, 0.5 / variance) - log_volume[..., None]
