"""Makes a trained network that `from_preset` reads of a run: its model, card and sample in one directory.

    python -m caps_tf.export --load_dir=logs/smallNORB/<date>_<name> --output=mine
    python -m caps_tf.export --load_dir=logs/... --output=mine --other_runs=<run of seed 1>,<run of seed 2> \\
      --licence=Apache-2.0 --data="made by data/render_norb.py, seed 0"

The run is one of train_val.py that test.py has tested, or one of examples/train_any_backend.py. Then

    python train_val.py --init_from=mine ...            # starts from its weights
    python -m caps_tf.predict --model=mine image.png
    caps_tf.models.from_preset("mine")                  # a Keras model
"""

import dataclasses
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caps_tf.data.preprocessing import Preprocessing
from caps_tf.errors import UserError
from caps_tf.evaluation.predictions import are_right
from caps_tf.presets import OF_A_RUN, list_presets, load_preset
from caps_tf.training.config import RunConfig

SAMPLE_SIZE = 40
MODEL = "model.keras"
ACCURACY_NOTES = {
    "affine": "Familiar images lie upright anywhere on black, as in training; novel ones are the same images rotated, "
    "sheared and stretched as affNIST's are.",
    "overlap": "Each image shows two classes, and an answer is right if its two highest scores are theirs.",
}
"""What accuracies mean, by protocol."""
DECODER_LEFT_OUT = "trained beside the network (--reconstruction), and not part of the file"


class TrainedRun(NamedTuple):
    """What there is of a run to export.

    Attributes:
        config: its parameters.
        network: the trained network, a Keras model.
        class_names: in the order of the scores.
        preprocessing: what was done to its images; None for embeddings. Of a run with a protocol `resize` is the size of
            the images that it puts on its canvas.
        sample: test examples as they were before that, by name, with "label" [n], and "label2" of pairs; images uint8,
            those of a protocol as they are on its canvas.
        accuracy: part of the test set -> "accuracy", "interval" and "num_examples".
        facts: of the training, for the card.
        viewpoints: in words.
    """

    config: RunConfig
    network: Any
    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None
    sample: dict[str, np.ndarray]
    accuracy: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    viewpoints: str


def export_run(run: TrainedRun, output: str | os.PathLike[str], card: dict[str, Any]) -> Path:
    """Writes model, card and sample of a run into a new directory, which appears when it is whole.

    Args:
        run: what to export.
        output: the directory.
        card: fields of `Card` that the run does not know, such as licence and data.

    Returns:
        The directory.

    Raises:
        UserError: there is something already, or it cannot be written.
    """
    import keras

    from caps_tf.models.preparation import on_pixels
    from caps_tf.weights import SAMPLE, inputs_of
    from caps_tf.weights.card import CARD, TEXT

    output = Path(output)
    if output.exists():
        raise UserError(f"{output}: is there already: choose another --output, or delete it")
    name = output.resolve().name
    model = run.network
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = False  # other backends refuse to load it, and a single device has nothing to agree on
    if run.preprocessing is not None:
        prepared = run.preprocessing
        if run.config.protocol:  # whose sample is on its canvas already
            prepared = dataclasses.replace(prepared, resize=None, protocol="")
        model = on_pixels(model, prepared, run.sample["image"].shape[1:], _keras_name(name))
    with _whole(output) as directory:
        model.save(directory / MODEL)
        # As its users get it.
        scores = scores_of(keras.saving.load_model(directory / MODEL), inputs_of(run.sample))
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {**run.sample, "scores": scores}
        np.savez_compressed(buffer, **arrays)
        (directory / SAMPLE).write_bytes(buffer.getvalue())
        right = int(np.count_nonzero(are_right(scores, run.sample["label"], run.sample.get("label2"))))
        sample = {"correct": right, "num_examples": len(scores)}
        made = make_card(run, name, directory / MODEL, sample, card)
        (directory / CARD).write_text(made.to_json(), encoding="utf-8")
        (directory / TEXT).write_text(made.to_markdown(), encoding="utf-8")
    return output


