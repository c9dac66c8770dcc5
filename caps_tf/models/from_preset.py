"""Trained networks by name, as Keras models."""

import functools
import os
from collections.abc import Iterable

import keras
import numpy as np

from caps_tf.data.any_image import fit_image, read_any_image
from caps_tf.errors import UserError
from caps_tf.models.preparation import on_pixels
from caps_tf.networks import NETWORKS
from caps_tf.state_dict import read_state_dict
from caps_tf.weights import load_card, model_file
from caps_tf.weights.card import Card, read_preprocessing


def from_preset(source: str | os.PathLike[str]) -> keras.Model:
    """A trained network, on any Keras backend.

    Args:
        source: a name of `caps_tf.weights.list_weights`, or a directory that `python -m caps_tf.export` wrote.

    Returns:
        A `keras.Model` to scores [b, classes]. One of images takes pixels from 0 to 255, uint8 or float, in the shape of
        `model.input_shape`; resizing, cropping and normalising are its first layer. With it come

        - `model.preprocess(images)`: from a list of images of any size and colours (arrays, Pillow images or paths of
          files), or an array [b, h, w, c] of them, to what the model takes; of images only.
        - `model.class_names`: in the order of the scores.
        - `model.card`: a `caps_tf.weights.Card`: data, accuracy, licence, what it must not be used for.

        They are not part of what `model.save` writes.

    Raises:
        UserError: there is no such network, or its file is damaged or cannot be fetched.

    Example:
        >>> from caps_tf.weights import load_sample
        >>> model, toys = from_preset("rendered_norb_em"), load_sample("rendered_norb_em")["image"]
        >>> scores = model.predict(model.preprocess([toys[0], toys[1]]), verbose=0)
        >>> [model.class_names[label] for label in scores.argmax(axis=-1)]
        ['airplane', 'human']
    """
    card = load_card(source)
    path = model_file(source)
    model = _from_state_dict(card, path) if path.suffix == ".pt" else _load(path)
    model.card, model.class_names = card, tuple(card.class_names)
    if card.reads == "image":
        model.preprocess = functools.partial(preprocess, shape=card.image_shape, part=card.part_of_canvas)
    return model


def preprocess(images: Iterable, shape: tuple[int, int, int], part: tuple[int, int] | None = None) -> np.ndarray:
    """Images of any size as a batch [b, h, w, c] of one shape, see `from_preset`; `part` as for `fit_image`.

    Example:
        >>> preprocess([np.zeros((5, 7), "uint8"), np.zeros((9, 9, 3), "uint8")], (4, 4, 1)).shape
        (2, 4, 4, 1)
    """
    if isinstance(images, (str, os.PathLike)) or getattr(images, "ndim", 3) == 2:
        raise UserError("give a list of images, also of one: [image]")
    read = (read_any_image(each) if isinstance(each, (str, os.PathLike)) else each for each in images)
    fitted = [fit_image(each, shape, part)[0] for each in read]
    return np.stack(fitted) if fitted else np.zeros((0, *shape), "float32")


def network_of(model: keras.Model, card: Card) -> keras.Model:
    """The network behind the preparation of its images."""
    name = NETWORKS[card.network].builder.partition(":")[2]
    return model.get_layer(name) if card.reads == "image" else model


def _load(path: os.PathLike[str]) -> keras.Model:
    try:
        return keras.saving.load_model(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be loaded ({' '.join(str(error).split())[:200]}): export it again") from error


def _from_state_dict(card: Card, path: os.PathLike[str]) -> keras.Model:
    from caps_tf.pretrained import import_weights  # which imports this package

    state = read_state_dict(path)
    if card.preprocessing is None:
        return import_weights(card.network, state)
    rows, _, _ = card.image_shape
    return on_pixels(
        import_weights(card.network, state, rows), read_preprocessing(card.preprocessing), card.image_shape, card.name
    )
