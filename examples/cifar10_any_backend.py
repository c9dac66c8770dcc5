"""Trains capsules with inverted dot-product attention on an image folder, with nothing but Keras, NumPy and Pillow.

    KERAS_BACKEND=jax python examples/cifar10_any_backend.py --data=path/to/cifar10 --directory=runs/first

The layers run on TensorFlow, JAX or PyTorch, whichever KERAS_BACKEND names. The folder holds
train/<class>/*.png and test/<class>/*.png (or .jpg), all of one size. The images stay on the device as bytes; a batch is
a list of their numbers, and cropping, mirroring and normalising are layers. After each epoch one line of JSON goes to the
screen and to <directory>/log.jsonl; started again with the same directory, training goes on after the last line.

By default this is the published regime (Tsai et al. 2020): the network with a residual backbone, 350 epochs of SGD with
momentum 0.9, rate 0.1 divided by 10 after 150 and 250 epochs, weight decay 5e-4, batches of 128.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np
from keras import ops
from PIL import Image

from caps_tf.errors import UserError
from caps_tf.models import attention_capsules
from caps_tf.optimizers import MomentumSGD

CHANNEL_MEANS, CHANNEL_DEVIATIONS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SUFFIXES = (".png", ".jpg", ".jpeg")


def read_folder(directory: Path, classes: list[str], limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads <class>/<image> files: images uint8 [n, rows, columns, 3] and labels int32 [n]; `limit` of each class."""
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted(path for path in (directory / name).iterdir() if path.suffix.lower() in SUFFIXES)[:limit]
    ]
    if not files:
        raise UserError(f"{directory}: holds no images: expected <class>/*.png or *.jpg")

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(read, (path for path, _ in files)))
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise UserError(
            f"{directory}: images differ in size ({', '.join(map(str, sorted(sizes)))}): resize them to one"
        )
    return np.stack(images), np.array([label for _, label in files], "int32")


class ImageBank(keras.layers.Layer):
    """Holds all images on the device, as a weight that is neither trained nor saved; gives those of a batch."""

    def __init__(self, images: np.ndarray, **kwargs):
        super().__init__(**kwargs)
        self._images = images

    def build(self, input_shape):
        self.bank = self.add_weight(
            shape=self._images.shape,
            dtype="uint8",
            initializer=lambda shape, dtype: ops.convert_to_tensor(self._images, dtype),
            trainable=False,
            autocast=False,
            name="bank",
        )

    def call(self, numbers):
        return ops.take(self.bank, numbers, axis=0)

    def compute_output_spec(self, numbers):
        return keras.KerasTensor((*numbers.shape, *self._images.shape[1:]), "uint8")

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


class CropFlipNormalize(keras.layers.Layer):
    """In training, shifts each image by up to `padding` pixels over black and mirrors half of them; then normalises.

    A row of the crop is one row of the image, or none where the crop overhangs: a matrix of zeros and ones that the
    image is multiplied with, on both sides. Mirroring turns the order of its columns.
    """

    def __init__(self, padding: int = 4, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.padding = padding
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images, training=False):
        images = ops.cast(images, "float32") / 255.0
        if training:
            batch, rows, columns, _ = ops.shape(images)
            row = self._shifted(batch, rows)
            column = self._shifted(batch, columns)
            mirrored = keras.random.uniform((batch, 1), seed=self.seed_generator) < 0.5
            column = ops.where(mirrored, ops.flip(column, axis=1), column)
            picked_rows = ops.cast(row[:, :, None] == ops.arange(rows), "float32")
            picked_columns = ops.cast(column[:, :, None] == ops.arange(columns), "float32")
            images = ops.einsum("brh,bhwc->brwc", picked_rows, images)
            images = ops.einsum("bsw,brwc->brsc", picked_columns, images)
        images = (images - ops.array(CHANNEL_MEANS)) / ops.array(CHANNEL_DEVIATIONS)
        return ops.cast(images, self.compute_dtype)

    def _shifted(self, batch, size):
        """The row (or column) of the image that each row of the crop shows, [batch, size]."""
        offsets = keras.random.randint((batch, 1), -self.padding, self.padding + 1, seed=self.seed_generator)
        return offsets + ops.arange(size, dtype="int32")

    def compute_output_spec(self, images, training=False):
        return keras.KerasTensor(images.shape, self.compute_dtype)


