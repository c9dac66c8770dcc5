"""Votes: each child's pose times the weight that relates part to whole.

Source: Hinton, Sabour, Frosst, "Matrix capsules with EM routing" (ICLR 2018), V_ij = M_i W_ij.

The product of two small matrices is computed as the sum over y of column y of the pose times row y of the weight, with
the children side by side in memory: sixteen numbers a vote are too few for a matrix product to be fast, and hundreds of
children in a row are what a processor's vector units want.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from caps_tf.routing.bounds import bounded_values
from caps_tf.routing.hand_written_gradient import Gradient, with_gradient
from caps_tf.tensors import Tensor


def pose_columns(poses: Tensor) -> tuple[Tensor, ...]:
    """The columns of pose matrices, children last: [..., c, x, y] to one [..., x, c] for each y.

    Example:
        >>> columns = pose_columns(np.ones((2, 72, 4, 3)))
        >>> len(columns), tuple(columns[0].shape)
        (3, (2, 4, 72))
    """
    return tuple(ops.swapaxes(column, -1, -2) for column in ops.unstack(bounded_values(poses), axis=-1))


class VoteWeights(NamedTuple):
    """Weights of votes, laid out once for a loop that goes through a few images at a time.

    Attributes:
        by_child: [c, y, j z], what the gradient reads and flows to.
        rows: the rows of the weight matrices, children last: for each y [j, z, c]. The same numbers, without gradient.
    """

    by_child: Tensor
    rows: tuple[Tensor, ...]


def vote_weights(weights: Tensor) -> VoteWeights:
    """Lays out weights [c, j, y, z].

    Example:
        >>> by_child, rows = vote_weights(np.ones((72, 16, 3, 4)))
        >>> tuple(by_child.shape), len(rows), tuple(rows[0].shape)
        ((72, 3, 64), 3, (16, 4, 72))
    """
    weights = bounded_values(weights)
    c, j, y, z = ops.shape(weights)
    rows = ops.stop_gradient(weights)
    rows = tuple(ops.transpose(rows[:, :, row], (1, 2, 0)) for row in range(y))
    return VoteWeights(ops.reshape(ops.transpose(weights, (0, 2, 1, 3)), (c, y, j * z)), rows)


def votes_of_children(columns: Sequence[Tensor], weights: VoteWeights) -> Tensor:
    """Votes V = M W of each child for each parent type, pose elements before children.

    Args:
        columns: the children's poses M by column, from `pose_columns`: for each y [n, x, c].
        weights: their weights W, from `vote_weights`.

    Returns:
        [n, j, d, c]; d = x z reads a vote row by row.

    Example:
        >>> poses, weights = np.ones((2, 72, 4, 4)), np.ones((72, 16, 4, 4))
        >>> tuple(votes_of_children(pose_columns(poses), vote_weights(weights)).shape)
        (2, 16, 16, 72)
    """
    return _votes(weights.by_child, *columns, *weights.rows)


@with_gradient
def _votes(by_child: Tensor, *columns_and_rows: Tensor) -> tuple[Tensor, Gradient]:
    """`votes_of_children`, with a gradient that is two matrix products for each child."""
    size = len(columns_and_rows) // 2
    columns, rows = columns_and_rows[:size], columns_and_rows[size:]
    votes = sum(column[:, None, :, None] * row[None, :, None] for column, row in zip(columns, rows, strict=True))
    n, j, x, z, c = ops.shape(votes)

    def gradient(arriving):
        # Axes here: child c, row r of its pose at a parent position (n x), y, element w of the weight (j z).
        arriving = ops.transpose(ops.reshape(arriving, (n, j, x, z, c)), (4, 0, 2, 1, 3))
        arriving = ops.reshape(arriving, (c, n * x, j * z))
        poses = ops.reshape(ops.transpose(ops.stack(columns), (3, 0, 1, 2)), (c, size, n * x))
        to_poses = ops.reshape(ops.einsum("crw,cyw->cry", arriving, by_child), (c, n, x, size))
        to_poses = ops.transpose(to_poses, (3, 1, 2, 0))
        to_weights = ops.einsum("cyr,crw->cyw", poses, arriving)
        return to_weights, *(to_poses[y] for y in range(size)), *(ops.zeros_like(row) for row in rows)

    return ops.reshape(votes, (n, j, x * z, c)), gradient


def coordinate_offsets(children: tuple[int, int], pose_shape: tuple[int, int]) -> np.ndarray:
    """What coordinate addition adds to the votes for class capsules.

    A weight that all positions share knows nothing of where its child stands, so the scaled position of the
    child, ((column + 0.5) / width, (row + 0.5) / height), goes into the first two elements of the right-hand
    column of the vote (Hinton et al. 2018, section 4; column first, as in Gritzman's published code).

    Args:
        children: rows and columns of child capsules, (h, w).
        pose_shape: rows and columns of a vote, at least two rows.

    Returns:
        float64 array [k, d] with k = h w positions row by row and d elements of the vote row by row.

    Raises:
        ValueError: if the vote has fewer than two rows.

    Example:
        >>> coordinate_offsets((1, 2), (4, 4))[:, [3, 7]]
        array([[0.25, 0.5 ],
               [0.75, 0.5 ]])
    """
    if pose_shape[0] < 2:
        raise ValueError(f"coordinate addition needs poses of at least two rows, not {pose_shape[0]}")
    height, width = children
    offsets = np.zeros((height, width, *pose_shape))
    offsets[:, :, 0, -1] = ((np.arange(width) + 0.5) / width)[None, :]
    offsets[:, :, 1, -1] = ((np.arange(height) + 0.5) / height)[:, None]
    return offsets.reshape(height * width, -1)
