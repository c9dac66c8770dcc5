"""A small photo studio in the manner of NORB: a toy on a turntable, four lamps, a stereo pair of cameras.

The lamps and the sky stand still while the toy turns, as on NORB's turntable; a lighting is a mixture of lamps. Light is
additive, so that each viewpoint is cast once, with one picture per lamp, and every lighting is a weighted sum of
these. The ground's shadows depend on the turn of the toy but not on the camera: they are computed once a turn and looked
up for every elevation and both cameras.
"""

import functools
from collections.abc import Sequence

import numpy as np
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from scipy.ndimage import gaussian_filter

CAMERA_DISTANCE = 8.0
BASELINE = 0.6
FIELD = 1.25  # half the width of the picture at the toy's centre
GROUND_ALBEDO = 0.62
GAMMA = 1 / 2.2
GROUND_RADIUS, GROUND_CELLS = 2.8, 144
OFFSET = 0.008  # shadow rays start this far off the surface, so that no facet shadows itself

# azimuth and elevation of the lamps, degrees, seen from the camera at azimuth 0; distance and radius of the lamps
LAMPS = ((50, 50), (-45, 45), (135, 48), (-130, 55))
LAMP_DISTANCE, LAMP_RADIUS, SAMPLES = 7.0, 0.9, 8
BOUNCE = 0.2
# lighting -> weight of each lamp and of the sky
LIGHTINGS = np.array(
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


def _spiral(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spread (share of area in (0, 1), angle) of `count` points on a disc: a golden spiral."""
    index = np.arange(count)
    return (index + 0.5) / count, index * (np.pi * (3 - np.sqrt(5)))


@functools.cache
def _light_samples() -> np.ndarray:
    """Points [lamps, samples, 3] on each lamp and, last, on the sky."""
    share, angle = _spiral(SAMPLES)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    lights = []
    for azimuth, elevation in np.deg2rad(LAMPS):
        out = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
        disc = circle @ [right, np.cross(out, right)] * np.sqrt(share)[:, None]
        lights.append(LAMP_DISTANCE * out + LAMP_RADIUS * disc)
    # Denser, so brighter, towards the zenith.
    lights.append(100 * np.column_stack([circle * np.sqrt(1 - share)[:, None], np.sqrt(share)]))
    return np.stack(lights)


@functools.cache
def _sines() -> np.ndarray:
    """What makes the light [lamps] of each lamp 1 on open ground."""
    samples = _light_samples()
    return (samples[..., 2] / np.linalg.norm(samples, axis=-1)).mean(axis=1).astype(np.float32)


def _turn(degrees: float) -> np.ndarray:
    """Rotation matrix about z, counter-clockwise from above."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@functools.cache
def _camera(elevation: float, camera: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Position [3] relative to the target and ray directions [size, size, 4, 3] of one of the stereo cameras."""
    angle = np.deg2rad(elevation)
    right = np.array([0.0, 1.0, 0.0])
    position = CAMERA_DISTANCE * np.array([np.cos(angle), 0, np.sin(angle)]) + right * (camera - 0.5) * BASELINE
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    grid = ((np.arange(2 * size) + 0.5) / size - 1) * (FIELD / np.linalg.norm(position))
    directions = forward + grid[None, :, None] * right - grid[:, None, None] * up
    return position, directions.reshape(size, 2, size, 2, 3).swapaxes(1, 2).reshape(size, size, 4, 3)


class ToyScene:
    """A toy ready to be photographed from any viewpoint."""

    def __init__(self, mesh: trimesh.Trimesh):
        self._albedo = mesh.metadata["albedo"]
        self._normals = np.asarray(mesh.vertex_normals, np.float32)
        self._faces = np.asarray(mesh.faces, np.int32)
        self._target = np.array([0, 0, mesh.bounds[1, 2] / 2])
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, np.asarray(mesh.vertices, np.float32), self._faces)

    def render(self, azimuth: float, elevations: Sequence[float], lightings: Sequence[int], size: int = 96) -> np.ndarray:
        """Photographs the toy turned by `azimuth` degrees: uint8 [elevations, lightings, 2 cameras, size, size]."""
        # A row vector times this goes from the studio's frame to the toy's: turning everything else is cheaper.
        unturn = _turn(azimuth)
        lamps = (_light_samples() @ unturn).astype(np.float32)
        shadows = self._shadows(lamps)
        weights = LIGHTINGS[list(lightings)]
        pictures = np.empty((len(elevations), len(lightings), 2, size, size), np.uint8)
        for row, elevation in enumerate(elevations):
            for camera in range(2):
                position, directions = _camera(elevation, camera, size)
                eye = (position @ unturn + self._target).astype(np.float32)
                rays = (directions @ unturn).astype(np.float32)
                linear = np.clip(self._photograph(eye, rays, lamps, shadows) @ weights.T, 0, 1)
                pictures[row, :, camera] = np.moveaxis((linear**GAMMA * 255 + 0.5).astype(np.uint8), -1, 0)
        return pictures

    def _visible(self, points: np.ndarray, ways: np.ndarray) -> np.ndarray:
        """Whether nothing stands in the way [..., 3] from points [..., 3]; shapes broadcast."""
        origins = np.broadcast_to(points, ways.shape).reshape(-1, 3)
        return (self._scene.run(origins, ways.reshape(-1, 3), query="OCCLUDED") < 0).reshape(ways.shape[:-1])

    def _shadows(self, lamps: np.ndarray) -> np.ndarray:
        """Share [cells, cells, lamps] of each lamp that the ground sees."""
        cells = ((np.arange(GROUND_CELLS, dtype=np.float32) + 0.5) / GROUND_CELLS * 2 - 1) * GROUND_RADIUS
        points = np.stack(np.broadcast_arrays(cells[:, None], cells, np.float32(0)), -1)
        visible = [np.mean([self._visible(points, s - points) for s in lamp], 0, np.float32) for lamp in lamps]
        return gaussian_filter(np.stack(visible, -1), (1, 1, 0))

    def _photograph(self, eye: np.ndarray, rays: np.ndarray, lamps: np.ndarray, shadows: np.ndarray) -> np.ndarray:
        """Radiance [size, size, lamps], one picture a lamp, seen from `eye` [3] along `rays` [size, size, 4, 3]."""
        size = len(rays)
        # The ground is smooth: one look at the middle of each pixel is enough, where the toy's outline needs four.
        middle = rays.mean(axis=2).reshape(-1, 3)
        points = eye - (eye[2] / middle[:, 2])[:, None] * middle
        ground = GROUND_ALBEDO * _open_ground(points, lamps) * _bilinear(shadows, points)
        radiance = np.repeat(ground, 4, axis=0)

        rays = rays.reshape(-1, 3)
        hits = self._scene.run(np.broadcast_to(eye, rays.shape).copy(), rays, output=True)
        toy = np.flatnonzero(hits["primID"] >= 0)
        corners = self._normals[self._faces[hits["primID"][toy]]]
        u, v = hits["u"][toy, None], hits["v"][toy, None]
        normals = (1 - u - v) * corners[:, 0] + u * corners[:, 1] + v * corners[:, 2]
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        points = eye + hits["tfar"][toy, None] * rays[toy] + OFFSET * normals
        # Each of a pixel's four rays asks a quarter of every lamp: together they see all of it.
        quarters = np.moveaxis(lamps.reshape(len(lamps), -1, 4, 3), 2, 0)
        ways = quarters[toy % 4] - points[:, None, None]
        cosines = np.einsum("nlsx,nx->nls", ways, normals) / np.sqrt(np.einsum("nlsx,nlsx->nls", ways, ways))
        lit = np.maximum(cosines, 0) * self._visible(points[:, None, None], ways)
        light = np.einsum("nls->nl", lit) / (lit.shape[-1] * _sines())
        light[:, -1] += BOUNCE * (1 - normals[:, 2])
        radiance[toy] = self._albedo * light
        return np.einsum("yxrl->yxl", radiance.reshape(size, size, 4, -1)) / 4


def _open_ground(points: np.ndarray, lamps: np.ndarray) -> np.ndarray:
    """Light [n, lamps] on unshaded ground at points [n, 3]; a lamp falls off with its angle, the sky does not."""
    ways = lamps[:-1].mean(axis=1) - points[:, None]
    light = np.ones((len(points), len(lamps)), np.float32)
    light[:, :-1] = ways[..., 2] / np.sqrt(np.einsum("nlx,nlx->nl", ways, ways)) / _sines()[:-1]
    return light


def _bilinear(grid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Looks up a map [cells, cells, channels] of the ground at points [n, 3]."""
    cell = np.clip((points[:, :2] / GROUND_RADIUS + 1) * (GROUND_CELLS / 2) - 0.5, 0, GROUND_CELLS - 1.001)
    i, j = cell.astype(np.int32).T
    a, b = (cell % 1).T[..., None]
    return (1 - a) * ((1 - b) * grid[i, j] + b * grid[i, j + 1]) + a * ((1 - b) * grid[i + 1, j] + b * grid[i + 1, j + 1])
