"""Procedural toys: five categories, any number of instances each, built from a seed.

Every toy is a union of sphere hulls: the convex hull of a few balls is a limb (two balls), a rounded plate (four),
a car body (two profiles) or a wheel (a ring of small balls). One primitive gives the moulded, soft-edged look of
plastic toys, and exact normals: the normal of a hull vertex is its direction from the centre of its ball.

Axes while building: x points to the front, y to the left, z up, in arbitrary units; `make_toy` normalises.
"""

from typing import NamedTuple

import numpy as np
import trimesh
from scipy.spatial import ConvexHull

from caps_tf.data.norb_format import CATEGORIES

# Ball surfaces are sampled on the surface of an integer cube lattice: unlike an icosphere it is symmetric under all
# mirrorings and quarter turns and contains the axes, so that flat faces of axis-aligned hulls stay exactly flat.
_LATTICE = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
_DIRECTIONS = _LATTICE[np.abs(_LATTICE).max(axis=1) == 2] / np.linalg.norm(
    _LATTICE[np.abs(_LATTICE).max(axis=1) == 2], axis=1, keepdims=True
)


class Part(NamedTuple):
    """The convex hull of balls: centres [n, 3] and radii [n]."""

    centres: np.ndarray
    radii: np.ndarray


Toy = list[Part]


def hull(centres, radii) -> Part:
    """One part from ball centres [n, 3] and radii (a number or [n])."""
    centres = np.asarray(centres, np.float64)
    return Part(centres, np.broadcast_to(np.asarray(radii, np.float64), len(centres)))


def chain(centres, radii) -> Toy:
    """A bent limb or a lathed body: the hulls of successive pairs of balls."""
    whole = hull(centres, radii)
    return [Part(whole.centres[i : i + 2], whole.radii[i : i + 2]) for i in range(len(whole.centres) - 1)]


def slab(profile, width: float, radius: float = 0.04, taper: float = 1.0) -> Part:
    """A convex side view [(x, z), ...] given a `width` along y; `taper` narrows its upper half (a car's cabin).

    Lies inside the profile: the rounding `radius` is taken off everywhere.
    """
    profile = np.asarray(profile, np.float64)
    middle = (profile.max(axis=0) + profile.min(axis=0)) / 2
    inner = profile + np.sign(middle - profile) * radius
    half = np.where(profile[:, 1] > middle[1], taper, 1.0) * width / 2 - radius
    return hull([(x, side * y, z) for (x, z), y in zip(inner, half) for side in (-1, 1)], radius)


def box(x0: float, x1: float, z0: float, z1: float, width: float, radius: float = 0.04) -> Part:
    """A rounded box from x0 to x1 and z0 to z1, centred on y = 0."""
    return slab([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], width, radius)


def disc(centre, radius: float, thickness: float, axis: int = 1) -> Part:
    """A rounded disc (wheel, hat brim, base) whose axle is the given axis."""
    angle = np.arange(14) * (2 * np.pi / 14)
    edge = min(thickness / 2, radius * 0.4)
    ring = np.insert(np.stack([np.cos(angle), np.sin(angle)], 1) * (radius - edge), axis, 0.0, axis=1)
    offset = np.eye(3)[axis] * max(thickness / 2 - edge, 0.0)
    return hull(np.concatenate([ring - offset, ring + offset]) + np.asarray(centre), edge)


def mirrored(parts: Toy) -> Toy:
    """The parts and their images on the other side (y -> -y)."""
    return parts + [Part(part.centres * (1, -1, 1), part.radii) for part in parts]


def _wheels(positions, radius: float, track: float, thickness: float) -> Toy:
    return mirrored([disc((x, track / 2, radius), radius, thickness) for x in positions])


