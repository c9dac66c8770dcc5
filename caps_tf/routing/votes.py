"""Votes: each child's pose times the weight that relates part to whole.

Source: Hinton, Sabour, Frosst, "Matrix capsules with EM routing" (ICLR 2018), V_ij = M_i W_ij.
"""

from typing import Any

import numpy as np
from keras import ops

Tensor = Any


def convolutional_votes(poses: Tensor, weights: Tensor) -> Tensor:
    """Votes with a weight for each kernel position, shared by all parent positions.

    Args:
        poses: the children of each parent, [b, p, q, k, i, x, y] (`Neighbourhood.gather`).
        weights: [k, i, j, y, z].

    Returns:
        Votes with the pose read row by row as a vector, [b, p, q, j, k, i, d], d = x z.

    Example:
        >>> poses, weights = np.ones((2, 5, 5, 9, 8, 4, 4)), np.ones((9, 8, 16, 4, 4))
        >>> tuple(convolutional_votes(poses, weights).shape)
        (2, 5, 5, 16, 9, 8, 16)
    """
    return _flatten_pose(ops.einsum("bpqkixy,kijyz->bpqjkixz", poses, weights))


def shared_votes(poses: Tensor, weights: Tensor) -> Tensor:
    """Votes with one weight for all kernel positions, as class capsules cast them.

    Args:
        poses: the children of each parent, [b, p, q, k, i, x, y].
        weights: [i, j, y, z].

    Returns:
        [b, p, q, j, k, i, d], d = x z.
    """
    return _flatten_pose(ops.einsum("bpqkixy,ijyz->bpqjkixz", poses, weights))


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


def _flatten_pose(votes: Tensor) -> Tensor:
    shape = ops.shape(votes)
    return ops.reshape(votes, (*shape[:-2], votes.shape[-2] * votes.shape[-1]))
