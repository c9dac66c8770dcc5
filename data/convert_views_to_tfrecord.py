"""Converts photographs of objects over viewpoint into a TFRecord directory that `--dataset` accepts.

    python data/convert_views_to_tfrecord.py --source=path/to/eth80 --data_dir=data/eth80
    python train_val.py --dataset=data/eth80 --val_instances=4 --viewpoints=azimuth:-67..67

The names of the files tell category, object and viewpoint; --pattern says how, in named groups. The default reads
cup/cup03_polar045_azimuth090.png; elevation is 90 - polar. Objects never trained on test. Images become grey unless
--colour is given. Viewpoints are kept in degrees. What does not match the pattern, and views that some objects lack,
are counted on stderr.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.data import conversion, view_records
from caps_tf.scripts import run_script
from caps_tf.training.config import parse_size

FLAGS = flags.FLAGS
flags.DEFINE_string("source", None, "folder that holds the images, at any depth", required=True)
flags.DEFINE_string("data_dir", None, "directory to write", required=True)
flags.DEFINE_string(
    "pattern",
    view_records.ETH_80,
    "regular expression of a path within the source, with groups (?P<category>...), object, azimuth, and perhaps "
    "elevation or polar (0 elevation without either) and lighting",
)
flags.DEFINE_string(
    "train_objects",
    "5",
    "objects of each category that train; one number: how many, from the first on; a list with commas: exactly these "
    "(a list of one: '3,')",
)
flags.DEFINE_string("image_size", "", "pixels to resize to, N or ROWSxCOLUMNS [as they are, if square and of one size]")
flags.DEFINE_bool("colour", False, "keep the colours")
flags.DEFINE_integer("num_shards", 16, "files a split", lower_bound=1, upper_bound=99999)
flags.DEFINE_integer("seed", 0, "of the order of the records", lower_bound=0)
flags.DEFINE_integer("num_threads", None, "threads that encode [all cores]", lower_bound=1)
flags.DEFINE_bool("overwrite", False, "start from scratch, whatever is there")


def tell_count(what: str, cases: Sequence[str]) -> None:
    """Says on stderr how many cases there are, if any."""
    if cases:
        print(f"{len(cases)} {what}, the first: {cases[0]}", file=sys.stderr)


def describe(
    objects: Mapping[str, Sequence[str]], trains: Mapping[str, Sequence[str]], instances: Mapping[tuple[str, str], int]
) -> list[str]:
    """One line a category: the objects that train and test, each with its instance."""
    lines = []
    for category, names in objects.items():
        parts = ([name for name in names if (name in trains[category]) == training] for training in (True, False))
        train, test = (", ".join(f"{name} ({instances[category, name]})" for name in part) for part in parts)
        lines.append(f"{category}: {train} train; {test} test")
    return lines


def main(argv: list[str]) -> None:
    del argv
    source, output = Path(FLAGS.source), Path(FLAGS.data_dir)
    size = parse_size(FLAGS.image_size, "image_size")
    views, unmatched = view_records.find_views(source, FLAGS.pattern)
    objects = view_records.objects_by_category(views)
    trains = view_records.training_objects(objects, FLAGS.train_objects)
    instances = view_records.number_objects(objects)
    shape = view_records.image_shape(source, views, size, FLAGS.colour)
    tell_count("files do not match the pattern", unmatched)
    tell_count("views that other objects have are missing", view_records.missing_views(views))

    splits = {"train": [], "test": []}
    for view in views:
        splits["train" if view.object in trains[view.category] else "test"].append(view)
    categories = list(objects)
    sources = {
        split: view_records.ViewRecords(source, part, categories, instances, shape) for split, part in splits.items()
    }
    lines = describe(objects, trains, instances)
    name = re.sub(r"\W+", "_", output.resolve().name).lower()
    schema = view_records.view_schema(name, shape, categories, f"Objects (instances). {'. '.join(lines)}.")
    written = conversion.convert(
        output,
        schema,
        sources,
        num_shards=FLAGS.num_shards,
        seed=FLAGS.seed,
        num_threads=FLAGS.num_threads,
        overwrite=FLAGS.overwrite,
    )
    counts = " and ".join(f"{len(records)} {split}" for split, records in sources.items())
    print("\n".join(["objects (instances):", *lines]))
    print(f"{output}: {counts} images, {f'{written} shards written' if written else 'verified'}")


if __name__ == "__main__":
    run_script(main)