def _animal(rng: np.random.Generator) -> Toy:
    """Four legs, and anything from dachshund to giraffe, with ears, horns, trunk and tail."""
    u = rng.uniform
    length, girth, leg = u(0.75, 1.35), u(0.22, 0.36), u(0.35, 0.85)
    z = leg + girth * 0.8
    front, rear = length / 2, -length / 2
    shoulder = girth * u(0.85, 1.15)
    toy = chain(
        [(rear, 0, z), (u(-0.2, 0.2), 0, z + u(-0.08, 0.08)), (front, 0, z + u(-0.05, 0.12))],
        [girth * u(0.8, 1.1), girth * u(0.85, 1.05), shoulder],
    )
    thick, foot = u(0.08, 0.14), u(0.9, 1.5)
    spread = girth * u(0.5, 0.75)
    for x, y in ((front, spread), (front, -spread), (rear, spread), (rear, -spread)):
        knee, step = u(-0.1, 0.1), u(-0.2, 0.2)
        toy += chain([(x, y, z), (x + knee, y, leg * 0.55), (x + step, y, thick)], [thick * 1.5, thick * 1.1, thick * foot])

    neck, pitch = u(0.2, 0.85), np.deg2rad(u(15, 75))
    head = np.array([front + neck * np.cos(pitch), 0, z + 0.1 + neck * np.sin(pitch)])
    skull, snout = u(0.16, 0.26), u(0.2, 0.45)
    droop = np.deg2rad(u(5, 50))
    nose = head + snout * np.array([np.cos(droop), 0, -np.sin(droop)])
    toy += chain([(front, 0, z + 0.05), head], [shoulder * u(0.6, 0.8), skull * u(0.6, 0.9)])
    toy.append(hull([head, nose], [skull, skull * u(0.45, 0.8)]))

    ears = rng.choice(["pricked", "floppy", "large"])
    at = head + (-0.02, skull * 0.7, skull * 0.6)
    if ears == "pricked":
        toy += mirrored([hull([at, at + (-0.03, 0.05, u(0.14, 0.3))], [0.07, 0.02])])
    elif ears == "floppy":
        toy += mirrored([hull([at, at + (0, 0.14, -u(0.15, 0.3))], [0.05, 0.07])])
    else:
        size = u(0.16, 0.26)
        toy += mirrored([hull([at, at + (-0.1, size, 0.05), at + (-0.1, size, -size), at + (0, 0.05, -size)], 0.04)])

    horns = rng.choice(["none", "none", "curved", "antlers", "trunk"])
    at = head + (0, skull * 0.5, skull * 0.8)
    if horns == "curved":
        reach = u(0.15, 0.35)
        toy += mirrored(chain([at, at + (0, reach, 0.08), at + (0.08, reach * 1.2, 0.08 + reach)], [0.06, 0.05, 0.02]))
    elif horns == "antlers":
        reach = u(0.3, 0.5)
        tip = at + (-0.1, reach * 0.6, reach)
        toy += mirrored(chain([at, at + (-0.1, 0.1, reach * 0.5), tip], [0.05, 0.045, 0.03]))
        toy += mirrored(chain([at + (-0.1, 0.1, reach * 0.5), at + (0.12, 0.16, reach * 0.9)], [0.045, 0.03]))
    elif horns == "trunk":
        low = max(0.12, nose[2] - u(0.35, 0.6))
        toy += chain([nose, nose + (0.1, 0, -0.15), (nose[0] + u(0.0, 0.25), 0, low)], [skull * 0.5, 0.09, 0.06])

    tail = rng.choice(["hanging", "bushy", "raised", "stub"])
    root = np.array([rear - girth * 0.7, 0, z + girth * 0.4])
    if tail == "hanging":
        toy += chain([root, root + (-0.15, 0, -0.1), root + (-0.2, 0, -u(0.3, 0.6))], [0.06, 0.045, 0.06])
    elif tail == "bushy":
        toy += chain([root, root + (-u(0.2, 0.35), 0, u(-0.2, 0.2)), root + (-0.5, 0, u(-0.3, 0.1))], [0.08, 0.14, 0.05])
    elif tail == "raised":
        toy += chain([root, root + (-0.15, 0, 0.15), root + (-u(0.0, 0.2), 0, u(0.35, 0.55))], [0.06, 0.05, 0.05])
    else:
        toy.append(hull([root, root + (-0.1, 0, 0.05)], [0.1, 0.07]))
    return toy


