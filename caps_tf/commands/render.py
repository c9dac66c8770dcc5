"""Renders a set of toys in the format of smallNORB: renderedNORB.

    python data/render_norb.py                                            all of it: 2 x 24,300 stereo pairs
    python data/render_norb.py --elevations=3 --azimuths=6 --lightings=2  2 x 900 pairs, evenly spread over the views
    python data/render_norb.py --azimuths=300,320,340,0,20,40             all elevations and lightings of six azimuths

writes six files and rendering.json (the parameters) to data/renderedNORB. A second run with the same flags does
nothing. For one seed the files are the same whatever the number of processes.
"""

import signal
from pathlib import Path

from absl import flags

from caps_tf.errors import UserError
from caps_tf.scripts import run_script

_HOW = "one number: how many, evenly spread; a list with commas: exactly these (a list of one: '40,')"
flags.disclaim_key_flags()  # they belong to what is run: --help lists its own
FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("storage", ".", "directory that holds data/ and logs/")
    flags.DEFINE_string("data_dir", None, "where the files go [<storage>/data/renderedNORB]")
    flags.DEFINE_integer("seed", 0, "of the shapes of the toys", lower_bound=0)
    flags.DEFINE_integer("instances_per_split", 5, "toys of each category in each split", lower_bound=1, upper_bound=5)
    flags.DEFINE_string("elevations", "9", f"of the cameras, degrees 30, 35, ..., 70; {_HOW}")
    flags.DEFINE_string("azimuths", "18", f"of the toys, degrees 0, 20, ..., 340; {_HOW}")
    flags.DEFINE_string("lightings", "6", f"0 to 5; {_HOW}")
    flags.DEFINE_integer("image_size", 96, "pixels", lower_bound=8, upper_bound=512)
    flags.DEFINE_integer("num_processes", None, "processes that render [all cores]", lower_bound=1)
    flags.DEFINE_bool("overwrite", False, "render again, and over another rendering in data_dir")


def main(argv: list[str]) -> None:
    del argv
    try:
        from caps_tf.rendering import norb
    except ImportError as error:
        raise UserError(
            f"rendering needs trimesh, embreex and scipy ({error}): pip install trimesh embreex scipy"
        ) from None
    # A terminated run cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(FLAGS.data_dir or Path(FLAGS.storage, "data", "renderedNORB"))
    views = {axis: norb.choose(axis, str(FLAGS[axis].value)) for axis in ("elevations", "azimuths", "lightings")}
    grid = norb.Grid(FLAGS.instances_per_split, **views, image_size=FLAGS.image_size)
    rendered = norb.render_set(
        directory, grid, seed=FLAGS.seed, num_processes=FLAGS.num_processes, overwrite=FLAGS.overwrite
    )
    what = f"{grid.pairs_per_split} training and {grid.pairs_per_split} testing pairs"
    print(f"{directory}: {what}" + ("" if rendered else ", already there (--overwrite renders them again)"))


def run() -> None:
    """data/render_norb.py and caps-tf-render."""
    define_flags()
    run_script(main, __doc__)