def largest_divisor(number: int, limit: int) -> int:
    return next(size for size in range(min(number, limit), 0, -1) if number % size == 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="image folder: train/<class>/*.png, test/<class>/*.png"
    )
    parser.add_argument("--directory", type=Path, required=True, help="where the log and the weights go")
    parser.add_argument("--config", default="cifar10", help="cifar10, cifar100, or a JSON file")
    parser.add_argument("--backbone", default="resnet", help="resnet or simple")
    parser.add_argument("--num_routing", type=int, default=2, help="routing iterations")
    parser.add_argument("--sequential_routing", action="store_true", help="route layer by layer")
    parser.add_argument("--dropout", type=float, default=0.0, help="share of capsules' elements dropped in training")
    parser.add_argument("--votes_at_a_time", type=int, default=2**24, help="bytes; on an accelerator 2**30 or more")
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision; routing stays in float32")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=350)
    parser.add_argument("--rate", type=float, default=0.1, help="learning rate at the start")
    parser.add_argument(
        "--drops", type=int, nargs="*", default=[150, 250], help="epochs after which the rate is a tenth"
    )
    parser.add_argument("--weight_decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=None, help="images of each class and split, to try things out")
    return parser.parse_args()


def make_model(options: argparse.Namespace, images: np.ndarray, num_classes: int, steps: int) -> keras.Model:
    """The network on a bank of images, from their numbers to scores, compiled for `steps` steps an epoch."""
    network = attention_capsules(
        images.shape[1:],
        num_classes,
        options.config,
        options.backbone,
        iterations=options.num_routing,
        sequential_routing=options.sequential_routing,
        dropout=options.dropout,
        votes_at_a_time=options.votes_at_a_time,
    )
    numbers = keras.Input((), dtype="int32", name="number")
    model = keras.Model(numbers, network(CropFlipNormalize(seed=options.seed)(ImageBank(images)(numbers))))
    boundaries = [epoch * steps - 1 for epoch in options.drops]
    rates = [options.rate / 10**drop for drop in range(len(boundaries) + 1)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates) if boundaries else options.rate
    model.compile(
        MomentumSGD(schedule, 0.9, l2=options.weight_decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def train(
    options: argparse.Namespace, model: keras.Model, labels: np.ndarray, test_labels: np.ndarray, steps: int
) -> None:
    """Trains and tests epoch by epoch, from the last that was saved on. The bank holds training images first."""
    test_numbers = np.arange(len(labels), len(labels) + len(test_labels), dtype="int32")
    test_batch = largest_divisor(len(test_numbers), options.batch_size)
    options.directory.mkdir(parents=True, exist_ok=True)
    saved, log = options.directory / "last.weights.h5", options.directory / "log.jsonl"
    if saved.exists():
        model.load_weights(saved)
    first_epoch = int(ops.convert_to_numpy(model.optimizer.iterations)) // steps
    for epoch in range(first_epoch, options.epochs):
        # Full batches only; the images left out are others in every epoch.
        order = np.random.default_rng([options.seed, epoch]).permutation(len(labels))[: steps * options.batch_size]
        start = time.monotonic()
        history = model.fit(order.astype("int32"), labels[order], options.batch_size, shuffle=False, verbose=0).history
        seconds = time.monotonic() - start
        loss, accuracy = model.evaluate(test_numbers, test_labels, test_batch, verbose=0)
        line = {
            "epoch": epoch + 1,
            "images_per_second": round(len(order) / seconds, 1),
            "seconds": round(seconds, 2),
            "loss": round(history["loss"][-1], 4),
            "accuracy": round(history["accuracy"][-1], 4),
            "test_loss": round(loss, 4),
            "test_accuracy": round(accuracy, 4),
            "backend": keras.config.backend(),
        }
        unfinished = options.directory / "unfinished.weights.h5"
        model.save_weights(unfinished)
        os.replace(unfinished, saved)
        with log.open("a") as file:
            print(json.dumps(line), file=file)
        print(json.dumps(line), flush=True)


def main() -> None:
    options = parse_arguments()
    keras.utils.set_random_seed(options.seed)
    if options.bfloat16:
        keras.config.set_dtype_policy("mixed_bfloat16")
    if not (options.data / "train").is_dir():
        raise UserError(f"{options.data}: holds no folder train: expected train/<class>/*.png and test/<class>/*.png")
    classes = sorted(path.name for path in (options.data / "train").iterdir() if path.is_dir())
    images, labels = read_folder(options.data / "train", classes, options.limit)
    test_images, test_labels = read_folder(options.data / "test", classes, options.limit)
    steps = len(images) // options.batch_size
    if not steps:
        raise UserError(
            f"{len(images)} training images do not fill a batch of {options.batch_size}: lower --batch_size"
        )
    model = make_model(options, np.concatenate([images, test_images]), len(classes), steps)
    train(options, model, labels, test_labels, steps)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