def _human(rng: np.random.Generator) -> Toy:
    """A standing figure: stout or slim, any arm pose, hats, hair, skirts and things to carry."""
    u = rng.uniform
    leg, torso, width = u(0.55, 0.9), u(0.5, 0.7), u(0.2, 0.32)
    stance, thick, depth = u(0.1, 0.26), u(0.1, 0.16), u(0.13, 0.2)
    hip, top = leg, leg + torso
    toy: Toy = []
    for side in (-1, 1):
        step = u(-0.18, 0.18)
        ankle = (step, side * stance, 0.1)
        toy += chain([(0, side * width * 0.45, hip), (step / 2 + 0.03, side * stance * 0.9, leg / 2), ankle], [thick, thick * 0.9, thick * 0.75])
        toy.append(hull([ankle, (step + u(0.12, 0.2), side * stance * 1.15, 0.07)], [0.09, 0.07]))
    belly = u(0.9, 1.3)
    toy.append(hull([(0, s * width * 0.5, hip + 0.05) for s in (-1, 1)] + [(0, s * width * 0.9, top - 0.1) for s in (-1, 1)], [depth * belly] * 2 + [depth * 0.85] * 2))
    if rng.random() < 0.3:
        toy.append(hull([(0, 0, hip + 0.15), *disc((0, 0, leg * u(0.3, 0.5)), u(0.3, 0.42), 0.06, axis=2).centres], 0.08))

    arm, sleeve = u(0.28, 0.38), u(0.075, 0.11)
    poses = {
        "down": ((0.05, 0.25, -0.95), (0.2, 0.05, -0.95)),
        "out": ((0, 0.95, -0.3), (0.1, 0.95, 0.1)),
        "up": ((0.1, 0.6, 0.75), (0.1, 0.2, 0.95)),
        "forward": ((0.5, 0.3, -0.75), (0.95, 0, 0.2)),
        "akimbo": ((-0.2, 0.8, -0.6), (0.3, -0.7, -0.6)),
    }
    for side in (-1, 1):
        upper, fore = (np.array(v) + u(-0.15, 0.15, 3) for v in poses[rng.choice(list(poses))])
        shoulder = np.array([0, width * 0.95, top - 0.1])
        elbow = shoulder + arm * upper
        hand = elbow + arm * fore
        limb = chain([shoulder, elbow, hand], [sleeve * 1.2, sleeve, sleeve * 0.85])
        limb.append(hull([hand], 0.1))
        if rng.random() < 0.25:
            thing = rng.choice(["pole", "bag", "shield"])
            if thing == "pole":
                limb.append(hull([hand + (0.05, 0, -0.4), hand + (0.05, 0, u(0.4, 0.7))], 0.035))
            elif thing == "bag":
                limb.append(hull([hand + (x, 0, z) for x in (-0.12, 0.12) for z in (-0.3, -0.1)], 0.07))
            else:
                limb.append(disc(hand + (0.08, 0, 0), u(0.2, 0.28), 0.06, axis=0))
        toy += [Part(p.centres * (1, side, 1), p.radii) for p in limb]

    skull = u(0.17, 0.25)
    head = np.array([u(0, 0.06), 0, top + skull * 1.05])
    toy += chain([(0, 0, top - 0.1), head], [0.1, 0.1])
    toy.append(hull([head, head + (0.02, 0, -0.08)], [skull, skull * 0.8]))
    crown = head + (0, 0, skull * 0.6)
    hat = rng.choice(["none", "cap", "top hat", "brim", "hair", "pointed"])
    if hat == "cap":
        toy.append(hull([crown, crown + (skull * 1.3, 0, -0.03)], [skull * 0.85, 0.06]))
    elif hat == "top hat":
        toy += [disc(crown, skull * 1.35, 0.05, axis=2), disc(crown + (0, 0, 0.15), skull * 0.85, 0.3, axis=2)]
    elif hat == "brim":
        toy += [disc(crown, skull * u(1.5, 1.9), 0.05, axis=2), hull([crown + (0, 0, 0.06)], skull * 0.8)]
    elif hat == "hair":
        toy.append(hull([crown, head + (-skull * 0.5, 0, -skull * u(0.3, 1.4))], [skull * 0.85, skull * 0.7]))
    elif hat == "pointed":
        toy.append(hull([crown, crown + (-0.05, 0, u(0.3, 0.45))], [skull * 0.95, 0.03]))
    if rng.random() < 0.25:
        toy.append(hull([(-depth - 0.1, s * 0.13, top - z) for s in (-1, 1) for z in (0.12, 0.42)], 0.1))
    return toy


