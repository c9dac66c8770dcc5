"""Says what a trained network sees in images.

    caps-tf-predict --model=NAME_OR_DIR toy.png photograph.jpg        # or python -m caps_tf.predict
    caps-tf-predict --model=NAME_OR_DIR --format=json --picture=pictures *.png
    caps-tf-predict --model=list                                      # the names that there are

NAME_OR_DIR is a trained network's name, or a directory that `python -m caps_tf.export` wrote. Images may be of any kind,
size and colours; what is done to make them fit is said beside the answer. `share` is the softmax of the scores where
they are logits, else a score's part of their sum; neither is calibrated. Pictures show where the parts are that were
routed to a class rather than to the others.

Exit codes: 0 all images judged, 1 an error, in one line, also where some images could not be read.
"""

import importlib.util
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from caps_tf.data.any_image import fit_image, read_any_image
from caps_tf.errors import UserError
from caps_tf.scripts import run_script
from caps_tf.startup import start_keras
from caps_tf.weights import Card, list_weights, load_card

flags.disclaim_key_flags()  # they belong to what is run: --help lists its own
FLAGS = flags.FLAGS
BATCH = 16


def define_flags() -> None:
    flags.DEFINE_string("model", None, "name or directory of a trained network; list names all")
    flags.DEFINE_enum("format", "table", ["table", "json"], "of the answers: a table, or a line of JSON for each image")
    flags.DEFINE_integer("top", 3, "classes in the table and in pictures", lower_bound=1)
    flags.DEFINE_string("picture", None, "directory for a picture of each image and its routing")


def main(argv: list[str]) -> None:
    if FLAGS.model == "list":
        print("\n".join(f"{name}  {load_card(name).summary}" for name in list_weights()))
        return
    paths = argv[1:]
    if not FLAGS.model:
        raise UserError("say which network: --model=NAME_OR_DIR; --model=list names all")
    if not paths:
        raise UserError("name the images, behind the flags")
    card = load_card(FLAGS.model)
    if card.image_shape[2] == 2:
        raise UserError(
            f"{card.name} takes stereo pairs, and a file is one image: give arrays [n, rows, columns, 2] to "
            f"caps_tf.models.from_preset({FLAGS.model!r})"
        )
    if FLAGS.picture and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--picture needs matplotlib: pip install matplotlib")
    start_keras()
    from caps_tf.models import from_preset
    from caps_tf.predict import judge

    model = from_preset(FLAGS.model)
    failures: list[UserError] = []
    if FLAGS.format == "table":
        print(f"{'image':30} {'done':40} class  share")
    taken: set[str] = set()
    for batch in _batches(paths, card, failures):
        judgement = judge(model, np.stack([pixels for _, pixels, _ in batch]))
        for number, (path, pixels, done) in enumerate(batch):
            shares = judgement.shares[number]
            best = np.argsort(-shares, kind="stable")[: FLAGS.top]
            if FLAGS.picture:
                done += f"; {_draw(model, path, picture_name(path, taken), pixels, best, shares)}"
            if FLAGS.format == "table":
                said = ", ".join(f"{model.class_names[label]} {shares[label]:.1%}" for label in best)
                print(f"{path:30} {done:40} {said}")
            else:
                poses = None if judgement.poses is None else judgement.poses[number]
                print(_as_json(path, done, model.class_names, judgement.scores[number], shares, poses))
    if failures:
        raise UserError(f"{len(failures)} of {len(paths)} images were left out: {failures[0]}")


def _batches(paths: list[str], card: Card, failures: list[UserError]) -> Iterator[list[tuple[str, np.ndarray, str]]]:
    """Images that fit, with what was done to them, a few at a time; what cannot be read goes to `failures`."""
    batch = []
    for path in paths:
        try:
            batch.append((path, *fit_image(read_any_image(path), card.image_shape, card.part_of_canvas)))
        except UserError as error:
            failures.append(error)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _as_json(path: str, done: str, names, scores: np.ndarray, shares: np.ndarray, poses: np.ndarray | None) -> str:
    def by_class(values: np.ndarray) -> dict[str, object]:
        return {name: np.round(value, 6).tolist() for name, value in zip(names, values, strict=True)}

    answer = {"image": path, "class": names[int(shares.argmax())], "done": done}
    answer |= {"scores": by_class(scores), "shares": by_class(shares)}
    return json.dumps(answer if poses is None else {**answer, "poses": by_class(poses)})


def picture_name(path: str, taken: set[str]) -> str:
    """The name of an image's picture, with a number where other images have that name; `taken` comes to hold it.

    Example:
        >>> taken: set[str] = set()
        >>> [picture_name(path, taken) for path in ("cars/1.png", "toys/1.png", "toys/2.png")]
        ['1.png.png', '1.png-2.png', '2.png.png']
    """
    name = Path(path).name
    numbered = (f"{name}.png" if number == 1 else f"{name}-{number}.png" for number in itertools.count(1))
    unique = next(each for each in numbered if each not in taken)
    taken.add(unique)
    return unique


def _draw(model, path: str, name: str, pixels: np.ndarray, best: np.ndarray, shares: np.ndarray) -> Path:
    from caps_tf.evaluation.credit import image_credit
    from caps_tf.evaluation.style import save_figure
    from caps_tf.predict import routing_map

    routed = routing_map(model, pixels)[:, :, best]
    shown = pixels if pixels.shape[2] in (1, 3) else pixels[:, :, :1]
    names = [f"{model.class_names[label]} {shares[label]:.1%}" for label in best]
    figure = image_credit(shown.round().astype("uint8"), routed, names, Path(path).name)
    assert figure is not None, "there is at least one class"
    return save_figure(figure, Path(FLAGS.picture, name))


def run() -> None:
    """caps-tf-predict and python -m caps_tf.predict."""
    define_flags()
    run_script(main, __doc__, positional=True)
