"""Attacks the images of a test, and has a trained network judge what they have become.

What is attacked are the pixels that a network reads, from 0 to 1, before they are normalised. Where images are
normalised by their own mean and deviation, an attack changes these as well, and the gradient knows it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from caps_tf.any_backend.augmentation import central_crop, normalize
from caps_tf.attacks import basic_iterative, fgsm
from caps_tf.data.preprocessing import Preprocessing
from caps_tf.errors import UserError
from caps_tf.evaluation.predictions import Predictions
from caps_tf.evaluation.robustness import AttackResult, Robustness, Round, attack_result
from caps_tf.progress import Progress
from caps_tf.training.attack_config import LEAST_LIKELY, AttackConfig
from caps_tf.training.checkpoints import find_checkpoints
from caps_tf.training.compilation import split_at_routing
from caps_tf.training.config import RunConfig
from caps_tf.training.data import TestData, TestPart, image_preprocessing, make_test_data
from caps_tf.training.factories import LossFunction, make_loss
from caps_tf.training.params import load_params
from caps_tf.training.steps import Batch, make_scorer
from caps_tf.training.tester import Tester

MARGIN = 1.0
"""Of the spread loss that is attacked: the most by which one class can be ahead. With the margin of training, the gradient
of an image that is right by more would be zero, and nothing would be attacked."""
_WITHOUT_SLACK = {"present": 1.0, "absent": 0.0}
"""m+ and m- of the margin loss that is attacked, for the same reason: lengths of 0.95 and 0.05 cost nothing in training."""

ImageGradient = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""What a network reads of images, [b, h, w, c], the images [b, H, W, c] that it is the middle of, and labels [b], to the
gradient of the loss with respect to the first."""


class Judge(NamedTuple):
    """A trained network, and how it reads images.

    Attributes:
        model: from "image" to scores.
        loss_function: loss of each example.
        preprocessing: what is done to images before.
        jit_compile: whether XLA compiles the capsules.
    """

    model: keras.Model
    loss_function: LossFunction
    preprocessing: Preprocessing
    jit_compile: bool = False