def _airplane(rng: np.random.Generator) -> Toy:
    """From biplane to airliner: fuselage, wings of any sweep and height, tail, engines."""
    u = rng.uniform
    length, girth = u(1.5, 2.2), u(0.13, 0.22)
    nose, rear = length * 0.45, -length * 0.55
    z = girth + u(0.08, 0.25)
    toy = chain(
        [(nose, 0, z - 0.02), (nose - length * 0.15, 0, z), (rear + length * u(0.3, 0.45), 0, z), (rear, 0, z + girth * 0.5)],
        [girth * u(0.3, 0.85), girth, girth, girth * u(0.2, 0.4)],
    )

    def wing(x, height, root, tip, span, sweep, dihedral, thick=0.03) -> Toy:
        corners = [(x + root / 2, 0, height), (x - root / 2, 0, height)]
        corners += [(x - sweep + tip / 2, span, height + dihedral), (x - sweep - tip / 2, span, height + dihedral)]
        return mirrored([hull(corners, [thick * 1.4, thick * 1.1, thick, thick * 0.8])])

    span, root = u(0.7, 1.15), u(0.35, 0.6)
    tip, sweep, dihedral = root * u(0.35, 1.0), u(-0.05, 0.5), u(-0.03, 0.15)
    place = u(-0.1, 0.25)
    height = z + girth * rng.choice([-0.7, 0.0, 0.85])
    toy += wing(place, height, root, tip, span, sweep, dihedral)
    if rng.random() < 0.2:
        upper = z + girth + u(0.2, 0.3)
        toy += wing(place + 0.05, upper, root, tip, span, sweep, dihedral)
        for y in (0.25 * span, 0.75 * span):
            toy += mirrored([hull([(place - sweep * y / span, y, height), (place - sweep * y / span, y, upper)], 0.025)])

    fin, chord = u(0.3, 0.5), u(0.2, 0.32)
    top = z + girth * 0.4 + fin
    back = rear + 0.03
    toy.append(hull([(back + chord, 0, z), (back, 0, z), (back - 0.05, 0, top), (back + chord * 0.45 - 0.05, 0, top)], 0.03))
    stabiliser = top - 0.03 if rng.random() < 0.25 else z + girth * 0.4
    toy += wing(back + chord * 0.3, stabiliser, chord, chord * 0.6, u(0.28, 0.45), u(0.0, 0.2), 0.0)

    engines = rng.choice(["propeller", "two pods", "four pods", "rear pods", "none"])
    if engines == "propeller":
        toy.append(hull([(nose + 0.05, 0, z)], girth * 0.5))
        blade = np.deg2rad(u(0, 180))
        reach = u(0.3, 0.4) * np.array([0, np.cos(blade), np.sin(blade)])
        toy.append(hull([np.array([nose + 0.12, 0, z]) - reach, np.array([nose + 0.12, 0, z]) + reach], 0.04))
    elif engines in ("two pods", "four pods"):
        pod = u(0.07, 0.11)
        for share in (0.35, 0.65) if engines == "four pods" else (u(0.3, 0.5),):
            x, y, low = place + 0.15 - sweep * share, span * share, height + dihedral * share - pod
            toy += mirrored([hull([(x + 0.18, y, low), (x - 0.15, y, low)], [pod, pod * 0.7])])
    elif engines == "rear pods":
        toy += mirrored([hull([(rear + 0.55, girth * 1.6, z + 0.05), (rear + 0.25, girth * 1.6, z + 0.05)], [0.09, 0.07])])
    if rng.random() < 0.6:
        toy.append(hull([(nose - 0.3, 0, z + girth * 0.7), (nose - u(0.45, 0.6), 0, z + girth * 0.8)], girth * u(0.5, 0.65)))
    toy += mirrored([hull([(place, 0.15, z), (place, u(0.18, 0.3), 0.07)], [0.03, 0.07])])
    toy.append(hull([(nose - 0.25, 0, z), (nose - 0.25, 0, 0.06)], [0.03, 0.06]))
    return toy


