"""The training loop on any Keras backend: epochs of `fit`, states to go on from, and the test at the end."""

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from caps_tf.any_backend.data import ImageSet, arrange
from caps_tf.any_backend.epochs import part_of, random_states, set_seed, training_inputs
from caps_tf.any_backend.learner import Learner, evaluation_inputs
from caps_tf.any_backend.pace import Pace
from caps_tf.any_backend.state import RunLog, assign, load_state, save_state, values_of
from caps_tf.data.viewpoints import STEPS
from caps_tf.errors import UserError
from caps_tf.tensors import is_among
from caps_tf.training.config import RunConfig
from caps_tf.training.factories import make_loss, make_model, make_preprocessing
from caps_tf.training.regime import make_margin_schedule, make_optimizer

STEPS_PER_EXECUTION = {"torch": 1}
"""Steps that `fit` takes between two looks at its callbacks; PyTorch's takes one."""
SECONDS_BETWEEN_STATES = 10.0
"""A state is saved at the end of an epoch, unless the last one is younger; the last epoch's always is."""
_MEASURED_SHARE, _MEASURED_SECONDS = 0.03, 3.0
"""The speed is measured for this share of a run's time, or for so many seconds if that is shorter."""
_ALWAYS_READ = {"number": "int32", "weight": "float32", "margin": "float32"}
_OUT_OF_MEMORY = re.compile(r"resource_?exhausted|out of memory|outofmemory|\boom\b", re.IGNORECASE)
_NOT_TESTED = ("train", "validation")


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
    """Turns what the backends raise where a device's memory runs out into a `UserError`.

    Example:
        >>> with memory_explained():
        ...     raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
        Traceback (most recent call last):
        ...
        caps_tf.errors.UserError: out of memory (RuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 \
bytes): lower \
--batch_size or --votes_mib
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each backend has its own
        said = f"{type(error).__name__}: {error}".splitlines()
        found = [line.strip() for line in said if _OUT_OF_MEMORY.search(line)]
        if not found:
            raise
        raise UserError(f"out of memory ({found[0][:200]}): lower --batch_size or --votes_mib") from error


class Figures(NamedTuple):
    """What examples were judged with: mean loss without penalties, accuracy, and how many there were."""

    loss: float
    accuracy: float
    examples: int


class AnyBackendTrainer:
    """Trains a network on images in device memory, and keeps what it learns in a directory.

    Where a run stands is decided by its parameters and its step: `restore` and `run` go on with the batches, rates and
    draws that an unbroken run would have had.

    Args:
        config: the run's parameters.
        images: what to learn from, and to be tested on.
        directory: where the state and the log go.
        steps: of the whole run, over which all schedules stretch; None for the epochs of `config`.
        paced: whether `choose_steps` may be called.

    Attributes:
        network: the network, from images to scores.
        step: steps taken.
        total_steps: steps of the whole run.

    Raises:
        UserError: if the parameters do not suit the data.
    """

    def __init__(
        self, config: RunConfig, images: ImageSet, directory: Path, steps: int | None = None, paced: bool = False
    ):
        self._config, self._directory = config, directory
        preprocessing = make_preprocessing(config, images.viewpoint_unit == STEPS)
        examples = arrange(images, config, preprocessing)
        self._parts = examples.parts
        self.steps_per_epoch = len(self._parts["train"]) // config.batch_size
        if self.steps_per_epoch < 1:
            raise UserError(f"the training data make no whole batch of {config.batch_size}: lower --batch_size")
        num_classes = len(images.class_names)
        set_seed(config.seed)
        self.network = make_model(config, {"image": preprocessing.input_shape(images)}, num_classes)
        self._learner = Learner(
            self.network, examples.images, examples.labels, preprocessing, make_loss(config), num_classes
        )
        self._pace = Pace() if paced or steps is not None else None
        optimizer = make_optimizer(
            config, self.steps_per_epoch, self._pace.of if self._pace else lambda schedule: schedule
        )
        if self._pace:
            self._pace.attach(optimizer)
        # Here and not at the first step, whose random numbers would be others.
        self._learner({name: keras.KerasTensor((config.batch_size,), dtype) for name, dtype in _ALWAYS_READ.items()})
        optimizer.build(self._learner.trainable_variables)
        backend = keras.config.backend()
        self._learner.compile(
            optimizer,
            # JAX is always compiled, and PyTorch as Keras does it by default: not.
            jit_compile={"jax": True, "torch": False}.get(backend, config.uses_xla),
            steps_per_execution=STEPS_PER_EXECUTION.get(backend, 8),
        )
        self._variables = [*self.network.weights, *optimizer.variables]
        known = [*self._learner.weights, *self._learner.metrics_variables]
        self._random_states = [variable for variable in self._learner.variables if not is_among(variable, known)]
        self._margin_schedule = make_margin_schedule(config)
        self.step = 0
        self._stretch(steps or config.epoch * self.steps_per_epoch)

    @property
    def state_path(self) -> Path:
        return self._directory / "state.npz"

    def restore(self) -> bool:
        """Goes to where the run was last saved; returns whether it was.

        Raises:
            UserError: if the state is damaged, or another network's.
        """
        if not self.state_path.exists():
            return False
        self.step = load_state(self.state_path, self._variables)
        return True

    def choose_steps(self, seconds: float, at_most: int | None = None) -> int:
        """Finds out how many steps fit into a time, and stretches all schedules over them.

        Some steps are compiled, taken and timed, and then forgotten: training starts where it would have started.

        Args:
            seconds: left for the training, and for what this function does.
            at_most: steps.

        Raises:
            UserError: if the time is over before training begins.
        """
        begin = time.monotonic()
        before = values_of(self._variables)
        seconds_a_step = self._measure(max(_MEASURED_SHARE * seconds, 0.0))
        assign(before, self._variables)
        left = seconds - (time.monotonic() - begin)
        steps = int(left / seconds_a_step)
        if steps < 1:
            raise UserError("the time was over before training began, with reading data and compiling: raise --minutes")
        self._stretch(min(steps, at_most or steps))
        return self.total_steps

    def run(self) -> dict[str, Any]:
        """Trains to the last step and tests; returns the last line of the log.

        Raises:
            UserError: if the loss becomes NaN or infinite; the state is from before.
        """
        log = RunLog(self._directory / "log.jsonl", self.step)
        saved = time.monotonic()
        while self.step < self.total_steps:
            epoch, start = divmod(self.step, self.steps_per_epoch)
            stop = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
            log.write(self._train_epoch(epoch, start, stop))
            # After the line: a run that is killed here takes these steps again, and loses no line.
            if self.step == self.total_steps or time.monotonic() - saved >= SECONDS_BETWEEN_STATES:
                save_state(self.state_path, self._variables, self.step)
                saved = time.monotonic()
        last = log.lines[-1] if log.lines else {}
        if "test_accuracy" not in last or last["step"] != self.step:
            last = self._test()
            self._save_network()  # before the line, which says that all is done
            log.write(last)
        return last

    def _is_finite(self) -> bool:
        """Whether the last update left all weights finite: its loss was computed before."""
        return all(bool(keras.ops.all(keras.ops.isfinite(weight))) for weight in self.network.trainable_weights)

    def _stretch(self, steps: int) -> None:
        self.total_steps = steps
        self._steps_a_step = self._config.epoch * self.steps_per_epoch / steps
        if self._pace:
            self._pace.set(self._steps_a_step)

    def _train_epoch(self, epoch: int, start: int, stop: int) -> dict[str, Any]:
        begin = time.monotonic()
        figures = self._fit(epoch, start, stop)
        seconds = time.monotonic() - begin
        if not (math.isfinite(figures.loss) and self._is_finite()):
            go_on = f"{self.state_path} is from before: continue from it" if self.state_path.exists() else "start again"
            raise UserError(
                f"epoch {epoch + 1}: the loss or a weight is NaN or infinite; {go_on} with a lower --lrn_rate"
            )
        self.step = epoch * self.steps_per_epoch + stop
        line = {
            "epoch": epoch + 1,
            "step": self.step,
            "steps": self.total_steps,
            "loss": round(figures.loss, 5),
            "accuracy": round(figures.accuracy, 5),
            "images_per_second": round(figures.examples / max(seconds, 1e-9), 1),
            "seconds": round(seconds, 3),
            "backend": keras.config.backend(),
        }
        if "validation" in self._parts:
            found = self._evaluate("validation")
            line |= {"validation_loss": round(found.loss, 5), "validation_accuracy": round(found.accuracy, 5)}
        return line

    def _fit(self, epoch: int, start: int, stop: int) -> Figures:
        config = self._config
        inputs = training_inputs(
            self._parts["train"],
            config.batch_size,
            seed=config.seed,
            epoch=epoch,
            mixup=config.mixup,
            margin=lambda steps: self._margin(epoch * self.steps_per_epoch + steps),
        )
        set_seed(config.seed, epoch)
        states = random_states(config.seed, epoch, len(self._random_states))
        assign(states, self._random_states)
        inputs = part_of(inputs, start, stop, config.batch_size)
        history = self._learner.fit(dict(inputs), batch_size=config.batch_size, shuffle=False, verbose=0).history
        return _figures({name: values[-1] for name, values in history.items()}, (stop - start) * config.batch_size)

    def _evaluate(self, part: str) -> Figures:
        numbers, batch_size = self._parts[part], self._config.batch_size
        inputs = evaluation_inputs(numbers, batch_size, float(self._margin(np.array([self.step]))[0]))
        found = self._learner.evaluate(dict(inputs), batch_size=batch_size, verbose=0, return_dict=True)
        return _figures(found, len(numbers))

    def _test(self) -> dict[str, Any]:
        found = {name: self._evaluate(name) for name in self._parts if name not in _NOT_TESTED}
        examples = sum(part.examples for part in found.values())
        loss, accuracy = (
            sum(getattr(part, name) * part.examples for part in found.values()) / examples
            for name in ("loss", "accuracy")
        )
        line = {"step": self.step, "test_loss": round(loss, 5), "test_accuracy": round(accuracy, 5)}
        line |= {"test_examples": examples, "backend": keras.config.backend()}
        return line | {name: round(part.accuracy, 5) for name, part in found.items() if name != "test"}

    def _margin(self, steps: np.ndarray) -> np.ndarray:
        """The margin of the loss after each of these steps of training, [n]."""
        if not self._config.uses_spread_loss:
            return np.zeros(len(steps), "float32")
        return keras.ops.convert_to_numpy(self._margin_schedule(steps * self._steps_a_step))

    def _measure(self, seconds: float) -> float:
        """Seconds that a step takes once it is compiled, with its share of an epoch's validation."""
        self._fit(0, 0, 1)
        steps, took = 1, 0.0
        while True:
            begin = time.monotonic()
            self._fit(0, 0, steps)
            took = time.monotonic() - begin
            if steps == self.steps_per_epoch or took >= min(_MEASURED_SECONDS, seconds):
                break
            steps = min(4 * steps, self.steps_per_epoch)
        of_validation = 0.0
        if "validation" in self._parts:
            self._evaluate("validation")
            begin = time.monotonic()
            self._evaluate("validation")
            of_validation = time.monotonic() - begin
        return max(took / steps + of_validation / self.steps_per_epoch, 1e-9)

    def _save_network(self) -> None:
        """The trained network as a Keras file, under its name when it is whole."""
        unfinished = self._directory / "unfinished.keras"
        self.network.save(unfinished)
        os.replace(unfinished, self._directory / "network.keras")


def _figures(found: Mapping[str, float], examples: int) -> Figures:
    return Figures(float(found["example_loss"]), float(found["accuracy"]), examples)
