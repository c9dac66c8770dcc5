"""What a field of `RunConfig` says of itself: its default, group, help, choices and bounds."""

from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple


class Bound(NamedTuple):
    """A condition on a number.

    Attributes:
        holds: whether a number meets it.
        text: the condition in words, after "must".
    """

    holds: Callable[[float], bool]
    text: str


POSITIVE = Bound(lambda number: number > 0, "be positive")
NOT_NEGATIVE = Bound(lambda number: number >= 0, "not be negative")
SHARE = Bound(lambda number: 0 <= number < 1, "be at least 0 and less than 1")


def flag(
    default: Any, group: str, help: str, choices: tuple[str, ...] | None = None, bound: Bound | None = None
) -> Any:
    """A dataclass field that is a flag of train_val.py.

    Args:
        default: its value unless it is given.
        group: under which `--helpfull` lists it.
        help: what it means.
        choices: the values that it may have, for text.
        bound: what a number must be.
    """
    return field(default=default, metadata={"group": group, "help": help, "choices": choices, "bound": bound})