def make_card(run: TrainedRun, name: str, file: Path, sample: dict[str, int], others: dict[str, Any]):
    """The card of a run whose model has been saved as `file`."""
    import keras

    from caps_tf import __version__
    from caps_tf.networks import NETWORKS
    from caps_tf.weights import Card, sha256_of

    network, reads = NETWORKS[run.config.network], NETWORKS[run.config.network].reads
    shape = run.sample[reads].shape[1:]
    dataset = Path(run.config.dataset).name
    return Card(
        **{
            "name": name,
            "summary": f"`{run.config.network}` that tells {len(run.class_names)} classes of {dataset}.",
            "network": run.config.network,
            "class_names": run.class_names,
            "reads": reads,
            "shape": shape if reads == "image" else (None, *shape[1:]),
            "logits": network.logits,
            "parameters": sum(int(np.prod(weight.shape)) for weight in run.network.trainable_weights),
            "file": {"name": file.name, "sha256": sha256_of(file), "bytes": file.stat().st_size},
            "data": f"{dataset}.",
            "regime": command_of(run.config),
            "training": {**run.facts, **({"decoder": DECODER_LEFT_OUT} if run.config.reconstruction else {})},
            "preprocessing": run.preprocessing and dataclasses.asdict(run.preprocessing),
            "accuracy": run.accuracy,
            "accuracy_note": ACCURACY_NOTES.get(run.config.protocol, ""),
            "viewpoints": run.viewpoints,
            "sample": sample,
            "versions": {"caps_tf": __version__, "keras": keras.__version__},
            **others,
        }
    )


def command_of(config: RunConfig) -> str:
    """The command that trains with these parameters, apart from where the data are.

    Example:
        >>> demo = RunConfig(**{**load_preset("demo_cnn").flags, "preset": "demo_cnn"})
        >>> command_of(dataclasses.replace(demo, epoch=100, seed=3, storage="/somewhere"))
        'python train_val.py --dataset=smallNORB --epoch=100 --seed=3 --preset=demo_cnn'
    """
    # Of the presets as they are now; a flag that is as by default may be one that overrules the preset.
    known = config.preset in list_presets()
    without = {"preset": config.preset, **load_preset(config.preset).flags} if known else {"preset": config.preset}
    given = [f"--dataset={Path(config.dataset).name}"]
    for option in dataclasses.fields(RunConfig):
        value = getattr(config, option.name)
        if value != without.get(option.name, option.default) and option.name not in ("dataset", *OF_A_RUN):
            given.append(f"--{option.name}={Path(value).name if option.name == 'init_from' else value}")
    return " ".join(["python train_val.py", *given, *([f"--preset={config.preset}"] if known else [])])


def scores_of(model, inputs: dict[str, np.ndarray], batch_size: int = 16) -> np.ndarray:
    """What a model says of examples, float32 [n, classes]; without compiling anything for so few.

    Args:
        model: of one input, or of several by name.
        inputs: values [n, ...] by name.
        batch_size: examples at a time.
    """
    import keras

    count = len(next(iter(inputs.values())))
    scores = []
    for start in range(0, count, batch_size):
        part = {name: np.asarray(values[start : start + batch_size], "float32") for name, values in inputs.items()}
        found = model(part if isinstance(model.input, dict) else part["image"], training=False)
        scores.append(np.asarray(keras.ops.convert_to_numpy(found), "float32"))
    return np.concatenate(scores)


def spread(total: int, count: int) -> np.ndarray:
    """Numbers of `count` examples evenly spread over `total`, all if there are fewer.

    Example:
        >>> spread(10, 4).tolist(), spread(3, 4).tolist()
        ([1, 3, 6, 8], [0, 1, 2])
    """
    count = min(count, total)
    return ((np.arange(count) + 0.5) * total / max(count, 1)).astype(int)


def told_viewpoints(trained_on: str, by_factor: Sequence[dict[str, dict[str, Any]]] = ()) -> str:
    """Which viewpoints trained, and where accuracy is lowest and highest, in words; empty where none are known.

    Example:
        >>> told_viewpoints("azimuth", [{"azimuth": {"0": {"accuracy": 0.9}, "40": {"accuracy": 0.5}}}])
        'Trained on --viewpoints=azimuth only. Accuracy over azimuth: lowest 50.0 % at 40, highest 90.0 % at 0.'
    """
    said = [f"Trained on --viewpoints={trained_on} only."] if trained_on else []
    for factor in ("azimuth", "elevation"):
        found = {at: part["accuracy"] for groups in by_factor for at, part in groups.get(factor, {}).items()}
        if found:
            low, high = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
            said.append(
                f"Accuracy over {factor}: lowest {100 * found[low]:.1f} % at {low}, highest {100 * found[high]:.1f} % "
                f"at {high}."
            )
    return " ".join(said)


def _keras_name(name: str) -> str:
    """A name that TensorFlow takes for a scope."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip("_.-") or "model"


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """A directory that gets its name when it is whole, and goes if that fails."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, output)
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}): free some space or choose another --output"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    from caps_tf.commands.export import run

    run(__doc__)
