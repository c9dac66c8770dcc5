"""Checkpoints of a run: the newest few, and the best by validation accuracy."""

import os
import tempfile

import keras
import tensorflow as tf

from caps_tf.errors import UserError

PathLike = str | os.PathLike[str]


class Checkpoints:
    """Saves and restores the model, the optimiser, the step and the best validation accuracy of a run.

    Files are those of `tf.train.Checkpoint`: `<directory>/step-<n>` for the newest, `<directory>/best/step-<n>` for
    the best.

    Args:
        directory: where checkpoints live.
        model: the network.
        optimizer: its optimiser, built.
        keep: how many of the newest to keep.
        writes: False in workers other than the chief: they take part in saving, as TensorFlow requires, but into
            a temporary directory.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> optimizer = keras.optimizers.Adam()
        >>> optimizer.build(model.trainable_variables)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     checkpoints = Checkpoints(directory, model, optimizer, keep=2)
        ...     for step in (10, 20, 30):
        ...         _ = checkpoints.step.assign(step)
        ...         checkpoints.save()
        ...     list_checkpoints(directory)
        ['step-20', 'step-30']
    """

    def __init__(
        self,
        directory: PathLike,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        keep: int,
        writes: bool = True,
    ):
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.best_accuracy = tf.Variable(-1.0, dtype=tf.float64, trainable=False, name="best_accuracy")
        self._checkpoint = tf.train.Checkpoint(
            model=model, optimizer=optimizer, step=self.step, best_accuracy=self.best_accuracy
        )
        if not writes:
            self._discarded = tempfile.TemporaryDirectory(prefix="caps_tf_worker_")
            directory = self._discarded.name
        self._newest = tf.train.CheckpointManager(
            self._checkpoint, directory=os.fspath(directory), max_to_keep=keep, checkpoint_name="step"
        )
        self._best = tf.train.CheckpointManager(
            self._checkpoint, directory=os.path.join(directory, "best"), max_to_keep=1, checkpoint_name="step"
        )

    def save(self) -> None:
        """Saves the present state among the newest.

        Raises:
            UserError: if the disk is full or cannot be written.
        """
        self._save(self._newest)

    def save_if_best(self, accuracy: float) -> bool:
        """Keeps the present state as the best, if its validation accuracy is the highest so far."""
        if accuracy <= float(self.best_accuracy.numpy()):
            return False
        self.best_accuracy.assign(accuracy)
        self._save(self._best)
        return True

    def _save(self, manager: tf.train.CheckpointManager) -> None:
        try:
            manager.save(checkpoint_number=int(self.step.numpy()))
        except (tf.errors.OpError, OSError) as error:
            raise UserError(
                f"{manager.directory}: cannot save a checkpoint ({error}): free some space, then continue with --load_dir"
            ) from error

    def restore(self, path: str) -> None:
        """Restores the state saved at `path`; see `find_checkpoints`.

        Raises:
            UserError: if the file is damaged, or was written by another architecture.
        """
        restore(self._checkpoint, path)


def restore(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Restores all that `checkpoint` tracks from `path`.

    Raises:
        UserError: if the file is damaged, or was written by another architecture.
    """
    try:
        status = checkpoint.read(path)
        status.assert_existing_objects_matched()
    except (ValueError, AssertionError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: holds the weights of another architecture ({first_line}): use the flags that it was trained with"
        ) from error
    except tf.errors.OpError as error:
        raise UserError(f"{path}: damaged or unreadable ({error.message}): use another checkpoint") from error


def list_checkpoints(directory: PathLike) -> list[str]:
    """Names of the checkpoints in a directory, oldest first."""
    state = tf.train.get_checkpoint_state(os.fspath(directory))
    return [] if state is None else [os.path.basename(path) for path in state.all_model_checkpoint_paths]


def find_checkpoints(directory: PathLike, name: str) -> list[str]:
    """Resolves what a user asks for to paths of checkpoints.

    Args:
        directory: a run's checkpoint directory.
        name: "latest", "best", "all", or a name such as "step-1200".

    Raises:
        UserError: if there is no such checkpoint.
    """
    directory = os.fspath(directory)
    available = list_checkpoints(directory)
    best = tf.train.latest_checkpoint(os.path.join(directory, "best"))
    if not available and not best:
        raise UserError(f"{directory}: holds no checkpoints: give a --load_dir in which train_val.py has saved one")
    if name == "best":
        if best is None:
            raise UserError(f"{directory}: holds no best checkpoint (the run had no validation): use --ckpt_name=latest")
        return [best]
    if name == "latest" and available:
        return [os.path.join(directory, available[-1])]
    if name == "all" and available:
        return [os.path.join(directory, each) for each in available]
    if name in available:
        return [os.path.join(directory, name)]
    raise UserError(f"{directory}: no checkpoint {name!r}: choose latest, best, all, or one of {', '.join(available)}")
