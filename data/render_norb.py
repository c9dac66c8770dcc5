"""Renders a set of toys in the format of smallNORB: renderedNORB.

    python data/render_norb.py                                            all of it: 2 x 24,300 stereo pairs
    python data/render_norb.py --elevations=3 --azimuths=6 --lightings=2  2 x 900 pairs, evenly spread over the views
    python data/render_norb.py --azimuths=300,320,340,0,20,40             all elevations and lightings of six azimuths

writes six files and rendering.json (the parameters) to data/renderedNORB. A second run with the same flags does
nothing. For one seed the files are the same whatever the number of processes.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.data import norb_format
from caps_tf.errors import UserError, run_script

_HOW = "one number: so many, evenly spread; several with commas: exactly these (a lone one: '40,')"
_AXES = {
    "elevations": {30 + 5 * value: value for value in norb_format.ELEVATIONS},
    "azimuths": {10 * value: value for value in norb_format.AZIMUTHS},
    "lightings": {value: value for value in norb_format.LIGHTINGS},
}

FLAGS = flags.FLAGS
flags.DEFINE_string("storage", ".", "directory that holds data/ and logs/")
flags.DEFINE_string("data_dir", None, "where the files go [<storage>/data/renderedNORB]")
flags.DEFINE_integer("seed", 0, "of the shapes of the toys", lower_bound=0)
flags.DEFINE_integer("instances_per_split", 5, "toys of each category in each split", lower_bound=1, upper_bound=5)
flags.DEFINE_string("elevations", "9", f"of the cameras, degrees 30, 35, ..., 70; {_HOW}")
flags.DEFINE_string("azimuths", "18", f"of the toys, degrees 0, 20, ..., 340; {_HOW}")
flags.DEFINE_string("lightings", "6", f"0 to 5; {_HOW}")
flags.DEFINE_integer("image_size", 96, "pixels", lower_bound=8, upper_bound=1024)
flags.DEFINE_integer("num_processes", None, "processes that render [all cores]", lower_bound=1)
flags.DEFINE_bool("overwrite", False, "render again, and over another rendering in data_dir")


def choose(axis: str, text: str) -> tuple[int, ...]:
    """Turns a flag into values of the info file, ascending.

    A number of azimuths is spread around the circle, the others from the first value to the last.

    Raises:
        UserError: not numbers, too many, unknown values, or a value twice.

    Example:
        >>> choose("azimuths", "3"), choose("elevations", "3"), choose("azimuths", "340,0,20")
        ((0, 12, 24), (0, 4, 8), (0, 2, 34))
    """
    known = _AXES[axis]
    try:
        numbers = [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise UserError(f"--{axis}={text}: needs whole numbers, {_HOW}") from None
    if "," not in text and numbers:
        return _spread(axis, numbers[0], list(known.values()))
    unknown = [number for number in numbers if number not in known]
    if unknown or not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"--{axis}={text}: choose, each once, from {', '.join(map(str, known))}")
    return tuple(sorted(known[number] for number in numbers))


def _spread(axis: str, count: int, values: Sequence[int]) -> tuple[int, ...]:
    if not 1 <= count <= len(values):
        raise UserError(f"--{axis}={count}: there are 1 to {len(values)} {axis}; for exactly this value write '{count},'")
    if axis == "azimuths":
        return tuple(values[i * len(values) // count] for i in range(count))
    return tuple(values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count))


def main(argv: list[str]) -> None:
    del argv
    chosen = {axis: choose(axis, FLAGS[axis].value) for axis in _AXES}
    try:
        from caps_tf.data import rendered_norb
    except ImportError as error:
        raise UserError(f"rendering needs trimesh, embreex and scipy ({error}): pip install trimesh embreex scipy") from None
    # A terminated run cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(FLAGS.data_dir or Path(FLAGS.storage, "data", "renderedNORB"))
    grid = rendered_norb.Grid(FLAGS.instances_per_split, **chosen, image_size=FLAGS.image_size)
    rendered = rendered_norb.render_set(
        directory, grid, seed=FLAGS.seed, num_processes=FLAGS.num_processes, overwrite=FLAGS.overwrite
    )
    what = f"{grid.pairs_per_split} training and {grid.pairs_per_split} testing pairs"
    print(f"{directory}: {what}" + ("" if rendered else ", already there (--overwrite renders them again)"))


if __name__ == "__main__":
    run_script(main)
