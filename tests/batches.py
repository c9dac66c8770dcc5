"""Batches of an input pipeline as arrays."""

import numpy as np


def collect(batches):
    """A list of all batches."""
    return list(batches.as_numpy_iterator())


def joined(batches):
    """All batches as one dict of arrays."""
    batches = collect(batches)
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def assert_same_batches(found, expected):
    """Bit for bit, feature by feature."""
    assert len(found) == len(expected) > 0
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])