def _truck(rng: np.random.Generator) -> Toy:
    """A cab, with or without a bonnet, and behind it a box, tank, tipper, crates, crane or mixer drum."""
    u = rng.uniform
    width, wheel, length = u(0.55, 0.72), u(0.17, 0.24), u(1.7, 2.4)
    deck = wheel * u(1.7, 2.1)
    front, rear = length / 2, -length / 2
    cab, cab_top = u(0.35, 0.5), deck + u(0.55, 0.85)
    hood = rng.choice([0.0, u(0.25, 0.4)])
    toy: Toy = [box(rear, front - 0.02, deck - 0.12, deck, width * 0.8, 0.03)]
    slope = u(0.02, 0.15)
    start = front - hood
    toy.append(slab([(start - cab, deck - 0.1), (start, deck - 0.1), (start, deck + 0.22), (start - slope, cab_top), (start - cab, cab_top)], width, 0.05))
    if hood:
        toy.append(slab([(start - 0.1, deck - 0.1), (front, deck - 0.1), (front, deck + u(0.15, 0.25)), (start - 0.1, deck + 0.3)], width * u(0.75, 0.95), 0.05))
    toy.append(box(front - 0.05, front + 0.06, deck - 0.16, deck - 0.04, width * 0.95, 0.03))
    axles = [front - u(0.2, 0.35), rear + u(0.2, 0.35)]
    if rng.random() < 0.6:
        axles.append(axles[1] + 2.15 * wheel)
    toy += _wheels(axles, wheel, width, u(0.12, 0.18))

    bed_front, high = start - cab - u(0.08, 0.16), deck + u(0.5, 1.0)
    middle = (bed_front + rear) / 2
    load = rng.choice(["box", "tank", "tipper", "crates", "mixer", "crane"])
    if load == "box":
        toy.append(box(rear, bed_front, deck, high, width * u(1.0, 1.12)))
    elif load == "tank":
        radius = min(width / 2, (high - deck) / 2) * u(0.95, 1.1)
        toy.append(hull([(bed_front - radius * 0.5, 0, deck + radius), (rear + radius * 0.5, 0, deck + radius)], radius))
        toy.append(disc((middle, 0, deck + 2 * radius), 0.1, 0.1, axis=2))
    elif load == "tipper":
        side, lift = u(0.25, 0.4), u(0.0, 0.35)
        floor = [(rear, deck + 0.05), (bed_front, deck + 0.05 + lift)]
        for y in (-width * 0.48, width * 0.48):
            toy.append(hull([(x, y, z + up) for x, z in floor for up in (0, side)], 0.035))
        toy.append(hull([(x, y, z) for x, z in floor for y in (-width * 0.48, width * 0.48)], 0.035))
        toy.append(hull([(bed_front, y, floor[1][1] + up) for y in (-width * 0.48, width * 0.48) for up in (0, side)], 0.035))
        if rng.random() < 0.5:
            toy.append(hull([(middle, 0, deck + 0.1 + lift / 2), (rear + 0.25, 0, deck + 0.15), (bed_front - 0.2, 0, deck + 0.15 + lift)], width * 0.4))
    elif load == "crates":
        toy.append(box(rear, bed_front, deck, deck + 0.06, width, 0.03))
        edge = rear
        while edge < bed_front - 0.2:
            size = min(u(0.25, 0.5), bed_front - edge)
            toy.append(box(edge + 0.02, edge + size - 0.02, deck + 0.04, deck + u(0.2, 0.6), width * u(0.6, 0.95)))
            edge += size
    elif load == "mixer":
        radius = width * u(0.45, 0.55)
        toy += chain([(bed_front - 0.15, 0, deck + radius * 0.9), (middle, 0, deck + radius * 1.1), (rear + 0.1, 0, deck + radius * 1.7)], [radius * 0.6, radius, radius * 0.45])
    else:
        toy.append(box(rear, bed_front, deck, deck + 0.15, width, 0.03))
        pivot = np.array([rear + u(0.2, 0.5), 0, deck + 0.25])
        toy.append(disc(pivot, 0.2, 0.2, axis=2))
        toy.append(hull([pivot + (0, 0, 0.1), (u(start - 0.4, start), 0, cab_top + u(0.08, 0.4))], [0.09, 0.06]))
    return toy


