"""The votes that Heinsen's routing asks of, in three forms: stored, stored for shared weights, and never stored.

V_ij = mu_i W_ij + B_ij is what child i predicts for parent j. A form holds what votes are made of: something of each
example, and something that all examples share, laid out once, so that a few examples at a time can be routed.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self, cast

import numpy as np
from keras import ops

from caps_tf.routing.bounds import bounded_gradient, bounded_values
from caps_tf.routing.gaussian import mean_and_variance, squared_distance
from caps_tf.routing.votes import VoteWeights, pose_columns, vote_weights, votes_of_children
from caps_tf.tensors import Tensor

FARTHEST = 1e15
"""Bound of what a quadratic form multiplies with a pose or its square, and the root of its largest value."""


class Shared(NamedTuple):
    """What the votes of all examples share.

    Attributes:
        kernel: W, laid out as the form of votes wants it.
        bias: B, likewise, parents first.
    """

    kernel: Tensor | VoteWeights
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Votes(ABC):
    """What routing asks of votes, whether or not they are stored. Made by `of`.

    Attributes:
        poses: child poses as the form lays them out, tensors [b, ...] or a tuple of them.
        shared: weights and bias.
    """

    poses: Any
    shared: Shared

    @classmethod
    @abstractmethod
    def of(cls, poses: Tensor, kernel: Tensor, bias: Tensor) -> Self:
        """Lays out what votes are made of.

        Args:
            poses: mu, child poses, [b, i, x, y].
            kernel: W, [i or 1, j, y, z]; 1 where all children share their weights.
            bias: B, [i or 1, j, x, z].
        """

    def of_examples(self, poses: Any, shared: Shared) -> Self:
        """The votes of other examples, or of some of them, from `poses` and `shared` as these votes have them."""
        return replace(self, poses=poses, shared=shared)

    def about_mean_of(self, active: Tensor) -> Self:
        """The same votes, computed so that rounding errors are relative to how far poses lie from their mean.

        Args:
            active: how active each child is, [b, i]; the mean counts a child as much as that.
        """
        return self

    @property
    def parents(self) -> int | Tensor:
        """Number of parents J: in every form they are the first axis of the bias."""
        return ops.shape(self.shared.bias)[0]

    @abstractmethod
    def fit(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean sum_i w V and variance sum_i w (V - mean)^2 for weights w [b, j, i]: both [b, j, x, z].

        The gradients that arrive, and the one of the weights, are clipped to +-`bounds.LARGEST`.
        """

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

    @classmethod
    def of(cls, poses: Tensor, kernel: Tensor, bias: Tensor) -> Self:
        return cls(pose_columns(poses), Shared(vote_weights(kernel), _children_last(bounded_values(bias))))

    @cached_property
    def values(self) -> Tensor:
        j, x, z, i = ops.shape(self.shared.bias)
        return bounded_values(self._without_bias() + ops.reshape(self.shared.bias, (j, x * z, i)))

    def _without_bias(self) -> Tensor:
        """mu W, [b, j, d, i]."""
        return votes_of_children(self.poses, cast(VoteWeights, self.shared.kernel))  # as `of` laid it out

    def fit(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        matrices = (-1, *ops.shape(self.shared.bias)[:3])
        mean, variance = mean_and_variance(weights, self.values)
        return ops.reshape(mean, matrices), ops.reshape(variance, matrices)

    def squared_distance(self, mean: Tensor, precision: Tensor) -> Tensor:
        j, *pose = ops.shape(self.shared.bias)[:3]
        in_a_row = (-1, j, math.prod(pose))
        return squared_distance(self.values, ops.reshape(mean, in_a_row), ops.reshape(precision, in_a_row))


class StoredSharedVotes(StoredVotes):
    """Votes of children that share their weights, as one tensor.

    Example:
        >>> ones = np.ones
        >>> votes = StoredSharedVotes.of(ones((2, 7, 4, 3)), ones((1, 5, 3, 2)), ones((1, 5, 4, 2)))
        >>> tuple(votes.values.shape), float(votes.values[0, 0, 0, 0])
        ((2, 5, 8, 7), 4.0)
    """

    @classmethod
    def of(cls, poses: Tensor, kernel: Tensor, bias: Tensor) -> Self:
        poses, kernel, bias = map(bounded_values, (poses, kernel, bias))
        return cls(poses, Shared(kernel[0], _children_last(bias)))

    def _without_bias(self) -> Tensor:
        votes = ops.einsum("bixy,jyz->bjxzi", self.poses, self.shared.kernel)
        b, j, x, z, i = ops.shape(votes)
        return ops.reshape(votes, (b, j, x * z, i))


@dataclass(frozen=True, eq=False)
class SharedVotes(Votes):
    """Votes of children that share their weights, never stored: V = mu W_j + B_j.

    A weighted sum of votes is the weighted sum of the poses times W_j, and a squared distance is a quadratic form in
    the pose, so that both need no more than one product of a [j, i] with an [i, moments] matrix, where `moments` are
    the elements y of each pose row x and their products y y'. The expanded squares cancel where votes agree, so poses
    are taken about a centre: V = (mu - centre) W_j + (centre W_j + B_j). What cancels is then as small as the poses'
    own spread, and single precision is enough.

    Attributes:
        centre: [b, 1, x, y], or zero.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> arguments = rng.normal(size=(2, 30, 4, 4)), rng.normal(size=(1, 5, 4, 4)), rng.normal(size=(1, 5, 4, 4))
        >>> weights = np.full((2, 5, 30), 1 / 30)
        >>> stored, shared = (votes.of(*arguments).fit(weights)[1] for votes in (StoredSharedVotes, SharedVotes))
        >>> bool(ops.max(ops.abs(stored - shared)) < 1e-5)
        True
    """

    centre: Tensor | float = 0.0

    @classmethod
    def of(cls, poses: Tensor, kernel: Tensor, bias: Tensor) -> Self:
        poses, kernel, bias = map(bounded_values, (poses, kernel, bias))
        return cls(poses, Shared(kernel[0], bias[0]))

    def about_mean_of(self, active: Tensor) -> Self:
        total = ops.sum(active, axis=-1)[:, None, None, None]
        mean = ops.einsum("bi,bixy->bxy", active, self.poses)[:, None] / ops.maximum(total, 1e-30)
        # The votes are the same about any centre, so its gradient is zero.
        return replace(self, centre=ops.stop_gradient(mean))

    def fit(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        weights = bounded_gradient(weights)
        amount = ops.sum(weights, axis=-1)[:, :, None, None]
        moments = ops.einsum("bji,bixm->bjxm", weights, self._moments)
        first, second = moments[..., : self._size], moments[..., self._size :]  # [b, j, x, y] and [b, j, x, y y']
        shifted = ops.einsum("bjxy,jyz->bjxz", first, self._kernel)
        offset = (1.0 - amount) * self._bias - shifted  # bias - mean, without rounding the mean
        square = ops.einsum("bjxm,jmz->bjxz", second, self._kernel_products)
        variance = ops.relu(square + 2.0 * shifted * offset + amount * ops.square(offset))
        return bounded_gradient(shifted + amount * self._bias), bounded_gradient(variance)

    def squared_distance(self, mean: Tensor, precision: Tensor) -> Tensor:
        offset = _within(self._bias - mean)
        first = 2.0 * ops.einsum("bjxz,jyz->bjxy", precision * offset, self._kernel)
        second = ops.einsum("bjxz,jmz->bjxm", precision, self._kernel_products)
        constant = ops.sum(precision * ops.square(offset), axis=(-2, -1))
        form = ops.einsum("bixm,bjxm->bji", self._moments, _within(ops.concatenate([first, second], axis=-1)))
        return ops.clip(form + constant[..., None], 0.0, FARTHEST**2)

    @property
    def _size(self) -> int:
        return self.poses.shape[-1]

    @property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Products y <= y' once: those off the diagonal stand for two."""
        return np.triu_indices(self._size)

    @cached_property
    def _moments(self) -> Tensor:
        """The elements y of each pose row about the centre, and their products y y': [b, i, x, moments]."""
        poses, (first, second) = bounded_gradient(self.poses - self.centre), self._pairs
        products = ops.take(poses, first, axis=-1) * ops.take(poses, second, axis=-1)
        return ops.concatenate([poses, products], axis=-1)

    @cached_property
    def _kernel(self) -> Tensor:
        return bounded_gradient(cast(Tensor, self.shared.kernel))  # as `of` laid it out

    @cached_property
    def _bias(self) -> Tensor:
        """The vote of a pose at the centre, [b or 1, j, x, z]."""
        centre = self.centre + ops.zeros_like(self.poses[:1, :1])
        return bounded_gradient(self.shared.bias) + ops.einsum("bixy,jyz->bjxz", centre, self._kernel)

    @cached_property
    def _kernel_products(self) -> Tensor:
        """W_yz W_y'z, twice for y < y': [j, y y', z]."""
        first, second = self._pairs
        times = ops.convert_to_tensor(np.where(first == second, 1.0, 2.0), dtype=self._kernel.dtype)
        return ops.take(self._kernel, first, axis=-2) * ops.take(self._kernel, second, axis=-2) * times[:, None]


def votes_form(kernel: Tensor, bias: Tensor) -> type[Votes]:
    """The form of votes that moves fewer bytes.

    Args:
        kernel: W, [i or 1, j, y, z]; 1 where all children share their weights.
        bias: B, [i or 1, j, x, z].

    Returns:
        `SharedVotes` where weights are shared and poses are small, else votes that are stored.

    Example:
        >>> votes_form(np.ones((1, 5, 4, 4)), np.ones((1, 5, 4, 4))).__name__
        'SharedVotes'
    """
    if kernel.shape[0] != 1:
        return StoredVotes
    # A rule of thumb: a product over the moments of a pose row replaces passes over the elements of a vote's row, of
    # which there are several an iteration.
    size_in, size_out = kernel.shape[-2:]
    moments = size_in + size_in * (size_in + 1) // 2
    if bias.shape[0] == 1 and moments <= 4 * size_out:
        return SharedVotes
    return StoredSharedVotes


def _children_last(bias: Tensor) -> Tensor:
    """[i or 1, j, x, z] to [j, x, z, i or 1]."""
    return ops.transpose(bias, (1, 2, 3, 0))


def _within(tensor: Tensor) -> Tensor:
    return bounded_gradient(ops.clip(tensor, -FARTHEST, FARTHEST))
