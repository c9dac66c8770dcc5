"""A photo studio in the manner of NORB's: a toy on a turntable, four lamps and a sky, a pair of cameras.

The lights and the cameras stand still while the toy turns. Light is additive: each viewpoint is cast once, giving one
picture per light, and every lighting is a weighted sum of these. Shadows on the ground depend on the turn of the toy
but not on the camera: they are cast once a turn, and looked up for all elevations and both cameras.

Lengths are in the units of `toys.Toy`: a toy measures about 1.5.
"""

import functools
from collections.abc import Sequence

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from scipy.ndimage import gaussian_filter

from caps_tf.rendering.toys import Toy

_CAMERA_DISTANCE, _BASELINE = 8.0, 0.6
_HALF_FIELD = 1.25  # half the width of the picture at the middle of the toy

# Azimuth (0 is the cameras') and elevation of the lamps, degrees. They are wide, for soft shadows.
_LAMPS = ((50, 50), (-45, 45), (135, 48), (-130, 55))
_LAMP_DISTANCE, _LAMP_RADIUS = 7.0, 0.9
_SAMPLES = 8  # points on each light: a multiple of 4, see `_photograph`
_SKY_SHADOW_SAMPLES = 64

# How much of each lamp and of the sky is in each of the six lightings; 1 in all would make white ground.
_LIGHTINGS = np.array(
    [
        [0.20, 0.20, 0.20, 0.20, 0.25],
        [0.70, 0.00, 0.00, 0.00, 0.30],
        [0.00, 0.60, 0.00, 0.00, 0.25],
        [0.35, 0.00, 0.35, 0.00, 0.30],
        [0.00, 0.30, 0.00, 0.45, 0.25],
        [0.00, 0.00, 0.40, 0.35, 0.35],
    ],
    np.float32,
)
_GROUND_ALBEDO = 0.62
_GROUND_BOUNCE = 0.2  # light that the ground throws back at the toy's underside, as a share of the sky's
_GAMMA = 1 / 2.2

_GROUND_RADIUS, _GROUND_CELLS = 2.8, 144  # of the square map of the shadows on the ground
_SHADOW_OFFSET = 0.008  # shadow rays start so far off the surface, so that no facet shades itself


