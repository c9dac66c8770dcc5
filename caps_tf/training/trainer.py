"""The training loop: epochs of steps, validation, checkpoints and logs, from wherever the restored step is."""

import time
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from caps_tf.errors import Preempted, UserError
from caps_tf.evaluation.predictions import are_right
from caps_tf.program_cache import hand_on_programs
from caps_tf.progress import format_duration
from caps_tf.tensors import is_among
from caps_tf.training.checkpoints import Checkpoints
from caps_tf.training.config import RunConfig
from caps_tf.training.data import TrainingData
from caps_tf.training.devices import distribute, is_chief, num_processes
from caps_tf.training.factories import capsule_outputs, make_loss, make_model
from caps_tf.training.gauges import RunGauges
from caps_tf.training.initial_weights import start_from
from caps_tf.training.logs import TrainingLog
from caps_tf.training.preemption import StopSignal
from caps_tf.training.reconstruction import make_decoder, with_decoder
from caps_tf.training.regime import make_gauges, make_margin_schedule, make_optimizer
from caps_tf.training.steps import StepResult, make_scorer, make_train_step, model_inputs

PROFILED_STEPS = (10, 20)
LOWEST_LOSS_SCALE = 2.0**-15


class Trainer:
    """Trains a network and keeps what it learns in a directory.

    A run is a function of its parameters and of the step: after `checkpoints.restore`, `run` goes on with the very
    batches, rates, margins and dropped units that an unbroken run would have had.

    Args:
        config: the run's parameters.
        data: what to learn from.
        directory: the run's train directory.
        strategy: devices, from `make_strategy`.

    Attributes:
        model: the network.
        checkpoints: its saved states.
    """

    def __init__(self, config: RunConfig, data: TrainingData, directory: Path, strategy: tf.distribute.Strategy):
        if data.steps_per_epoch < 1:
            raise UserError(f"the training data make no whole batch of {config.batch_size}: lower --batch_size")
        self._config = config
        self._data = data
        self._directory = directory
        self._strategy = strategy
        self._writes = is_chief(strategy)
        self._alone = num_processes(strategy) == 1
        with strategy.scope():
            self.model = make_model(config, data.input_shapes, data.num_classes)
            self._optimizer = make_optimizer(config, data.steps_per_epoch)
            decoder = make_decoder(config, self.model)
            self._trained = with_decoder(config, self.model, decoder)
            self._optimizer.build(self._trained.trainable_variables)
            self.checkpoints = Checkpoints(
                directory / "checkpoints", self.model, self._optimizer, config.keep_checkpoints, self._writes, decoder
            )
        loss_function = make_loss(config)
        self._margin_schedule = make_margin_schedule(config)
        self._gauges = make_gauges(config, data.steps_per_epoch)
        looks = config.routing_gauges and self._writes
        self._run_gauges = RunGauges(self._trained, data.training(0, 0)) if looks else None
        self._train_step = make_train_step(
            strategy,
            self._trained,
            self._optimizer,
            loss_function,
            config.batch_size,
            config.uses_xla,
            config.reconstruction,
        )
        weights = self._trained.weights
        self._random_states = [variable for variable in self._trained.variables if not is_among(variable, weights)]
        self._stop = StopSignal()
        self._is_compiled = False
        self._capsules = capsule_outputs(self.model)
        activations = [activations for _, activations in self._capsules.values()]
        self._score = make_scorer(
            strategy,
            keras.Model(self._trained.input, [*keras.tree.flatten(self._trained.output), *activations]),
            loss_function,
            config.uses_xla,
            lambda: self._stop.requested,
        )

    def start_from(self, source: str) -> str:
        """Takes the weights of a trained network for a start; returns what was done, see `start_from`."""
        said = start_from(self.model, source, self._strategy.scope())
        return f"{said}; the decoder is new" if self._config.reconstruction else said

    def run(self) -> dict[str, float]:
        """Trains to the last epoch.

        Returns:
            The last validation's figures, empty if there was none.

        Raises:
            UserError: if the loss becomes NaN or infinite; the newest checkpoint is from before.
            Preempted: after SIGTERM, when the state is saved. Several workers save and raise at the same step,
                whichever of them got the signal.
        """
        config, data = self._config, self._data
        total_steps = config.epoch * data.steps_per_epoch
        first_epoch, place = divmod(self._step, data.steps_per_epoch)
        validates_first = bool(self.checkpoints.awaits_validation.numpy()) and self._step > 0 and place == 0
        log = TrainingLog(self._directory, self._step, total_steps, self._writes, validates_first)
        if validates_first:
            first_epoch -= 1
        try:
            figures: dict[str, float] = {}
            with self._stop:
                for epoch in range(first_epoch, config.epoch):
                    if self._alone and self._stop.requested:
                        self._leave()
                    self._train_epoch(epoch, log)
                    figures = self._validate(epoch, log)
                    hand_on_programs()
                    self.checkpoints.save()
                    log.flush()
            return figures
        finally:
            log.close()

    @property
    def _step(self) -> int:
        return int(self.checkpoints.step.numpy())

    def _train_epoch(self, epoch: int, log: TrainingLog) -> None:
        config, steps_per_epoch = self._config, self._data.steps_per_epoch
        meter = _Meter(config.batch_size, self.checkpoints.window.numpy())
        trained = self._step - epoch * steps_per_epoch
        if trained == steps_per_epoch:
            return
        for batch in distribute(self._strategy, self._data.training(epoch, trained)):
            step = self._step
            self._profile(step)
            self._seed_randomness(step)
            margin = self._margin_schedule(step)
            ends_epoch = (step + 1) % steps_per_epoch == 0
            is_logged = (step + 1) % config.log_every == 0 or ends_epoch
            if self._run_gauges and is_logged:
                self._run_gauges.before_step()
            if not self._is_compiled:
                log.say("compiling the training step, once")
            result = self._train_step(batch, margin, tf.constant(float(self._stop.requested)))
            self._check_finite(result, batch, step)
            self.checkpoints.step.assign_add(1)
            meter.add(result)
            if not self._is_compiled:
                hand_on_programs()  # now: a run may be killed before it ends
                log.say(f"compiled, first step taken: {format_duration(meter.start_counting())}")
                self._is_compiled = True
            if is_logged:
                self._log_training(epoch, meter, log)
            # The last step of an epoch is saved after validation, so that a restart never skips a validation.
            stops = self._stop.requested if self._alone else result.stop.numpy() > 0
            is_due = config.checkpoint_every and (step + 1) % config.checkpoint_every == 0
            if stops or is_due or ends_epoch:
                self.checkpoints.window.assign(meter.sums())
                self.checkpoints.awaits_validation.assign(ends_epoch)
            if stops:
                self._leave()
            if is_due and not ends_epoch:
                self.checkpoints.save()

    def _leave(self) -> None:
        self.checkpoints.save()
        raise Preempted(f"step {self._step} is saved in {self._directory / 'checkpoints'}: go on with --load_dir")

    def _seed_randomness(self, step: int) -> None:
        """Makes what dropout drops a function of the step. Checkpoints do not hold the state of its random numbers."""
        for number, state in enumerate(self._random_states):
            state.assign(np.random.SeedSequence([self._config.seed, step, number]).generate_state(2))

    def _log_training(self, epoch: int, meter: "_Meter", log: TrainingLog) -> None:
        step, figures = self._step, meter.read_and_reset()
        gauges = {name: float(gauge(step)) for name, gauge in self._gauges.items()}
        gauges |= self._run_gauges.read() if self._run_gauges else {}
        log.record("train", step, epoch, **figures, **gauges)
        log.progress(
            step,
            f"{epoch + 1}/{self._config.epoch}",
            figures["images_per_second"],
            self._config.batch_size / figures["images_per_second"],
            loss=f"{figures['loss']:.4f}",
            accuracy=f"{figures['accuracy']:.1%}",
        )

    def _validate(self, epoch: int, log: TrainingLog) -> dict[str, float]:
        if self._data.validation is None:
            self.checkpoints.awaits_validation.assign(False)
            return {}
        correct, losses, reconstructions, histograms = [], [], [], None
        for scored in self._score(self._data.validation(), float(self._margin_schedule(self._step))):
            if scored.stop:
                self._leave()
            scores, *others = scored.outputs
            reconstructions += [others.pop(0)] if self._config.reconstruction else []
            correct.append(are_right(scores, scored.batch["label"], scored.batch.get("label2")))
            losses.append(scored.losses)
            if histograms is None:
                histograms = dict(zip(self._capsules, others, strict=True))
        figures = {
            "loss": float(np.concatenate(losses).mean()),
            "accuracy": float(np.concatenate(correct).mean()),
        }
        if reconstructions:
            figures["reconstruction"] = float(np.concatenate(reconstructions).mean())
        self.checkpoints.awaits_validation.assign(False)
        log.record("validation", self._step, epoch, **figures)
        log.histograms(self._step, {f"activations/{name}": values for name, values in (histograms or {}).items()})
        best = self.checkpoints.save_if_best(figures["accuracy"])
        log.say(
            f"epoch {epoch + 1}/{self._config.epoch}  validation on {sum(map(len, losses))} examples: "
            f"accuracy {figures['accuracy']:.2%}  loss {figures['loss']:.4f}{'  best so far' if best else ''}"
        )
        return figures

    def _check_finite(self, result: StepResult, batch: Mapping[str, tf.Tensor], step: int) -> None:
        gradient_is_finite = result.gradient_is_finite.numpy() > 0.5
        is_finite = np.isfinite(result.loss.numpy() + result.reconstruction.numpy())
        if is_finite and (gradient_is_finite.all() or self._scale_can_fall()):
            return
        culprit = self._first_layer_that_fails(batch)
        if culprit is None and not gradient_is_finite.all():
            paths = [variable.path for variable in self._trained.trainable_variables]
            layer, _, weight = paths[int(np.argmin(gradient_is_finite))].rpartition("/")
            culprit = f"layer {layer}, in the gradient of its {weight}"
        raise UserError(
            f"step {step}: the loss or its gradient is NaN or infinite, first seen in {culprit or 'the loss'}; the "
            f"checkpoints in {self._directory / 'checkpoints'} are from before: continue from them with a lower "
            "--lrn_rate"
        )

    def _scale_can_fall(self) -> bool:
        """Whether a lower loss scale, in float16, may still make gradients finite."""
        if not isinstance(self._optimizer, keras.optimizers.LossScaleOptimizer):
            return False
        return float(self._optimizer.dynamic_scale) > LOWEST_LOSS_SCALE

    def _first_layer_that_fails(self, batch: Mapping[str, tf.Tensor]) -> str | None:
        """Name of the first layer whose output is not finite for the examples of one replica."""
        batch = {name: self._strategy.experimental_local_results(value)[0] for name, value in batch.items()}
        outputs = {layer.name: layer.output for layer in self._trained.layers}
        probe = keras.Model(self._trained.input, outputs)
        for name, values in probe(model_inputs(probe, batch), training=False).items():
            if not all(np.isfinite(keras.ops.convert_to_numpy(value)).all() for value in tf.nest.flatten(values)):
                return f"layer {name}"
        return None

    def _profile(self, step: int) -> None:
        if not (self._config.profile and self._writes):
            return
        if step == PROFILED_STEPS[0]:
            tf.profiler.experimental.start(str(self._directory))
        elif step == PROFILED_STEPS[1]:
            tf.profiler.experimental.stop()