def _car(rng: np.random.Generator) -> Toy:
    """Sedan, hatchback, estate, coupe, convertible, van-like and beetle shapes on four wheels."""
    u = rng.uniform
    length, width, wheel = u(1.4, 1.95), u(0.65, 0.85), u(0.13, 0.18)
    floor, waist = wheel * u(0.6, 0.9), wheel + u(0.18, 0.3)
    roof = waist + u(0.2, 0.34)
    front, rear = length / 2, -length / 2
    kind = rng.choice(["sedan", "hatchback", "estate", "coupe", "convertible", "beetle"])
    nose, stern = waist - u(0.02, 0.14), waist - u(0.0, 0.08)
    lift = (floor + nose) / 2
    if kind == "beetle":
        toy: Toy = [hull([(front - 0.25, s * (width / 2 - 0.2), floor + 0.2) for s in (-1, 1)] + [(rear + 0.25, s * (width / 2 - 0.2), floor + 0.2) for s in (-1, 1)], [0.2, 0.2, 0.22, 0.22])]
    else:
        toy = [slab([(rear + 0.03, floor), (front - 0.05, floor), (front, lift), (front - 0.03, nose), (length * 0.12, waist), (rear + 0.3, waist), (rear, stern), (rear, lift)], width, 0.06)]
    screen = front - length * u(0.25, 0.36)
    rake = u(0.15, 0.32)
    tail = {"sedan": rear + length * u(0.15, 0.22), "hatchback": rear + 0.08, "estate": rear + 0.03, "coupe": rear + 0.15, "convertible": 0.0, "beetle": rear + 0.15}[kind]
    slope = {"sedan": u(0.12, 0.25), "hatchback": u(0.15, 0.25), "estate": u(0.0, 0.08), "coupe": u(0.4, 0.55), "convertible": 0.0, "beetle": u(0.3, 0.4)}[kind]
    taper = u(0.78, 0.92)
    if kind == "convertible":
        toy += mirrored([hull([(screen, 0, waist), (screen, width * 0.38, waist), (screen - rake * 0.6, 0, roof - 0.05), (screen - rake * 0.6, width * 0.33, roof - 0.05)], 0.03)])
        for x in (screen - 0.45, screen - 0.8)[: rng.integers(1, 3)]:
            toy += mirrored([hull([(x, y, z) for y in (width * 0.12, width * 0.3) for z in (waist, waist + u(0.1, 0.2))], 0.06)])
    else:
        toy.append(slab([(tail, waist - 0.05), (screen, waist - 0.05), (screen - rake, roof), (tail + slope, roof)], width * 0.95, 0.07, taper))
    track = width * u(0.92, 1.0)
    toy += _wheels((front - length * u(0.17, 0.22), rear + length * u(0.17, 0.22)), wheel, track, u(0.12, 0.16))
    toy.append(box(front - 0.06, front + 0.05, floor + 0.02, floor + 0.12, width * 0.92, 0.03))
    toy.append(box(rear - 0.05, rear + 0.06, floor + 0.04, floor + 0.14, width * 0.92, 0.03))

    extra = rng.choice(["none", "rack", "spoiler", "spare wheel", "sign"])
    if extra == "rack" and kind in ("sedan", "hatchback", "estate"):
        toy.append(box((tail + slope + screen - rake) / 2 - 0.2, (tail + slope + screen - rake) / 2 + 0.2, roof + 0.02, roof + u(0.08, 0.2), width * 0.6))
    elif extra == "spoiler":
        toy.append(hull([(rear + x, y, stern + u(0.12, 0.2)) for x in (0.05, 0.16) for y in (-width * 0.42, width * 0.42)], 0.025))
        toy += mirrored([hull([(rear + 0.1, width * 0.3, stern), (rear + 0.1, width * 0.3, stern + 0.15)], 0.03)])
    elif extra == "spare wheel":
        toy.append(disc((rear - 0.06, 0, waist - 0.05), 0.17, 0.12, axis=0))
    elif extra == "sign" and kind in ("sedan", "hatchback"):
        toy.append(box((tail + slope + screen - rake) / 2 - 0.06, (tail + slope + screen - rake) / 2 + 0.06, roof, roof + 0.12, width * 0.4))
    return toy


