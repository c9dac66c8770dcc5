"""Viewpoints in degrees: what the labels of a data set mean, and which viewpoints a protocol calls familiar.

NORB counts steps: elevation label e is 30 + 5e degrees, azimuth label a is 20a degrees. Folders of photographs
(`view_records`) keep degrees, and say so in the description of their features.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from caps_tf.errors import UserError
from caps_tf.tensors import Tensor

STEPS, DEGREES = "steps", "degrees"

# G. E. Hinton, S. Sabour, N. Frosst, "Matrix capsules with EM routing", ICLR 2018, section 5.1: familiar are the
# azimuths 300, 320, 340, 0, 20 and 40, or the three lowest elevations.
PROTOCOLS = {"azimuth": "azimuth:300..40", "elevation": "elevation:30..40"}

_NORB_GRID = {"elevation": (30, 5), "azimuth": (0, 20)}  # of the first label, and between two labels
_RANGE = re.compile(r"(azimuth|elevation):([+-]?\d{1,6})\.\.([+-]?\d{1,6})")

Labels = TypeVar("Labels", int, np.ndarray, Tensor)


def to_degrees(factor: str, labels: Labels, unit: str) -> Labels:
    """Turns the labels of a factor into degrees.

    Args:
        factor: "elevation" and "azimuth" become degrees; every other factor stays as it is.
        labels: an int, an array or a tensor.
        unit: "steps" (NORB's) or "degrees".

    Example:
        >>> to_degrees("elevation", np.array([0, 8]), "steps"), to_degrees("azimuth", 17, "steps")
        (array([30, 70]), 340)
        >>> to_degrees("azimuth", 17, "degrees")
        17
    """
    if unit == DEGREES or factor not in _NORB_GRID:
        return labels
    first, step = _NORB_GRID[factor]
    return first + step * labels


class ViewpointRange(NamedTuple):
    """Viewpoints whose azimuth or elevation is from `low` to `high` degrees, both included.

    Azimuths are angles on a circle: the range runs upwards from `low`, through 360 if need be, to `high`.
    """

    factor: str
    low: int
    high: int

    def holds(self, degrees: np.ndarray) -> np.ndarray:
        """Whether each of these [...] degrees is in the range.

        Example:
            >>> ViewpointRange("azimuth", -67, 67).holds(np.array([0, 67, 68, 292, 293, 360]))
            array([ True,  True, False, False,  True,  True])
        """
        if self.factor == "azimuth":
            return (degrees - self.low) % 360 <= (self.high - self.low) % 360
        return (self.low <= degrees) & (degrees <= self.high)


def parse_viewpoints(text: str) -> tuple[ViewpointRange, ...]:
    """Reads which viewpoints are familiar.

    Args:
        text: conditions, joined by commas if all of them must hold: "azimuth:<low>..<high>", "elevation:<low>..<high>"
            in whole degrees, or one of the published cases, "azimuth" (azimuth:300..40) and "elevation"
            (elevation:30..40). Azimuths count modulo 360, so that azimuth:-67..67 and azimuth:293..67 are the same.

    Returns:
        The conditions; none for "".

    Raises:
        UserError: the text is something else, or a range is empty or all there is.

    Example:
        >>> parse_viewpoints("azimuth")
        (ViewpointRange(factor='azimuth', low=300, high=40),)
        >>> [condition.factor for condition in parse_viewpoints("azimuth:-67..67,elevation:0..45")]
        ['azimuth', 'elevation']
    """
    if not text:
        return ()
    ranges = []
    for condition in text.split(","):
        match = _RANGE.fullmatch(PROTOCOLS.get(condition, condition))
        if not match:
            raise UserError(
                f"viewpoints must be one of {', '.join(PROTOCOLS)}, or ranges in whole degrees such as "
                f"azimuth:-67..67 or azimuth:300..40,elevation:45..90, not {text!r}"
            )
        ranges.append(_checked(ViewpointRange(match[1], int(match[2]), int(match[3])), condition))
    if len({each.factor for each in ranges}) < len(ranges):
        raise UserError(f"viewpoints {text!r} names one angle twice: give azimuth and elevation one range each")
    return tuple(ranges)


def _checked(span: ViewpointRange, condition: str) -> ViewpointRange:
    if span.factor == "azimuth" and abs(span.high - span.low) >= 360:
        raise UserError(f"viewpoints {condition!r} is a whole turn, which leaves no novel azimuth: narrow it")
    if span.factor == "elevation" and not -90 <= span.low <= span.high <= 90:
        raise UserError(f"viewpoints {condition!r}: elevations run from a lower to a higher, within -90 and 90 degrees")
    return span


def are_familiar(ranges: Sequence[ViewpointRange], degrees: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether all conditions hold for each viewpoint; the rule is the same for a camera above the pole.

    Args:
        ranges: at least one.
        degrees: "azimuth" and "elevation" of n viewpoints, each [n].

    Returns:
        [n] bool.

    Example:
        >>> viewpoints = {"azimuth": np.array([0, 0, 90]), "elevation": np.array([0, 90, 0])}
        >>> are_familiar(parse_viewpoints("azimuth:-67..67,elevation:0..45"), viewpoints)
        array([ True, False, False])
    """
    return np.logical_and.reduce([condition.holds(degrees[condition.factor]) for condition in ranges])