class _Meter:
    """Means and rate over the steps since it was last read.

    Args:
        batch_size: examples in a step.
        sums: of an earlier meter, whose window goes on: a resumed run logs what an unbroken one does, all but the rate.
            The number of steps, and sums over them of the first of `SUMMED`.
    """

    SUMMED = ("loss", "correct", "reconstruction")

    def __init__(self, batch_size: int, sums: np.ndarray):
        self._batch_size = batch_size
        self._begin(sums)

    def _begin(self, sums: np.ndarray) -> None:
        self.steps = int(sums[0])
        self._sums = {name: float(value) for name, value in zip(self.SUMMED, sums[1:], strict=False)}
        self._began = self._counting_since = (self.steps, time.monotonic())

    def start_counting(self) -> float:
        """Leaves the steps so far out of the rate, such as a first one that compiles; returns their seconds."""
        self._counting_since = (self.steps, time.monotonic())
        return self._counting_since[1] - self._began[1]

    def add(self, result: StepResult) -> None:
        self.steps += 1
        for name in self._sums:
            self._sums[name] += float(getattr(result, name))

    def sums(self) -> np.ndarray:
        return np.array([self.steps, *self._sums.values()], np.float64)

    def read_and_reset(self) -> dict[str, float]:
        steps_before, start = self._counting_since if self.steps > self._counting_since[0] else self._began
        seconds = max(time.monotonic() - start, 1e-9)
        figures = {
            "loss": self._sums["loss"] / self.steps,
            "accuracy": self._sums["correct"] / (self.steps * self._batch_size),
            "images_per_second": (self.steps - steps_before) * self._batch_size / seconds,
        }
        if "reconstruction" in self._sums:
            figures["reconstruction"] = self._sums["reconstruction"] / self.steps
        self._begin(np.zeros(1 + len(self._sums)))
        return figures
