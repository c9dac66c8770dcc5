"""What goes wrong below a run, in TensorFlow, and what a user can do about it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf

from caps_tf.errors import ClusterLostError, UserError
from caps_tf.training.devices import num_processes


@contextmanager
def explained(strategy: tf.distribute.Strategy, find_damage: Callable[[], str | None]) -> Iterator[None]:
    """Turns failures of data, memory and other workers into a `UserError`; what else happens is a defect, and stays.

    Args:
        strategy: of the run.
        find_damage: looks through the data and names what is damaged in them, or returns None. Called only when
            something has failed.

    Example:
        >>> with explained(tf.distribute.get_strategy(), lambda: "a.png: cannot be decoded: remove it"):
        ...     tf.io.decode_png(b"no image")
        Traceback (most recent call last):
        ...
        caps_tf.errors.UserError: a.png: cannot be decoded: remove it
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise UserError(
            f"out of memory ({_first_line(error)}): lower --batch_size, or use a device with more memory"
        ) from error
    except tf.errors.OpError as error:
        if damage := find_damage():
            raise UserError(damage) from error
        if num_processes(strategy) > 1:
            raise ClusterLostError(
                f"another worker of the cluster has gone ({type(error).__name__}): start all of them again with "
                "--load_dir, they go on from the newest checkpoint"
            ) from error
        raise


def _first_line(error: tf.errors.OpError) -> str:
    return (str(error.message).strip() or type(error).__name__).splitlines()[0]
