"""Checkpoints of a run: the newest few, and the best by validation accuracy."""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

from caps_tf.errors import UserError
from caps_tf.files import write_atomically

PathLike = str | os.PathLike[str]

_HALF_WRITTEN = ("*_temp", "*.tempstate*", "checkpoint.tmp*")  # what TensorFlow calls files until they are whole


class Checkpoints:
    """Saves and restores the model, the optimiser, the step and the best validation accuracy of a run.

    Files are those of `tf.train.Checkpoint`: `<directory>/step-<n>` for the newest, `<directory>/best/step-<n>` for
    the best. Each is written under another name and renamed, and older ones are deleted only after that, so that a
    process killed at any moment leaves a whole one, which `find_checkpoints` finds.

    Args:
        directory: where checkpoints live.
        model: the network.
        optimizer: its optimiser, built.
        keep: how many of the newest to keep.
        writes: False in workers other than the chief: they take part in saving, as TensorFlow requires, but into
            a temporary directory.
        decoder: what is trained beside the network to draw its images; None if nothing is.

    Attributes:
        step: int64, optimisation steps taken.
        best_accuracy: float64, of all validations so far.
        window: float64 [3], steps, loss and correct examples since the log's last line; with a decoder [4], of which
            the last is reconstruction.
        awaits_validation: whether the epoch that ended with this step was not validated yet.

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
        decoder: keras.Layer | None = None,
    ):
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.best_accuracy = tf.Variable(-1.0, dtype=tf.float64, trainable=False, name="best_accuracy")
        self.window = tf.Variable(tf.zeros(3 if decoder is None else 4, tf.float64), trainable=False, name="window")
        self.awaits_validation = tf.Variable(False, trainable=False, name="awaits_validation")
        always = {"model": model, "optimizer": optimizer, "step": self.step, "best_accuracy": self.best_accuracy}
        if decoder is not None:
            always["decoder"] = decoder
        # Checkpoints from before runs could stop within an epoch lack these.
        sometimes = {"window": self.window, "awaits_validation": self.awaits_validation}
        self._always = tf.train.Checkpoint(**always)
        self._sometimes = tf.train.Checkpoint(**sometimes)
        if not writes:
            self._discarded = tempfile.TemporaryDirectory(prefix="caps_tf_worker_")
            directory = self._discarded.name
        directories = {"step": os.fspath(directory), "best": os.path.join(directory, "best")}
        for each in directories.values():
            _tidy(Path(each))
        whole = tf.train.Checkpoint(**always, **sometimes)
        self._newest = tf.train.CheckpointManager(
            whole, directory=directories["step"], max_to_keep=keep, checkpoint_name="step"
        )
        self._best = tf.train.CheckpointManager(
            whole, directory=directories["best"], max_to_keep=1, checkpoint_name="step"
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
            _remove_half_written(Path(manager.directory))
            raise UserError(
                f"{manager.directory}: cannot save a checkpoint ({error}): free some space, then continue with --load_dir"
            ) from error

    def restore(self, path: str) -> None:
        """Restores the state saved at `path`; see `find_checkpoints`.

        Raises:
            UserError: if the file is damaged, or was written by another architecture.
        """
        restore(self._always, path, self._sometimes)


def restore(checkpoint: tf.train.Checkpoint, path: str, optional: tf.train.Checkpoint | None = None) -> None:
    """Restores all that `checkpoint` tracks from `path`, and what is there of `optional`.

    Raises:
        UserError: if the file is damaged, or was written by another architecture.
    """
    try:
        status = checkpoint.read(path)
        status.assert_existing_objects_matched().expect_partial()
        if optional is not None:
            optional.read(path).expect_partial()
    except (ValueError, AssertionError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: holds the weights of another architecture ({first_line}): use the flags that it was trained with"
        ) from error
    except tf.errors.OpError as error:
        raise UserError(f"{path}: damaged or unreadable ({error.message}): use another checkpoint") from error


def find_damage(path: str) -> str | None:
    """Tells what is wrong with the files of a checkpoint; None where every checksum is right.

    Example:
        >>> find_damage("nowhere/step-10")
        'step-10.index is missing'
    """
    if not os.path.exists(f"{path}.index"):
        return f"{os.path.basename(path)}.index is missing"
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)  # which checks its checksum
    except Exception as error:  # damaged bytes fail in as many ways as the format has parts
        lines = str(getattr(error, "message", error)).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


def list_checkpoints(directory: PathLike) -> list[str]:
    """Names of the checkpoints in a directory, oldest first."""
    listed = _listed(directory)
    if listed:
        return listed
    # The list is lost or damaged: what is there, then.
    steps = (re.fullmatch(r"step-(\d+)\.index", path.name) for path in Path(directory).glob("step-*.index"))
    return [f"step-{step}" for step in sorted(int(match[1]) for match in steps if match)]


def _listed(directory: PathLike) -> list[str]:
    """What the file that TensorFlow keeps beside the checkpoints lists, oldest first; nothing if it is damaged."""
    try:
        state = tf.train.get_checkpoint_state(os.fspath(directory))
    except (ValueError, tf.errors.OpError):
        return []
    return [] if state is None else [os.path.basename(path) for path in state.all_model_checkpoint_paths]


def find_checkpoints(directory: PathLike, name: str) -> list[str]:
    """Resolves what a user asks for to paths of whole checkpoints.

    A damaged one is passed over, with a line on stderr: "latest" is then the one before it, and "all" the others.

    Args:
        directory: a run's checkpoint directory.
        name: "latest", "best", "all", or a name such as "step-1200".

    Raises:
        UserError: if there is no such checkpoint, or it is damaged.
    """
    directory = os.fspath(directory)
    available = list_checkpoints(directory)
    best = [os.path.join(directory, "best", each) for each in list_checkpoints(os.path.join(directory, "best"))][-1:]
    if not available and not best:
        raise UserError(f"{directory}: holds no checkpoints: give a --load_dir in which train_val.py has saved one")
    paths = [os.path.join(directory, each) for each in available]
    if name == "latest" and paths:
        return [_newest_whole(paths)]
    if name == "all" and paths:
        return _all_whole(paths)
    if name == "best":
        if not best:
            raise UserError(
                f"{directory}: holds no best checkpoint (the run had no validation): use --ckpt_name=latest"
            )
        chosen = best
    elif name in available:
        chosen = [os.path.join(directory, name)]
    else:
        raise UserError(
            f"{directory}: no checkpoint {name!r}: choose latest, best, all, or one of {', '.join(available)}"
        )
    if damage := find_damage(chosen[0]):
        raise UserError(f"{chosen[0]}: damaged ({damage}): use --ckpt_name=latest, or one of {', '.join(available)}")
    return chosen


def _newest_whole(paths: list[str]) -> str:
    for path, before in zip(reversed(paths), [*reversed(paths[:-1]), None]):
        damage = find_damage(path)
        if damage is None:
            return path
        if before is not None:
            print(f"{path}: damaged ({damage}): using the one before it, {os.path.basename(before)}", file=sys.stderr)
    raise UserError(
        f"{paths[0]}: damaged ({damage}), like all checkpoints beside it: put back a copy, or start over with --reset"
    )


def _all_whole(paths: list[str]) -> list[str]:
    damages = {path: find_damage(path) for path in paths}
    for path, damage in damages.items():
        if damage is not None:
            print(f"{path}: damaged ({damage}): left out", file=sys.stderr)
    whole = [path for path, damage in damages.items() if damage is None]
    if not whole:
        raise UserError(f"{os.path.dirname(paths[0])}: every checkpoint is damaged: put back a copy, or train anew")
    return whole


def _tidy(directory: Path) -> None:
    """Removes what a killed process left half written, and lists again what a damaged list has lost."""
    if not directory.is_dir():
        return
    _remove_half_written(directory)
    if not _listed(directory):
        (directory / "checkpoint").unlink(missing_ok=True)
        names = list_checkpoints(directory)
        if names:  # so that the manager, which believes the list alone, deletes them in their turn
            lines = [f'model_checkpoint_path: "{names[-1]}"']
            for name in names:
                written = (directory / f"{name}.index").stat().st_mtime
                lines += [f'all_model_checkpoint_paths: "{name}"', f"all_model_checkpoint_timestamps: {written}"]
            write_atomically(directory / "checkpoint", "\n".join(lines).encode())


def _remove_half_written(directory: Path) -> None:
    for path in (path for pattern in _HALF_WRITTEN for path in directory.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