def _spiral(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` points spread evenly over a disc, a golden spiral: distance from the centre [n], direction [n, 2]."""
    index = np.arange(count)
    angle = index * (np.pi * (3 - np.sqrt(5)))
    return np.sqrt((index + 0.5) / count), np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _sky(count: int) -> np.ndarray:
    """Points [count, 3] on a far dome, denser (so brighter) towards the zenith."""
    radius, direction = _spiral(count)
    return 100 * np.column_stack([direction * radius[:, None], np.sqrt(1 - radius**2)])


@functools.cache
def _lights() -> np.ndarray:
    """Points [lights, samples, 3] on each lamp and, last, on the sky."""
    radius, direction = _spiral(_SAMPLES)
    lights = []
    for azimuth, elevation in np.deg2rad(_LAMPS):
        out = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
        lamp = _LAMP_RADIUS * radius[:, None] * direction @ [right, np.cross(out, right)]
        lights.append(_LAMP_DISTANCE * out + lamp)
    return np.stack([*lights, _sky(_SAMPLES)])


@functools.cache
def _sines() -> np.ndarray:
    """The divisor [lights] that makes each light 1 on open ground."""
    samples = _lights()
    return (samples[..., 2] / np.linalg.norm(samples, axis=-1)).mean(axis=1).astype(np.float32)


def _camera(elevation: float, camera: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Position [3] of one of the cameras (0 left, 1 right) as seen from its target, and ray directions.

    The directions [size, size, 4, 3] are 2 x 2 in each pixel.
    """
    angle = np.deg2rad(elevation)
    position = _CAMERA_DISTANCE * np.array([np.cos(angle), 0, np.sin(angle)]) + (0, (camera - 0.5) * _BASELINE, 0)
    distance = np.linalg.norm(position)
    forward = -position / distance
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    grid = ((np.arange(2 * size) + 0.5) / size - 1) * (_HALF_FIELD / distance)
    directions = forward + grid[None, :, None] * right - grid[:, None, None] * up
    return position, directions.reshape(size, 2, size, 2, 3).swapaxes(1, 2).reshape(size, size, 4, 3)


class Studio:
    """A toy in place, ready to be photographed.

    Args:
        toy: its mesh stands on z = 0 and needs vertex normals.

    Example:
        >>> from caps_tf.rendering.toys import make_toy
        >>> studio = Studio(make_toy(category=0, instance=3))
        >>> studio.photograph(azimuth=40, elevations=[30, 70], lightings=range(6), size=48).shape
        (2, 6, 2, 48, 48)
    """

    def __init__(self, toy: Toy):
        self._albedo = toy.albedo
        self._normals = np.asarray(toy.mesh.vertex_normals, np.float32)
        self._faces = np.asarray(toy.mesh.faces, np.int32)
        self._target = np.array([0, 0, toy.mesh.bounds[1, 2] / 2])
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, np.asarray(toy.mesh.vertices, np.float32), self._faces)
        # The sky looks the same from all sides: the shadow it throws turns with the toy.
        self._sky_shadow = self._shadow(_sky(_SKY_SHADOW_SAMPLES).astype(np.float32))

    def photograph(
        self, azimuth: float, elevations: Sequence[float], lightings: Sequence[int], size: int = 96
    ) -> np.ndarray:
        """Takes stereo pairs of the toy at one turn.

        Args:
            azimuth: turn of the toy, degrees, counter-clockwise from above.
            elevations: of the cameras above the ground, degrees, 30 to 70.
            lightings: 0 to 5.
            size: pixels, width and height.

        Returns:
            uint8 [elevations, lightings, 2 cameras (left, right), size, size].
        """
        # A row vector times this goes from the studio's frame to the toy's: turning all the rest spares the toy.
        turn = np.deg2rad(azimuth)
        unturn = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        lights = (_lights() @ unturn).astype(np.float32)
        shadows = np.stack([*map(self._shadow, lights[:-1]), self._sky_shadow], axis=-1)
        weights = _LIGHTINGS[list(lightings)]
        pictures = np.empty((len(elevations), len(lightings), 2, size, size), np.uint8)
        for row, elevation in enumerate(elevations):
            for camera in range(2):
                position, directions = _camera(elevation, camera, size)
                eye = (position @ unturn + self._target).astype(np.float32)
                rays = (directions @ unturn).astype(np.float32)
                linear = np.clip(self._expose(eye, rays, lights, shadows) @ weights.T, 0, 1)
                pictures[row, :, camera] = np.moveaxis((linear**_GAMMA * 255 + 0.5).astype(np.uint8), -1, 0)
        return pictures

    def _visible(self, points: np.ndarray, ways: np.ndarray) -> np.ndarray:
        """Whether nothing stands in the way [..., 3] from points [..., 3]; shapes broadcast."""
        origins = np.broadcast_to(points, ways.shape).reshape(-1, 3)
        return (self._scene.run(origins, ways.reshape(-1, 3), query="OCCLUDED") < 0).reshape(ways.shape[:-1])

    def _shadow(self, light: np.ndarray) -> np.ndarray:
        """Share [cells, cells] of a light [samples, 3] that each place on the ground sees."""
        cells = ((np.arange(_GROUND_CELLS, dtype=np.float32) + 0.5) / _GROUND_CELLS * 2 - 1) * _GROUND_RADIUS
        ground = np.stack(np.broadcast_arrays(cells[:, None], cells, np.float32(0)), axis=-1)
        seen = sum(self._visible(ground, sample - ground).astype(np.float32) for sample in light) / len(light)
        return gaussian_filter(seen, 1)  # hides that the light is a few points

    def _expose(self, eye: np.ndarray, rays: np.ndarray, lights: np.ndarray, shadows: np.ndarray) -> np.ndarray:
        """Radiance [size, size, lights] that arrives at `eye` [3] along `rays` [size, size, 4 in a pixel, 3]."""
        size = len(rays)
        # The ground is smooth: one look at the middle of each pixel is enough, where the toy's outline needs four.
        middle = rays.mean(axis=2).reshape(-1, 3)
        points = eye - (eye[2] / middle[:, 2])[:, None] * middle
        ground = _GROUND_ALBEDO * _open_ground(points, lights) * _bilinear(shadows, points)
        radiance = np.repeat(ground, 4, axis=0)

        rays = rays.reshape(-1, 3)
        hits = self._scene.run(np.broadcast_to(eye, rays.shape).copy(), rays, output=True)
        toy = np.flatnonzero(hits["primID"] >= 0)
        corners = self._normals[self._faces[hits["primID"][toy]]]
        u, v = hits["u"][toy, None], hits["v"][toy, None]
        normals = (1 - u - v) * corners[:, 0] + u * corners[:, 1] + v * corners[:, 2]
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        points = eye + hits["tfar"][toy, None] * rays[toy] + _SHADOW_OFFSET * normals
        # Each of a pixel's four rays asks a quarter of every light: together they see all of it.
        quarters = np.moveaxis(lights.reshape(len(lights), -1, 4, 3), 2, 0)
        ways = quarters[toy % 4] - points[:, None, None]
        cosines = np.einsum("nlsx,nx->nls", ways, normals) / np.sqrt(np.einsum("nlsx,nlsx->nls", ways, ways))
        lit = np.maximum(cosines, 0) * self._visible(points[:, None, None], ways)
        light = np.einsum("nls->nl", lit) / (lit.shape[-1] * _sines())
        light[:, -1] += _GROUND_BOUNCE * (1 - normals[:, 2])
        radiance[toy] = self._albedo * light
        return np.einsum("yxrl->yxl", radiance.reshape(size, size, 4, -1)) / 4


def _open_ground(points: np.ndarray, lights: np.ndarray) -> np.ndarray:
    """Light [n, lights] on unshaded ground at points [n, 3]: that of lamps varies with their angle."""
    ways = lights[:-1].mean(axis=1) - points[:, None]
    light = np.ones((len(points), len(lights)), np.float32)
    light[:, :-1] = ways[..., 2] / np.sqrt(np.einsum("nlx,nlx->nl", ways, ways)) / _sines()[:-1]
    return light


def _bilinear(grid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Looks up a map of the ground [cells, cells, channels] at points [n, 3]."""
    cell = (points[:, :2] / _GROUND_RADIUS + 1) * (_GROUND_CELLS / 2) - 0.5
    cell = np.clip(cell, 0, _GROUND_CELLS - 1.001)
    i, j = cell.astype(np.int32).T
    a, b = (cell % 1).T[..., None]
    near = (1 - b) * grid[i, j] + b * grid[i, j + 1]
    far = (1 - b) * grid[i + 1, j] + b * grid[i + 1, j + 1]
    return (1 - a) * near + a * far