_BUILDERS = (_animal, _human, _airplane, _truck, _car)


def _mesh(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [v, 3], unit normals [v, 3] and faces [f, 3] (counter-clockwise from outside) of one part."""
    normals = np.tile(_DIRECTIONS, (len(part.radii), 1))
    points = np.repeat(part.centres, len(_DIRECTIONS), axis=0) + normals * np.repeat(part.radii, len(_DIRECTIONS))[:, None]
    shell = ConvexHull(points)
    faces = shell.simplices.copy()
    a, b, c = (points[faces[:, k]] for k in range(3))
    inward = np.einsum("fx,fx->f", np.cross(b - a, c - a), shell.equations[:, :3]) < 0
    faces[inward] = faces[inward][:, ::-1]
    used = np.unique(faces)
    return points[used], normals[used], np.searchsorted(used, faces)


def mean_shadow_area(mesh: trimesh.Trimesh) -> float:
    """Mean area of the projections of the mesh's convex hull: a quarter of its surface (Cauchy)."""
    return ConvexHull(mesh.vertices).area / 4


def make_toy(category: int, instance: int, seed: int = 0) -> trimesh.Trimesh:
    """Builds one toy, normalised and standing on z = 0 around the origin."""
    rng = np.random.default_rng([seed, category, instance])
    pieces = [_mesh(part) for part in _BUILDERS[category](rng)]
    starts = np.cumsum([0] + [len(vertices) for vertices, _, _ in pieces])
    vertices = np.concatenate([vertices for vertices, _, _ in pieces])
    normals = np.concatenate([normals for _, normals, _ in pieces])
    faces = np.concatenate([faces + start for (_, _, faces), start in zip(pieces, starts)])

    # Chance that has nothing to do with the category: placement, heading and size.
    rng = np.random.default_rng([seed, len(_BUILDERS), category, instance])
    yaw = np.deg2rad(rng.uniform(-10, 10))
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = (vertices - [*(low + high)[:2] / 2, low[2]]) @ turn.T
    size = 1 / np.sqrt(ConvexHull(vertices).area / 4)
    reach = np.linalg.norm(vertices - [0, 0, (high - low)[2] / 2], axis=1).max()
    vertices *= min(size * 1.05, 1.1 / reach) * rng.uniform(0.72, 1.12)
    vertices[:, :2] += rng.uniform(-0.12, 0.12, 2)
    albedo = 0.12 * (0.42 / 0.12) ** rng.random()
    return trimesh.Trimesh(vertices, faces, vertex_normals=normals @ turn.T, process=False, metadata={"albedo": albedo})
