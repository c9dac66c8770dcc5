"""Expects errors that a user can read: one line that names what is wrong."""

import contextlib

import pytest

from caps_tf.errors import UserError


@contextlib.contextmanager
def refused(*words, count=None):
    """Expects a `UserError` of one line that holds each of `words`."""
    with pytest.raises(UserError) as caught:
        yield
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    if count:
        count("inputs refused", 1)


def assert_one_line_naming(error: UserError, name: str, *words: str) -> None:
    """Asserts that the message is one line that holds the name and each of `words`."""
    message = str(error)
    assert "\n" not in message
    for word in (name, *words):
        assert word in message, message