class Attacker:
    """Has a network judge images that were made with its own gradient, or with another network's.

    Args:
        strategy: what the networks were made under.
        victim: the network that judges.
        source: the network whose gradient is used; `victim` itself for a white box, another for a black box.
        config: the attack.
        class_names: in the order of the labels.
        parts: of the test, by name: whole images with pixels from 0 to 1, `make_test_data(config, whole=True)`.

    Raises:
        UserError: if the target is no class.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        victim: Judge,
        source: Judge,
        config: AttackConfig,
        class_names: tuple[str, ...],
        parts: Mapping[str, TestPart],
    ):
        self._config, self._class_names, self._parts = config, class_names, parts
        self._targets = config.targets(class_names)
        attack = make_attack(victim.preprocessing, source, config)
        self._score = make_scorer(strategy, victim.model, victim.loss_function, victim.jit_compile, prepare=attack)

    def measure(self) -> Robustness:
        """Attacks each part of the test with each epsilon.

        Raises:
            UserError: the network's output is not finite, or no image is of another class than the target.
        """
        results = {name: self._attack(name, part) for name, part in self._parts.items()}
        settings = dataclasses.asdict(self._config)
        return Robustness(self._config.title, settings, len(self._class_names), results)

    def _attack(self, name: str, part: TestPart) -> list[AttackResult]:
        part = evenly_spread(part, self._config.examples)
        total = part.num_examples * len(self._targets) * len(self._config.epsilons)
        with Progress(total, "images", label=f"attacking {name}") as progress:
            return [
                attack_result(epsilon, [self._round(part, epsilon, target, progress) for target in self._targets])
                for epsilon in self._config.epsilons
            ]

    def _round(self, part: TestPart, epsilon: float, target: int, progress: Progress) -> Round:
        def add(batch: Batch) -> Batch:
            shape = tf.shape(batch["label"])
            return {**batch, "epsilon": tf.fill(shape, np.float32(epsilon)), "aim": tf.fill(shape, np.int32(target))}

        scored = []
        for each in self._score(part.batches.map(add), MARGIN):
            scored.append(each)
            progress.update(len(each.losses))
        known = {name: np.concatenate([each.batch[name] for each in scored]) for name in ("label", "aim", "zeros")}
        predictions = Predictions(
            scores=np.concatenate([each.outputs[0] for each in scored]),
            label=known["label"],
            loss=float(np.concatenate([each.losses for each in scored]).mean()),
            class_names=self._class_names,
        )
        return Round(predictions, known["aim"] if self._config.target else None, known["zeros"])


def open_attacker(
    config: RunConfig, attack: AttackConfig, tester: Tester, data: TestData, strategy: tf.distribute.Strategy
) -> Attacker:
    """Opens what an attack on a run takes: its test images before they are normalised, and the other run of a black box.

    Args:
        config: parameters of the tested run.
        attack: the attack; of another run the newest checkpoint is used.
        tester: restores the tested network, before or after this.
        data: of the tested run.
        strategy: devices.

    Raises:
        UserError: if the data are no images, the target is no class, or the other run cannot be read or learned from
            other images.
    """
    attack.targets(data.class_names)
    victim = source = Judge(tester.model, make_attacked_loss(config), image_preprocessing(config), config.uses_xla)
    if attack.source:
        other = _source_config(config, attack.source)
        preprocessing = image_preprocessing(other)
        check_same_pixels(victim.preprocessing, preprocessing)
        checkpoints = find_checkpoints(Path(attack.source, "train", "checkpoints"), "latest")
        restored = Tester(other, data.input_shapes, data.class_names, strategy)
        restored.restore(checkpoints[0])
        source = Judge(restored.model, make_attacked_loss(other), preprocessing, other.uses_xla)
    parts = make_test_data(config, whole=True).parts
    return Attacker(strategy, victim, source, attack, data.class_names, parts)


def make_attacked_loss(config: RunConfig) -> LossFunction:
    """The loss of a run as it is attacked: with a gradient also where an image is well recognised.

    Example:
        >>> loss, lengths = make_attacked_loss(RunConfig(network="capsnet")), tf.constant([[0.95, 0.05]])
        >>> keras.ops.convert_to_numpy(loss(tf.constant([0]), lengths, MARGIN)).round(5)   # 0.05^2 + 0.05^2 / 2
        array([0.00375], dtype=float32)
    """
    loss = make_loss(config)
    return functools.partial(loss, **_WITHOUT_SLACK) if config.loss_name == "margin" else loss


def _source_config(config: RunConfig, directory: str) -> RunConfig:
    """Parameters of the run whose gradient is used, with the tested run's data and devices."""
    other = RunConfig(**load_params(Path(directory, "train", "params.json")))
    if Path(other.dataset).name != Path(config.dataset).name:
        raise UserError(
            f"{directory} learned from {other.dataset}, and the tested run from {config.dataset}: name a run on the "
            "same data as `attack_from`"
        )
    same = ("dataset", "storage", "data_dir", "batch_size", "num_gpus", "cluster")
    return dataclasses.replace(other, **{name: getattr(config, name) for name in same})


def check_same_pixels(victim: Preprocessing, source: Preprocessing) -> None:
    """Refuses networks that read different pixels; how they normalise them may differ.

    Raises:
        UserError: naming what differs.

    Example:
        >>> check_same_pixels(Preprocessing(crop=(32, 32)), Preprocessing(crop=(32, 32), normalize="none"))
    """
    for name in ("protocol", "views", "resize", "crop"):
        mine, other = getattr(victim, name), getattr(source, name)
        if mine != other:
            raise UserError(
                f"`attack_from` reads other images than this run ({name} {other or 'none'}, not {mine or 'none'}): "
                "name a run that reads the same pixels"
            )


