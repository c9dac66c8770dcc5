"""Renders an image folder of toys seen from all sides, for learning to know objects again from few images.

    python data/render_view_folders.py --output=data/toys20
    python train_val.py --preset=small_attention --dataset=data/toys20

writes train/<toy>/*.png and test/<toy>/*.png: 20 toys, which are the classes, 4 of each of five categories, each seen
every 5 degrees of azimuth by the left camera at one elevation in one lighting. Views within 60 degrees of the front
train, -60 inclusive and 60 exclusive: the 24 at -60, -55, ..., 55. The other 48 test. A second run with the same flags
does nothing. The names of the files hold category, toy and viewpoint; data/convert_views_to_tfrecord.py reads them with

    --pattern='.*/(?P<category>[a-z]+)_(?P<object>[0-9]+)_elevation(?P<elevation>[0-9]+)_azimuth(?P<azimuth>[0-9]+)_.*'
"""

import signal
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.errors import UserError
from caps_tf.scripts import run_script

FLAGS = flags.FLAGS
flags.DEFINE_string("output", None, "folder to make", required=True)
flags.DEFINE_integer("toys", 20, "how many, of the five categories in turn", lower_bound=2)
flags.DEFINE_integer("step", 5, "degrees of azimuth between two views; divides 360", lower_bound=1)
flags.DEFINE_integer("train_within", 60, "degrees of azimuth on either side of the front that train", lower_bound=1)
flags.DEFINE_integer("image_size", 96, "pixels", lower_bound=8, upper_bound=512)
flags.DEFINE_integer("elevation", 30, "of the camera, degrees", lower_bound=30, upper_bound=70)
flags.DEFINE_integer("lighting", 0, "one of the six, 0 to 5", lower_bound=0, upper_bound=5)
flags.DEFINE_integer("seed", 0, "of the shapes of the toys", lower_bound=0)
flags.DEFINE_integer("num_processes", None, "processes that render [all cores]", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    try:
        from caps_tf.rendering import folder
    except ImportError as error:
        raise UserError(
            f"rendering needs trimesh, embreex and scipy ({error}): pip install trimesh embreex scipy"
        ) from None
    # A terminated run cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    axes = ("toys", "step", "train_within", "image_size", "elevation", "lighting", "seed")
    views = folder.ToyViews(**{axis: FLAGS[axis].value for axis in axes})
    rendered = folder.render_folder(FLAGS.output, views, FLAGS.num_processes)
    train, test = (views.toys * len(views.azimuths(split)) for split in ("train", "test"))
    what = f"{train} training and {test} test images of {views.toys} toys"
    print(f"{FLAGS.output}: {what}" + ("" if rendered else ", already there"))


if __name__ == "__main__":
    run_script(main)
