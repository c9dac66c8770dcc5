"""Reads what a run has left behind, of train_val.py or of examples/train_any_backend.py, for `caps_tf.export`."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from caps_tf.errors import UserError
from caps_tf.evaluation.metrics import wilson_interval
from caps_tf.export import TrainedRun, spread, told_viewpoints
from caps_tf.scripts import how_to_call
from caps_tf.training.config import RunConfig
from caps_tf.training.params import load_params

TIMING = ("minutes", "steps")
"""What train_any_backend.py writes beside a run's parameters."""
_AS_IT_IS = {"image_size": "0", "normalize": "none", "augment": "none", "pad": 0}
"""Parameters that leave images as they are in their records, but for their size."""


def of_any_backend(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory is one of train_any_backend.py rather than of train_val.py."""
    return Path(directory, "params.json").is_file()


def read_run(directory: Path, ckpt_name: str, count: int, overrides: Mapping[str, str]) -> TrainedRun:
    """Everything that is exported of a run.

    Args:
        directory: of the run.
        ckpt_name: "latest", "best" or a name, of a run of train_val.py.
        count: test examples to take as a sample.
        overrides: "storage", "data_dir" where they are now others.

    Raises:
        UserError: the run is not finished or not tested, or its data are missing.
    """
    if of_any_backend(directory):
        return _read_any_backend(directory, count, overrides)
    config = RunConfig(**load_params(directory / "train" / "params.json"))
    return _read_checkpoint(directory, dataclasses.replace(config, **overrides), ckpt_name, count)  # type: ignore[arg-type]


def read_accuracy(directory: Path, checkpoint: str | None = None) -> tuple[int, dict[str, dict[str, Any]]]:
    """Seed and accuracy of a run that was tested; of its newest report where no checkpoint is named.

    Raises:
        UserError: it was not tested.
    """
    if of_any_backend(directory):
        return load_params(directory / "params.json", TIMING)["seed"], _logged_accuracy(directory)
    seed = load_params(directory / "train" / "params.json")["seed"]
    if checkpoint is None:
        reports = sorted(directory.glob("test/step-*/report.json"), key=lambda path: int(path.parent.name[5:]))
        checkpoint = reports[-1].parent.name if reports else "<step>"
    parts = _read_report(directory, checkpoint)["parts"]
    return seed, {name: _proportion(part) for name, part in parts.items() if part["num_examples"]}


def _read_report(directory: Path, checkpoint: str) -> dict[str, Any]:
    path = directory / "test" / checkpoint / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"{path}: no such file: test the checkpoint first: {how_to_call('test.py')} "
            f"--load_dir={directory} --ckpt_name={checkpoint}"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): test the checkpoint again") from None


def _proportion(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part[name] for name in ("accuracy", "interval", "num_examples")}


def _read_checkpoint(directory: Path, config: RunConfig, ckpt_name: str, count: int) -> TrainedRun:
    import tensorflow as tf

    from caps_tf.data.datasets import ImageDataset, open_dataset
    from caps_tf.data.viewpoints import STEPS
    from caps_tf.training.checkpoints import find_checkpoints, restore
    from caps_tf.training.data import make_test_data
    from caps_tf.training.factories import make_model, make_preprocessing

    if ckpt_name == "all":
        raise UserError("--ckpt_name=all is for test.py: export latest, best, or a name such as step-100")
    checkpoint = find_checkpoints(directory / "train" / "checkpoints", ckpt_name)[0]
    name = Path(checkpoint).name
    report = _read_report(directory, name)
    _, accuracy = read_accuracy(directory, name)
    data = make_test_data(config)
    network = make_model(config, data.input_shapes, len(data.class_names))
    restore(tf.train.Checkpoint(model=network), checkpoint)
    dataset = open_dataset(config.dataset, config.data_dir or None, config.storage)
    preprocessing = None
    if isinstance(dataset, ImageDataset):
        preprocessing = make_preprocessing(config, dataset.viewpoint_unit == STEPS)
        # What comes before a canvas, or makes images one size, has been done to the sample.
        done = config.protocol or None in dataset.image_shape
        resize = "x".join(map(str, preprocessing.resize or "0")) if done else "0"
        data = make_test_data(dataclasses.replace(config, resize=resize, **_AS_IT_IS))  # type: ignore[arg-type]
        if done:
            of_canvas: Any = preprocessing.resize or dataset.image_shape[:2]
            preprocessing = dataclasses.replace(preprocessing, resize=of_canvas if config.protocol else None)
    facts = {
        **{"seed": config.seed, "checkpoint": name, "training examples": data.num_training},
        **{"epochs": config.epoch, "batch size": config.batch_size, "precision": config.precision},
        "backend": "tensorflow",
    }
    by_factor = [part.get("accuracy_by", {}) for part in report["parts"].values()]
    return TrainedRun(
        config=config,
        network=network,
        class_names=data.class_names,
        preprocessing=preprocessing,
        sample=_sample(data, count),
        accuracy=accuracy,
        facts=facts,
        viewpoints=told_viewpoints(config.viewpoints, by_factor),
    )


def _sample(data, count: int) -> dict[str, np.ndarray]:
    """Examples evenly spread over all parts of the test data: images uint8, embeddings float16."""
    wanted = set(spread(sum(part.num_examples for part in data.parts.values()), count).tolist())
    known = next(iter(data.parts.values())).batches.element_spec
    labels = [name for name in ("label", "label2") if name in known]
    taken: dict[str, list[np.ndarray]] = {name: [] for name in (*data.input_shapes, *labels)}
    number = -1
    for part in data.parts.values():
        for batch in part.batches.as_numpy_iterator():
            for row in np.flatnonzero(batch["weight"]):  # the others fill up the last batch
                number += 1
                if number in wanted:
                    for name, values in taken.items():
                        values.append(batch[name][row])
    if "image" in taken:
        pixels = np.round(255 * np.stack(taken["image"])).astype("uint8")
        return {"image": pixels, **{name: np.stack(taken[name]) for name in labels}}
    longest = max(len(mask) for mask in taken["mask"])
    padded = {name: np.stack([_padded(each, longest) for each in taken[name]]) for name in ("embedding", "mask")}
    return {**{name: values.astype("float16") for name, values in padded.items()}, "label": np.stack(taken["label"])}


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1))


def _logged_accuracy(directory: Path) -> dict[str, dict[str, Any]]:
    """Accuracy on all test images, from the last line of a log of train_any_backend.py."""
    try:
        last = json.loads((directory / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        accuracy, examples = last["test_accuracy"], last["test_examples"]
    except (OSError, ValueError, IndexError, KeyError):
        raise UserError(f"{directory}: its run is not at its end: start it again with the same --output") from None
    low, high = wilson_interval(round(accuracy * examples), examples)
    return {"test": {"accuracy": accuracy, "interval": [float(low), float(high)], "num_examples": examples}}


def _where_data_are(dataset: str, overrides: Mapping[str, str]) -> Path:
    """The data of a run of train_any_backend.py, whose parameter `dataset` is their directory.

    Example:
        >>> _where_data_are("data/smallNORB", {"storage": "elsewhere"}).as_posix()
        'elsewhere/data/smallNORB'
    """
    if "data_dir" in overrides:
        return Path(overrides["data_dir"])
    return Path(overrides["storage"], "data", Path(dataset).name) if "storage" in overrides else Path(dataset)


def _read_any_backend(directory: Path, count: int, overrides: Mapping[str, str]) -> TrainedRun:
    import keras

    from caps_tf import models  # noqa: F401  what the network is made of
    from caps_tf.any_backend.data import arrange, read_images
    from caps_tf.data.viewpoints import STEPS
    from caps_tf.training.factories import make_preprocessing

    params = load_params(directory / "params.json", TIMING)
    config = RunConfig(**{name: value for name, value in params.items() if name not in TIMING})
    accuracy = _logged_accuracy(directory)
    images = read_images(_where_data_are(config.dataset, overrides))
    preprocessing = make_preprocessing(config, images.viewpoint_unit == STEPS)
    examples = arrange(images, config, preprocessing)
    tested = np.concatenate([part for name, part in examples.parts.items() if name not in ("train", "validation")])
    chosen = tested[spread(len(tested), count)]
    facts = {
        **{"seed": config.seed, "training examples": len(examples.parts["train"]), "epochs": config.epoch},
        **{"batch size": config.batch_size, "precision": config.precision, "minutes": params.get("minutes")},
    }
    return TrainedRun(
        config=config,
        network=keras.saving.load_model(directory / "network.keras"),
        class_names=images.class_names,
        preprocessing=preprocessing,
        sample={"image": examples.images[chosen], "label": examples.labels[chosen]},
        accuracy=accuracy,
        facts={name: value for name, value in facts.items() if value is not None},
        viewpoints=told_viewpoints(config.viewpoints),
    )
