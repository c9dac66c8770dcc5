"""Published PyTorch weights in our networks: which of theirs is which of ours, and in what layout."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np

from caps_tf import models
from caps_tf.errors import UserError
from caps_tf.files import write_atomically

StateDict = Mapping[str, np.ndarray]
Weights = dict[str, np.ndarray]
"""Path of a weight within its model, layer/name -> values."""

SUFFIXES = (".keras", ".weights.h5")


def import_weights(network: str, state: StateDict, image_size: int = 96) -> keras.Model:
    """Builds a network with the sizes and the weights of a state dict.

    Args:
        network: "heinsen_norb" or "heinsen_sst".
        state: name -> array, from `read_state_dict`.
        image_size: rows and columns that the model takes, for networks of images; the weights fit any.

    Returns:
        The Keras model.

    Raises:
        UserError: the state dict is of another architecture.

    Example:
        >>> state = read_state_dict("SST2R_pretrained_model_state_dict.pt")  # doctest: +SKIP
        >>> import_weights("heinsen_sst", state).count_params()  # doctest: +SKIP
        138944
    """
    names, build, convert = _NETWORKS[network]
    expected, found = names, {name for name in state if not name.endswith((".num_batches_tracked", ".CONST_one"))}
    if expected != found:
        name = min(expected ^ found)
        raise UserError(
            f"the state dict is not one of {network}: it {'has' if name in found else 'lacks'} {name}: "
            "choose another `network` or `source`"
        )
    try:
        model = build(state, image_size)
        converted = convert(state)
    except (ValueError, IndexError) as error:
        raise UserError(f"the state dict is not one of {network}: {error}") from None
    weights = {"/".join(weight.path.split("/")[-2:]): weight for weight in model.weights}
    for path, weight in weights.items():
        if converted[path].shape != tuple(weight.shape):
            raise UserError(
                f"the state dict is not one of {network}: shape {list(converted[path].shape)} instead of "
                f"{list(weight.shape)} for {path}"
            )
    for path, weight in weights.items():
        weight.assign(converted[path])
    return model


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Writes a model (.keras) or its weights alone (.weights.h5), atomically.

    Raises:
        UserError: the name ends otherwise, or the file cannot be written.
    """
    path = Path(path)
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path}: give a name that ends in {' or '.join(SUFFIXES)}")
    with tempfile.TemporaryDirectory() as directory:
        temporary = Path(directory, f"model{suffix}")
        (model.save if suffix == ".keras" else model.save_weights)(temporary)
        return write_atomically(path, temporary.read_bytes())


def _routing(state: StateDict, prefix: str, layer: str) -> Weights:
    return {f"{layer}/{name}": state[f"{prefix}.{name}"] for name in ("W", "B", "beta_use", "beta_ign")}


def _convolution(state: StateDict, prefix: str, layer: str) -> Weights:
    """PyTorch's kernels are [out, in, rows, columns], Keras's [rows, columns, in, out]."""
    kernel = np.transpose(state[f"{prefix}.weight"], (2, 3, 1, 0))
    return {f"{layer}/kernel": kernel, f"{layer}/bias": state[f"{prefix}.bias"]}


def _batch_norm(state: StateDict, prefix: str, layer: str) -> Weights:
    return {
        f"{layer}/gamma": state[f"{prefix}.weight"],
        f"{layer}/beta": state[f"{prefix}.bias"],
        f"{layer}/moving_mean": state[f"{prefix}.running_mean"],
        f"{layer}/moving_variance": state[f"{prefix}.running_var"],
    }


_AFFINE = ("weight", "bias")
_NORM = (*_AFFINE, "running_mean", "running_var")
_ROUTING = ("W", "B", "beta_use", "beta_ign")


def _names(groups: Mapping[str, tuple[str, ...]]) -> set[str]:
    return {f"{prefix}.{name}" for prefix, names in groups.items() for name in names}


_NORB_BLOCKS = [(f"convolve.{3 * block}", f"convolve.{3 * block + 1}") for block in range(6)]
_NORB_HEADS = {"compute_a": "scores", "compute_mu": "poses"}
_NORB_NAMES = _names(
    {norm: _NORM for norm, _ in _NORB_BLOCKS}
    | {convolution: _AFFINE for _, convolution in _NORB_BLOCKS}
    | {f"{head}.0": _NORM for head in _NORB_HEADS}
    | {f"{head}.1": _AFFINE for head in _NORB_HEADS}
    | {"routings.0": _ROUTING, "routings.1": _ROUTING}
)


def _build_norb(state: StateDict, image_size: int) -> keras.Model:
    channels, image_channels = state["convolve.1.weight"].shape[:2]
    parts, num_classes, _, pose_size = state["routings.1.W"].shape
    return models.heinsen_norb(
        (image_size, image_size, image_channels - 2),  # two channels are the coordinate grid
        num_classes,
        channels=channels,
        parts=parts,
        pose_size=pose_size,
    )


def _convert_norb(state: StateDict) -> Weights:
    weights: Weights = {}
    for number, (norm, convolution) in enumerate(_NORB_BLOCKS, start=1):
        weights |= _batch_norm(state, norm, f"norm{number}") | _convolution(state, convolution, f"conv{number}")
    for head, layer in _NORB_HEADS.items():
        weights |= _batch_norm(state, f"{head}.0", f"{layer}_norm") | _convolution(state, f"{head}.1", layer)
    return weights | _routing(state, "routings.0", "part_capsules") | _routing(state, "routings.1", "class_capsules")


_SST_NAMES = {"depth_emb"} | _names(
    {"detect_parts.0": _AFFINE, "detect_parts.2": _AFFINE, "routings.0": _ROUTING, "routings.1": _ROUTING}
)


def _build_sst(state: StateDict, image_size: int) -> keras.Model:
    del image_size
    depth, width = state["depth_emb"].shape
    parts, num_classes, _, pose_size = state["routings.1.W"].shape
    features = len(state["detect_parts.0.bias"])
    return models.heinsen_sst(depth, width, num_classes, features=features, parts=parts, pose_size=pose_size)


def _convert_sst(state: StateDict) -> Weights:
    return {
        "features/embedding": state["depth_emb"],
        "features/kernel": state["detect_parts.0.weight"].T,
        "features/bias": state["detect_parts.0.bias"],
        "features_norm/gamma": state["detect_parts.2.weight"],
        "features_norm/beta": state["detect_parts.2.bias"],
        **_routing(state, "routings.0", "part_capsules"),
        **_routing(state, "routings.1", "class_capsules"),
    }


_NETWORKS: dict[str, tuple[set[str], Callable[[StateDict, int], keras.Model], Callable[[StateDict], Weights]]] = {
    "heinsen_norb": (_NORB_NAMES, _build_norb, _convert_norb),
    "heinsen_sst": (_SST_NAMES, _build_sst, _convert_sst),
}
NETWORKS = tuple(_NETWORKS)
