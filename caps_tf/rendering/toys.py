"""Procedural toys: five categories, ten or any number of instances each, built from a seed.

Instances of a category differ as toys of one kind do: in proportions, in the parts they have, and in how these are
placed. Axes while building: x to the front, y to the left, z up; `make_toy` normalises position and size.
"""

from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.spatial import ConvexHull

from caps_tf.rendering.solids import Parts, box, chain, disc, hull, mirror, pair, ring, slab, surface

Rng = np.random.Generator

_MEAN_SIZE, _MAX_REACH = 1.05, 1.05  # see `make_toy`


@dataclass(frozen=True)
class Toy:
    """A toy to photograph.

    Attributes:
        mesh: stands on z = 0 about the origin and faces x, within about 1.3 units; has vertex normals.
        albedo: how much light its paint throws back, 0 to 1.
    """

    mesh: trimesh.Trimesh
    albedo: float


def make_toy(category: int, instance: int, seed: int = 0) -> Toy:
    """Builds one toy. The same arguments give the same toy.

    Toys of all categories get the same mean size (of the projections of their convex hulls, as far as they fit the
    picture); then size, place, heading and paint vary by chance that knows nothing of the category: neither the
    brightness of a picture nor a pixel in a fixed position shall give the category away.

    Args:
        category: an index into `norb_format.CATEGORIES`.
        instance: any number from 0; NORB has ten.
        seed: another seed gives other toys.

    Example:
        >>> toy = make_toy(category=4, instance=7)
        >>> float(toy.mesh.bounds[0, 2]), bool(toy.mesh.bounds[1, 2] < 1.3), 0 < toy.albedo < 0.5
        (0.0, True, True)
        >>> toy.mesh.export("car.stl")  # doctest: +SKIP
    """
    build = (_animal, _human, _airplane, _truck, _car)[category]
    vertices, normals, faces = surface(build(np.random.default_rng([seed, 0, category, instance])))

    rng = np.random.default_rng([seed, 1, category, instance])
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices -= [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
    # The mean area of a convex body's projections is a quarter of its surface (Cauchy).
    size = np.sqrt(ConvexHull(vertices).area / 4)
    reach = np.linalg.norm(vertices - [0, 0, vertices[:, 2].max() / 2], axis=1).max()
    vertices *= min(_MEAN_SIZE / size, _MAX_REACH / reach) * rng.uniform(0.72, 1.12)

    heading = np.deg2rad(rng.uniform(-10, 10))
    c, s = np.cos(heading), np.sin(heading)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    vertices, normals = vertices @ turn, normals @ turn
    vertices[:, :2] += rng.uniform(-0.15, 0.15, 2)
    albedo = 0.12 * (0.45 / 0.12) ** rng.random()
    return Toy(trimesh.Trimesh(vertices, faces, vertex_normals=normals, process=False), albedo)


def _animal(rng: Rng) -> Parts:
    """Four legs, and anything from dachshund to giraffe, with ears, horns or a trunk, and a tail."""
    u = rng.uniform
    length, girth, leg = u(0.75, 1.35), u(0.22, 0.36), u(0.35, 0.85)
    front, rear, z = length / 2, -length / 2, leg + girth * 0.8
    shoulder = girth * u(0.85, 1.15)
    back = [(rear, 0, z), (u(-0.2, 0.2), 0, z + u(-0.08, 0.08)), (front, 0, z + u(-0.05, 0.12))]
    parts = chain(back, [girth * u(0.8, 1.1), girth * u(0.85, 1.05), shoulder])

    thick, paw, spread = u(0.08, 0.14), u(0.9, 1.5), girth * u(0.5, 0.75)
    for x, y in ((front, spread), (front, -spread), (rear, spread), (rear, -spread)):
        knee, foot = (x + u(-0.1, 0.1), y, leg * 0.55), (x + u(-0.2, 0.2), y, thick)
        parts += chain([(x, y, z), knee, foot], [thick * 1.5, thick * 1.1, thick * paw])

    neck, pitch = u(0.2, 0.85), np.deg2rad(u(15, 75))
    head = np.array([front + neck * np.cos(pitch), 0, z + 0.1 + neck * np.sin(pitch)])
    skull, droop = u(0.16, 0.26), np.deg2rad(u(5, 50))
    nose = head + u(0.2, 0.45) * np.array([np.cos(droop), 0, -np.sin(droop)])
    parts += chain([np.array([front, 0, z + 0.05]), head], [shoulder * u(0.6, 0.8), skull * u(0.6, 0.9)])
    parts.append(hull([head, nose], [skull, skull * u(0.45, 0.8)]))
    return (
        parts
        + _ears(rng, head, skull)
        + _horns(rng, head, nose, skull)
        + _tail(rng, rear - girth * 0.7, z + girth * 0.4)
    )


def _ears(rng: Rng, head: np.ndarray, skull: float) -> Parts:
    u = rng.uniform
    at = head + (-0.02, skull * 0.7, skull * 0.6)
    match rng.choice(["pricked", "floppy", "large"]):
        case "pricked":
            return pair(hull([at, at + (-0.03, 0.05, u(0.14, 0.3))], [0.07, 0.02]))
        case "floppy":
            return pair(hull([at, at + (0, 0.14, -u(0.15, 0.3))], [0.05, 0.07]))
    size = u(0.16, 0.26)
    return pair(hull([at, at + (-0.1, size, 0.05), at + (-0.1, size, -size), at + (0, 0.05, -size)], 0.04))


def _horns(rng: Rng, head: np.ndarray, nose: np.ndarray, skull: float) -> Parts:
    u = rng.uniform
    at = head + (0, skull * 0.5, skull * 0.8)
    match rng.choice(["none", "none", "horns", "antlers", "trunk"]):
        case "horns":
            reach = u(0.15, 0.35)
            return pair(*chain([at, at + (0, reach, 0.08), at + (0.08, reach * 1.2, 0.08 + reach)], [0.06, 0.05, 0.02]))
        case "antlers":
            reach = u(0.3, 0.5)
            fork = at + (-0.1, 0.1, reach * 0.5)
            stem = chain([at, fork, at + (-0.1, reach * 0.6, reach)], [0.05, 0.045, 0.03])
            return pair(*stem, hull([fork, at + (0.12, 0.16, reach * 0.9)], [0.045, 0.03]))
        case "trunk":
            tip = np.array([nose[0] + u(0.0, 0.25), 0, max(0.12, nose[2] - u(0.35, 0.6))])
            return chain([nose, nose + (0.1, 0, -0.15), tip], [skull * 0.5, 0.09, 0.06])
    return []


def _tail(rng: Rng, x: float, z: float) -> Parts:
    u = rng.uniform
    root = np.array([x, 0, z])
    match rng.choice(["hanging", "bushy", "raised", "stub"]):
        case "hanging":
            return chain([root, root + (-0.15, 0, -0.1), root + (-0.2, 0, -u(0.3, 0.6))], [0.06, 0.045, 0.06])
        case "bushy":
            middle = root + (-u(0.2, 0.35), 0, u(-0.2, 0.2))
            return chain([root, middle, root + (-0.5, 0, u(-0.3, 0.1))], [0.08, 0.14, 0.05])
        case "raised":
            return chain([root, root + (-0.15, 0, 0.15), root + (-u(0.0, 0.2), 0, u(0.35, 0.55))], [0.06, 0.05, 0.05])
    return [hull([root, root + (-0.1, 0, 0.05)], [0.1, 0.07])]


def _human(rng: Rng) -> Parts:
    """A standing figure: stout or slim, any pose of the arms, hats, hair, skirts and things to carry."""
    u = rng.uniform
    hip, width, depth = u(0.55, 0.9), u(0.2, 0.32), u(0.13, 0.2)
    top, stance, thick = hip + u(0.5, 0.7), u(0.1, 0.26), u(0.1, 0.16)
    parts: Parts = []
    for side in (-1, 1):
        step = u(-0.18, 0.18)
        knee, ankle = (step / 2 + 0.03, side * stance * 0.9, hip / 2), (step, side * stance, 0.1)
        parts += chain([(0, side * width * 0.45, hip), knee, ankle], [thick, thick * 0.9, thick * 0.75])
        parts.append(hull([ankle, (step + u(0.12, 0.2), side * stance * 1.15, 0.07)], [0.09, 0.07]))
    waist, chest = [
        [(0, side * y, z) for side in (-1, 1)] for y, z in ((width * 0.5, hip + 0.05), (width * 0.9, top - 0.1))
    ]
    parts.append(hull(waist + chest, np.repeat([depth * u(0.9, 1.3), depth * 0.85], 2)))
    if rng.random() < 0.3:
        hem = ring((0, 0, hip * u(0.3, 0.5)), u(0.27, 0.39), axis=2)
        parts.append(hull([(0, 0, hip + 0.15), *hem], 0.08))
    if rng.random() < 0.25:
        backpack = [(-depth - 0.1, side * 0.13, top - z) for side in (-1, 1) for z in (0.12, 0.42)]
        parts.append(hull(backpack, 0.1))

    shoulder, length, sleeve = np.array([0, width * 0.95, top - 0.1]), u(0.28, 0.38), u(0.075, 0.11)
    parts += _left_arm(rng, shoulder, length, sleeve) + mirror(_left_arm(rng, shoulder, length, sleeve))
    skull = u(0.17, 0.25)
    head = np.array([u(0, 0.06), 0, top + skull * 1.05])
    parts.append(hull([np.array([0, 0, top - 0.1]), head], 0.1))
    parts.append(hull([head, head + (0.02, 0, -0.08)], [skull, skull * 0.8]))
    return parts + _hat(rng, head, skull)


def _left_arm(rng: Rng, shoulder: np.ndarray, length: float, sleeve: float) -> Parts:
    poses = [  # directions of the upper arm and the forearm
        ((0.05, 0.25, -0.95), (0.2, 0.05, -0.95)),  # hanging
        ((0, 0.95, -0.3), (0.1, 0.95, 0.1)),  # stretched out
        ((0.1, 0.6, 0.75), (0.1, 0.2, 0.95)),  # raised
        ((0.5, 0.3, -0.75), (0.95, 0, 0.2)),  # reaching forward
        ((-0.2, 0.8, -0.6), (0.3, -0.7, -0.6)),  # akimbo
    ]
    u = rng.uniform
    upper, fore = np.array(poses[rng.integers(len(poses))]) + u(-0.15, 0.15, (2, 3))
    elbow = shoulder + length * upper
    hand = elbow + length * fore
    parts = [*chain([shoulder, elbow, hand], [sleeve * 1.2, sleeve, sleeve * 0.85]), hull([hand], 0.1)]
    match rng.choice(["pole", "bag", "shield", *["nothing"] * 9]):
        case "pole":
            parts.append(hull([hand + (0.05, 0, -0.4), hand + (0.05, 0, u(0.4, 0.7))], 0.035))
        case "bag":
            parts.append(hull([hand + (x, 0, z) for x in (-0.12, 0.12) for z in (-0.3, -0.1)], 0.07))
        case "shield":
            parts.append(disc(hand + (0.08, 0, 0), u(0.2, 0.28), 0.06, axis=0))
    return parts


def _hat(rng: Rng, head: np.ndarray, skull: float) -> Parts:
    u = rng.uniform
    crown = head + (0, 0, skull * 0.6)
    match rng.choice(["none", "cap", "top hat", "brim", "hair", "pointed"]):
        case "cap":
            return [hull([crown, crown + (skull * 1.3, 0, -0.03)], [skull * 0.85, 0.06])]
        case "top hat":
            return [disc(crown, skull * 1.35, 0.05, axis=2), disc(crown + (0, 0, 0.15), skull * 0.85, 0.3, axis=2)]
        case "brim":
            return [disc(crown, skull * u(1.5, 1.9), 0.05, axis=2), hull([crown + (0, 0, 0.06)], skull * 0.8)]
        case "hair":
            return [hull([crown, head + (-skull * 0.5, 0, -skull * u(0.3, 1.4))], [skull * 0.85, skull * 0.7])]
        case "pointed":
            return [hull([crown, crown + (-0.05, 0, u(0.3, 0.45))], [skull * 0.95, 0.03])]
    return []


def _airplane(rng: Rng) -> Parts:
    """From biplane to airliner: fuselage, wings of any sweep and height, tail, engines, landing gear."""
    u = rng.uniform
    length, girth = u(1.5, 2.2), u(0.13, 0.22)
    nose, rear, z = length * 0.45, -length * 0.55, girth + u(0.08, 0.25)
    spine = [(nose, z - 0.02), (nose - length * 0.15, z), (rear + length * u(0.3, 0.45), z), (rear, z + girth * 0.5)]
    parts = chain([(x, 0, z) for x, z in spine], [girth * u(0.3, 0.85), girth, girth, girth * u(0.2, 0.4)])
    if rng.random() < 0.6:
        parts.append(hull([(nose - x, 0, z + girth * 0.75) for x in (0.3, u(0.45, 0.6))], girth * u(0.5, 0.65)))

    place, height = u(-0.1, 0.25), z + girth * rng.choice([-0.7, 0.0, 0.85])
    root, span, sweep, dihedral = u(0.35, 0.6), u(0.7, 1.15), u(-0.05, 0.5), u(-0.03, 0.15)
    tip = root * u(0.35, 1.0)
    parts += _wings((place, height), root, tip, span, sweep, dihedral)
    if rng.random() < 0.2:
        upper = z + girth + u(0.2, 0.3)
        parts += _wings((place, upper), root, tip, span, sweep, dihedral)
        for share in (0.25, 0.75):
            strut = [(place - sweep * share, span * share, end + dihedral * share) for end in (height, upper)]
            parts += pair(hull(strut, 0.025))

    fin, chord, back = u(0.3, 0.5), u(0.2, 0.32), rear + 0.03
    top = z + girth * 0.4 + fin
    outline = [(back + chord, z), (back, z), (back - 0.05, top), (back + chord * 0.45 - 0.05, top)]
    parts.append(hull([(x, 0, z) for x, z in outline], 0.03))
    stabiliser = top - 0.03 if rng.random() < 0.25 else z + girth * 0.4
    parts += _wings((back + chord * 0.3, stabiliser), chord, chord * 0.6, u(0.28, 0.45), u(0.0, 0.2), 0.0)

    pod = u(0.07, 0.11)
    match rng.choice(["propeller", "two pods", "four pods", "rear pods", "none"]):
        case "propeller":
            hub, turn = np.array([nose + 0.12, 0, z]), np.deg2rad(u(0, 180))
            blade = u(0.3, 0.4) * np.array([0, np.cos(turn), np.sin(turn)])
            parts += [hull([hub - (0.07, 0, 0)], girth * 0.5), hull([hub - blade, hub + blade], 0.04)]
        case "rear pods":
            parts += pair(hull([(rear + x, girth * 1.6, z + 0.05) for x in (0.55, 0.25)], [0.09, 0.07]))
        case "two pods" | "four pods" as pods:
            for share in (0.35, 0.65) if pods == "four pods" else (u(0.3, 0.5),):
                x, low = place + 0.15 - sweep * share, height + dihedral * share - pod
                parts += pair(hull([(x + 0.18, span * share, low), (x - 0.15, span * share, low)], [pod, pod * 0.7]))
    parts += pair(hull([(place, 0.15, z), (place, u(0.18, 0.3), 0.07)], [0.03, 0.07]))
    parts.append(hull([(nose - 0.25, 0, z), (nose - 0.25, 0, 0.06)], [0.03, 0.06]))
    return parts


def _wings(middle: tuple[float, float], root: float, tip: float, span: float, sweep: float, dihedral: float) -> Parts:
    """Both wings from their middle (x, z), chords at root and tip, span of one, and how far its tip is back and up."""
    x, z = middle
    inner = [(x + root / 2, 0, z), (x - root / 2, 0, z)]
    outer = [(x - sweep + end, span, z + dihedral) for end in (tip / 2, -tip / 2)]
    return pair(hull(inner + outer, [0.042, 0.033, 0.03, 0.024]))


def _truck(rng: Rng) -> Parts:
    """A cab, with or without a bonnet, and behind it a box, tank, tipper, crates, mixer drum or crane."""
    u = rng.uniform
    width, wheel, length = u(0.55, 0.72), u(0.17, 0.24), u(1.7, 2.4)
    front, rear, deck = length / 2, -length / 2, wheel * u(1.7, 2.1)
    bonnet, cab, roof = rng.choice([0.0, u(0.25, 0.4)]), u(0.35, 0.5), deck + u(0.55, 0.85)
    screen = front - bonnet
    back = screen - cab
    outline = [
        (back, deck - 0.1),
        (screen, deck - 0.1),
        (screen, deck + 0.22),
        (screen - u(0.02, 0.15), roof),
        (back, roof),
    ]
    parts = [slab(outline, width, 0.05), box(rear, front - 0.02, deck - 0.12, deck, width * 0.8, 0.03)]
    if bonnet:
        x, z = screen - 0.1, deck - 0.1
        parts.append(
            slab([(x, z), (front, z), (front, deck + u(0.15, 0.25)), (x, deck + 0.3)], width * u(0.75, 0.95), 0.05)
        )
    parts.append(box(front - 0.05, front + 0.06, deck - 0.16, deck - 0.04, width * 0.95, 0.03))
    axles = [front - u(0.2, 0.35), rear + u(0.2, 0.35)]
    if rng.random() < 0.6:
        axles.append(axles[1] + 2.15 * wheel)
    parts += _wheels(axles, wheel, width, u(0.12, 0.18))
    return parts + _load(rng, rear, back - u(0.08, 0.16), deck, width, roof)


def _load(rng: Rng, rear: float, front: float, deck: float, width: float, roof: float) -> Parts:
    """What a truck carries, on its deck from `rear` to `front`."""
    u = rng.uniform
    top, middle = deck + u(0.5, 1.0), (rear + front) / 2
    flatbed = box(rear, front, deck, deck + 0.06, width, 0.03)
    match rng.choice(["box", "tank", "tipper", "crates", "mixer", "crane"]):
        case "box":
            return [box(rear, front, deck, top, width * u(1.0, 1.12))]
        case "tank":
            radius = min(width, top - deck) / 2 * u(0.95, 1.1)
            tank = hull([(x, 0, deck + radius) for x in (front - radius * 0.5, rear + radius * 0.5)], radius)
            return [tank, disc((middle, 0, deck + 2 * radius), 0.1, 0.1, axis=2)]
        case "tipper":
            side, lift, half = u(0.25, 0.4), u(0.0, 0.35), width * 0.48
            floor = [(rear, deck + 0.05), (front, deck + 0.05 + lift)]
            wall = hull([(x, half, z + up) for x, z in floor for up in (0, side)], 0.035)
            bed = hull([(x, y, z) for x, z in floor for y in (-half, half)], 0.035)
            head = hull([(front, y, floor[1][1] + up) for y in (-half, half) for up in (0, side)], 0.035)
            heap = hull([(rear + 0.25, 0, deck + 0.15), (front - 0.2, 0, deck + 0.15 + lift)], width * 0.4)
            return [*pair(wall), bed, head] + [heap] * rng.integers(2)
        case "crates":
            edges = np.cumsum([rear, *u(0.25, 0.5, 2), front])[:3].clip(max=front - 0.2)
            ends = [*edges[1:], front]
            crates = [
                box(x0 + 0.02, x1 - 0.02, deck + 0.04, deck + u(0.2, 0.6), width * u(0.6, 0.95))
                for x0, x1 in zip(edges, ends)
                if x1 - x0 > 0.15
            ]
            return [flatbed, *crates]
        case "mixer":
            radius = width * u(0.45, 0.55)
            axis = [
                (front - 0.15, 0, deck + radius * 0.9),
                (middle, 0, deck + radius * 1.1),
                (rear + 0.1, 0, deck + radius * 1.7),
            ]
            return chain(axis, [radius * 0.6, radius, radius * 0.45])
    pivot = np.array([rear + u(0.2, 0.5), 0, deck + 0.2])
    tip = np.array([u(front - 0.1, front + 0.4), 0, roof + u(0.08, 0.4)])
    jib = hull([pivot + (0, 0, 0.1), tip], [0.09, 0.06])
    return [flatbed, disc(pivot, 0.2, 0.2, axis=2), jib]


def _car(rng: Rng) -> Parts:
    """Saloon, hatchback, estate, coupe, convertible or beetle, with or without things on it."""
    u = rng.uniform
    length, width, wheel = u(1.4, 1.95), u(0.65, 0.85), u(0.13, 0.18)
    front, rear = length / 2, -length / 2
    floor, waist = wheel * u(0.6, 0.9), wheel + u(0.18, 0.3)
    nose, stern, roof = waist - u(0.02, 0.14), waist - u(0.0, 0.08), waist + u(0.2, 0.34)
    kind = rng.choice(["saloon", "hatchback", "estate", "coupe", "convertible", "beetle"])
    if kind == "beetle":
        corners = [(x, side * (width / 2 - 0.2), floor + 0.2) for x in (front - 0.25, rear + 0.25) for side in (-1, 1)]
        parts = [hull(corners, [0.2, 0.2, 0.22, 0.22])]
    else:
        bumper = (floor + nose) / 2
        lower = [(rear, bumper), (rear + 0.03, floor), (front - 0.05, floor), (front, bumper)]
        upper = [(front - 0.03, nose), (length * 0.12, waist), (rear + 0.3, waist), (rear, stern)]
        parts = [slab(lower + upper, width, 0.06)]

    screen, rake = front - length * u(0.25, 0.36), u(0.15, 0.32)
    if kind == "convertible":
        glass = [(screen, 0, waist), (screen, width * 0.38, waist)]
        glass += [(screen - rake * 0.6, y, roof - 0.05) for y in (0, width * 0.33)]
        parts += pair(hull(glass, 0.03))
        for x in (screen - 0.45, screen - 0.8)[: rng.integers(1, 3)]:
            seat = [(x, y, waist + up) for y in (width * 0.12, width * 0.3) for up in (0, u(0.1, 0.2))]
            parts += pair(hull(seat, 0.06))
    else:
        # Where the cabin ends, and how far its rear window leans.
        boot, lean = {
            "saloon": (length * u(0.15, 0.22), u(0.12, 0.25)),
            "hatchback": (0.08, u(0.15, 0.25)),
            "estate": (0.03, u(0.0, 0.08)),
            "coupe": (0.15, u(0.4, 0.55)),
            "beetle": (0.15, u(0.3, 0.4)),
        }[kind]
        tail = rear + boot
        outline = [(tail, waist - 0.05), (screen, waist - 0.05), (screen - rake, roof), (tail + lean, roof)]
        parts.append(slab(outline, width * 0.95, 0.07, taper=u(0.78, 0.92)))
        if rng.random() < 0.25:
            middle, reach = (tail + lean + screen - rake) / 2, rng.choice([0.06, 0.2])
            parts.append(box(middle - reach, middle + reach, roof, roof + u(0.08, 0.18), width * u(0.4, 0.6)))
    match rng.choice(["spoiler", "spare wheel", "nothing", "nothing"]):
        case "spoiler":
            blade = [(rear + x, y, stern + 0.16) for x in (0.05, 0.16) for y in (-width * 0.42, width * 0.42)]
            parts += [
                hull(blade, 0.025),
                *pair(hull([(rear + 0.1, width * 0.3, stern + up) for up in (0, 0.15)], 0.03)),
            ]
        case "spare wheel":
            parts.append(disc((rear - 0.06, 0, waist - 0.05), 0.17, 0.12, axis=0))
    parts.append(box(front - 0.06, front + 0.05, floor + 0.02, floor + 0.12, width * 0.92, 0.03))
    parts.append(box(rear - 0.05, rear + 0.06, floor + 0.04, floor + 0.14, width * 0.92, 0.03))
    axles = (front - length * u(0.17, 0.22), rear + length * u(0.17, 0.22))
    return parts + _wheels(axles, wheel, width * u(0.92, 1.0), u(0.12, 0.16))


def _wheels(axles, radius: float, track: float, thickness: float) -> Parts:
    return pair(*(disc((x, track / 2, radius), radius, thickness, axis=1) for x in axles))