def evenly_spread(part: TestPart, examples: int) -> TestPart:
    """Every so many of a part's batches, with at least so many examples (0: all of them).

    Example:
        >>> batches = tf.data.Dataset.range(100).map(lambda number: {"label": number}).batch(10, drop_remainder=True)
        >>> some = evenly_spread(TestPart(batches, 100), 25)
        >>> some.num_examples, [int(batch["label"][0]) for batch in some.batches]
        (40, [0, 30, 60, 90])
    """
    size = part.batches.element_spec["label"].shape[0]
    batches = -(-part.num_examples // size)
    stride = max(1, batches // -(-examples // size)) if examples else 1
    if stride == 1:
        return part
    chosen = range(0, batches, stride)
    missing = batches * size - part.num_examples if batches - 1 in chosen else 0
    return TestPart(part.batches.shard(stride, 0), len(chosen) * size - missing)


def make_attack(read_as: Preprocessing, source: Judge, config: AttackConfig) -> Callable[[Batch], Batch]:
    """Makes a function of a replica's batch that puts what a network reads after an attack in the place of the images.

    Args:
        read_as: of the network that will read them.
        source: the network whose gradient is used.
        config: the attack.

    Returns:
        The function. It reads image float32 [b, H, W, c] from 0 to 1, as it is before the crop; label int [b]; aim int
        [b], the class that a targeted attack aims at; and epsilon float32 [b]. It returns the batch with the image
        cropped, attacked and normalised; the aim of each image; and "zeros" float32 [b], which share of its gradient is
        zero.
    """
    gradient_of, scores_of = make_image_gradient(source)

    def attack(batch: Batch) -> Batch:
        images = batch["image"]
        view = central_crop(images, read_as.crop)
        target = batch["aim"]
        if config.target == LEAST_LIKELY:
            target = tf.argmin(scores_of(view, images), axis=-1, output_type=target.dtype)

        def gradient(moved: tf.Tensor) -> tf.Tensor:
            if config.target:
                return -gradient_of(moved, images, target)
            return gradient_of(moved, images, batch["label"])

        first = gradient(view)
        epsilon = batch["epsilon"][:, None, None, None]
        if config.kind == "fgsm":
            attacked = fgsm(view, lambda _: first, epsilon)
        else:
            attacked = basic_iterative(view, gradient, epsilon, config.steps)
        zeros = tf.reduce_mean(tf.cast(tf.equal(first, 0.0), tf.float32), axis=(1, 2, 3))
        return {**batch, "image": normalized(attacked, images, read_as), "aim": target, "zeros": zeros}

    return attack


def make_image_gradient(judge: Judge) -> tuple[ImageGradient, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]:
    """Makes the gradient of a network's loss with respect to pixels, through the normalisation, and the scores alike.

    Weights and moving averages are those of evaluation, so that the images of a batch know nothing of each other.
    """
    features, capsules = split_at_routing(judge.model)

    # As in training, the gradient is taken inside, where nothing of the forward pass has to leave what XLA compiles.
    @tf.function(jit_compile=judge.jit_compile, autograph=False)
    def gradient_of_capsules(made, label):
        with tf.GradientTape() as tape:
            tape.watch(made)
            loss = tf.reduce_sum(judge.loss_function(label, capsules(made, training=False), MARGIN))
        return tape.gradient(loss, made, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def make_features(view: tf.Tensor, images: tf.Tensor) -> list[tf.Tensor]:
        return keras.tree.flatten(features(normalized(view, images, judge.preprocessing), training=False))

    def gradient_of(view: tf.Tensor, images: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(view)
            made = make_features(view, images)
        return tape.gradient(made, view, gradient_of_capsules(made, label))

    def scores_of(view: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        return capsules(make_features(view, images), training=False)

    return gradient_of, scores_of


def normalized(view: tf.Tensor, images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """What a network reads, from pixels: by the statistics of the whole images, in the middle of which `view` stands.

    Args:
        view: float32 [b, h, w, c], from 0 to 1.
        images: float32 [b, H, W, c], of which only the surroundings of the view count.
        preprocessing: its normalisation is done.

    Example:
        >>> images = tf.zeros((1, 4, 4, 1))
        >>> normalized(tf.ones((1, 2, 2, 1)), images, Preprocessing(crop=(2, 2)))[0, :, :, 0].numpy().round(3)
        array([[1.732, 1.732],
               [1.732, 1.732]], dtype=float32)
    """
    moved = view - central_crop(images, preprocessing.crop)
    images = images + tf.image.resize_with_crop_or_pad(moved, *images.shape[1:3])
    return normalize(255.0 * view, 255.0 * images, preprocessing)
