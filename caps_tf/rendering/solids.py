"""Solid shapes for `toys`: every shape is a sphere hull, the convex hull of a few balls.

Two balls make a limb, four a rounded plate, a row of profile points on either side a car body, a ring of small balls a
wheel. One primitive gives the soft edges of moulded plastic, and exact normals: the normal of a hull's vertex is its
direction from the centre of its ball.

Axes: x to the front, y to the left, z up.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import ConvexHull

# Balls are sampled on an integer cube lattice: unlike an icosphere it is symmetric under all mirrorings and quarter
# turns and contains the axes, so that the flat faces of upright boxes come out exactly flat.
_LATTICE = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
_SHELL = _LATTICE[np.abs(_LATTICE).max(axis=1) == 2]
_DIRECTIONS = _SHELL / np.linalg.norm(_SHELL, axis=1, keepdims=True)


class Part(NamedTuple):
    """The convex hull of balls: centres [n, 3] and radii [n]."""

    centres: np.ndarray
    radii: np.ndarray


Parts = list[Part]


def hull(centres: ArrayLike, radii: ArrayLike) -> Part:
    """One part from ball centres [n, 3] and radii (one number, or [n])."""
    centres = np.asarray(centres, np.float64)
    return Part(centres, np.broadcast_to(np.asarray(radii, np.float64), len(centres)))


def chain(centres: ArrayLike, radii: ArrayLike) -> Parts:
    """A bent limb or a turned body: the hulls of successive pairs of balls."""
    whole = hull(centres, radii)
    return [Part(whole.centres[i : i + 2], whole.radii[i : i + 2]) for i in range(len(whole.centres) - 1)]


def slab(profile: ArrayLike, width: float, radius: float = 0.04, taper: float = 1.0) -> Part:
    """A convex side view [(x, z), ...] given a `width` along y; `taper` narrows its upper half (a car's cabin).

    The rounding of its edges, `radius`, stays inside the profile.
    """
    profile = np.asarray(profile, np.float64)
    middle = (profile.max(axis=0) + profile.min(axis=0)) / 2
    inner = profile + np.sign(middle - profile) * radius
    half = np.where(profile[:, 1] > middle[1], taper, 1.0) * width / 2 - radius
    return hull([(x, side * y, z) for (x, z), y in zip(inner, half) for side in (-1, 1)], radius)


def box(x0: float, x1: float, z0: float, z1: float, width: float, radius: float = 0.04) -> Part:
    """A rounded box from x0 to x1 and z0 to z1, centred on y = 0."""
    return slab([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], width, radius)


def ring(centre: ArrayLike, radius: float, axis: int) -> np.ndarray:
    """Points [14, 3] on a circle about the given axis."""
    angle = np.arange(14) * (2 * np.pi / 14)
    return np.insert(radius * np.stack([np.cos(angle), np.sin(angle)], axis=1), axis, 0.0, axis=1) + np.asarray(centre)


def disc(centre: ArrayLike, radius: float, thickness: float, axis: int) -> Part:
    """A rounded disc (wheel, hat brim, shield) about the given axis."""
    edge = min(thickness / 2, radius * 0.4)
    circle = ring(centre, radius - edge, axis)
    offset = np.eye(3)[axis] * (thickness / 2 - edge)
    return hull(np.concatenate([circle - offset, circle + offset]), edge)


def mirror(parts: Parts) -> Parts:
    """The parts on the other side (y -> -y)."""
    return [Part(part.centres * (1, -1, 1), part.radii) for part in parts]


def pair(*parts: Part) -> Parts:
    """The parts on both sides."""
    return [*parts, *mirror(list(parts))]


def surface(parts: Parts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles of all parts together; where parts overlap, so do their triangles.

    Returns:
        Vertices [v, 3], their unit normals [v, 3], and faces [f, 3], counter-clockwise from outside.

    Example:
        >>> vertices, normals, faces = surface([box(0, 1, 0, 2, width=1)])
        >>> vertices.min(axis=0).tolist(), vertices.max(axis=0).tolist()
        ([0.0, -0.5, 0.0], [1.0, 0.5, 2.0])
    """
    vertices, normals, faces = zip(*map(_part_surface, parts))
    starts = np.cumsum([0, *map(len, vertices[:-1])])
    faces = [part + start for part, start in zip(faces, starts)]
    return np.concatenate(vertices), np.concatenate(normals), np.concatenate(faces)


def _part_surface(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    normals = np.tile(_DIRECTIONS, (len(part.radii), 1))
    radii = np.repeat(part.radii, len(_DIRECTIONS))
    points = np.repeat(part.centres, len(_DIRECTIONS), axis=0) + normals * radii[:, None]
    convex = ConvexHull(points)
    faces = convex.simplices.copy()
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    inward = np.einsum("fx,fx->f", np.cross(b - a, c - a), convex.equations[:, :3]) < 0
    faces[inward] = faces[inward][:, ::-1]
    used = np.unique(faces)
    return points[used], normals[used], np.searchsorted(used, faces)
