"""Tests a trained network: from checkpoints and batches to predictions."""

import math
from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from caps_tf.evaluation.predictions import Predictions
from caps_tf.progress import Progress
from caps_tf.training.checkpoints import restore
from caps_tf.training.config import RunConfig
from caps_tf.training.data import TestPart
from caps_tf.training.factories import class_poses, make_loss, make_model
from caps_tf.training.reconstruction import make_decoder
from caps_tf.training.regime import make_margin_schedule
from caps_tf.training.steps import make_scorer

NOT_FACTORS = ("label", "label2", "target", "weight", "id", "fingerprint")


class Tester:
    """Restores one checkpoint after another into the network of a run, and has it judge test examples.

    Args:
        config: the run's parameters.
        input_shapes: shape of each feature that a network may read, by name.
        class_names: the classes in the order of their labels.
        strategy: devices, from `make_strategy`.

    Attributes:
        step: the training step of the restored checkpoint.
        num_parameters: trainable parameters of the network, without those of a decoder.
        model: the network, to scores.
        decoder: of a run that was trained with one; else None.
    """

    def __init__(
        self,
        config: RunConfig,
        input_shapes: Mapping[str, tuple[int | None, ...]],
        class_names: tuple[str, ...],
        strategy: tf.distribute.Strategy,
    ):
        self._class_names = class_names
        self._margin_schedule = make_margin_schedule(config)
        with strategy.scope():
            self.model = make_model(config, input_shapes, len(class_names))
            self.decoder = make_decoder(config, self.model)
            self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.num_parameters = sum(math.prod(weights.shape) for weights in self.model.trainable_weights)
        restored = {"model": self.model, "step": self._step, "decoder": self.decoder}
        self._checkpoint = tf.train.Checkpoint(**{name: part for name, part in restored.items() if part is not None})
        poses = class_poses(self.model)
        outputs = [self.model.output] if poses is None else [self.model.output, poses]
        judge = keras.Model(self.model.input, outputs)
        self._score = make_scorer(strategy, judge, make_loss(config), config.uses_xla)

    @property
    def step(self) -> int:
        return int(self._step.numpy())

    def restore(self, path: str) -> None:
        """Restores a checkpoint.

        Raises:
            UserError: if it is damaged, or of another architecture.
        """
        restore(self._checkpoint, path)

    def predict(self, name: str, part: TestPart) -> Predictions:
        """Judges each example of a part once."""
        margin = float(self._margin_schedule(self.step))
        scored = []
        with Progress(part.num_examples, "images", label=f"testing {name}") as progress:
            for each in self._score(part.batches, margin):
                scored.append(each)
                progress.update(len(each.losses))
        outputs = [np.concatenate(output) for output in zip(*(each.outputs for each in scored), strict=True)]
        known = _concatenate(each.batch for each in scored)
        return Predictions(
            scores=outputs[0],
            label=known["label"],
            loss=float(np.concatenate([each.losses for each in scored]).mean()),
            class_names=self._class_names,
            factors={factor: values for factor, values in known.items() if factor not in NOT_FACTORS},
            poses=outputs[1].reshape(*outputs[1].shape[:2], -1) if len(outputs) > 1 else None,
            ids=known["id"].astype(str) if "id" in known else None,
            label2=known.get("label2"),
            fingerprints=known.get("fingerprint"),
        )

    def decode(self, poses: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """What the decoder draws, float32 [n, h, w, c] from 0 to 1.

        Args:
            poses: of the class capsules, [n, classes, pose size], as in `Predictions`.
            kept: [n, classes], how much of each class's pose is kept.
        """
        assert self.decoder is not None, "a run without a decoder draws nothing"
        return keras.ops.convert_to_numpy(self.decoder(poses, kept.astype(np.float32)))


def collect_images(part: TestPart) -> np.ndarray:
    """The images of a part as people look at them: uint8 [n, rows, columns, channels], stretched one by one."""
    return np.concatenate([_stretched(batch["image"].numpy()[batch["weight"].numpy() > 0]) for batch in part.batches])


def find_images(part: TestPart, examples: Predictions) -> dict[int, np.ndarray]:
    """The images of a few examples, as `collect_images` has them, by their place among the examples.

    Images that have changed since the examples were judged are not found.
    """
    wanted = {
        place: number for number, place in enumerate(_places(examples.ids, examples.factors, examples.fingerprints))
    }
    found = {}
    for batch in part.batches.as_numpy_iterator():
        for row, place in enumerate(_places(batch["id"].astype(str), batch, batch["fingerprint"])):
            if place in wanted and batch["weight"][row]:
                found[wanted[place]] = _stretched(batch["image"][row][None])[0]
    return found


def _places(
    ids: np.ndarray | None, known: Mapping[str, np.ndarray], fingerprints: np.ndarray | None
) -> list[tuple[str, int, int]]:
    """Record, camera (0 where there is one) and fingerprint of each example."""
    assert ids is not None and fingerprints is not None
    views = known.get("view", np.zeros(len(ids), int))
    return list(zip(ids.tolist(), views.tolist(), fingerprints.tolist(), strict=True))


def _stretched(pixels: np.ndarray) -> np.ndarray:
    low, high = (limit(pixels, axis=(1, 2, 3), keepdims=True) for limit in (np.min, np.max))
    return np.round(255 * (pixels - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)


def _concatenate(batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
