"""Trains and tests a network of images with nothing but Keras, NumPy, Pillow and JAX or PyTorch: TensorFlow is not needed.

    KERAS_BACKEND=jax python examples/train_any_backend.py --preset=tsai2020_cifar10 --data=path/to/cifar10 \
      --output=runs/first
    KERAS_BACKEND=jax python examples/train_any_backend.py --preset=norb_attention --data=data/smallNORB \
      --viewpoints=azimuth --minutes=10 --output=runs/novel

--data is an image folder (train/<class>/*.png and test/<class>/*.png, or .jpg, all of one size), a directory with the four
IDX files of MNIST's kin, or one with NORB's six .mat files. The images lie in the device's memory as bytes; a batch is a
list of their numbers, and cropping, mirroring, light and normalising happen there.

Flags are those of train_val.py (--helpfull), and so are network, regime and preprocessing; --jit_compile is for
TensorFlow. After each epoch a line of JSON
goes to the screen and to <output>/log.jsonl; the last line has the accuracy on the test images, and with --viewpoints also
that on familiar and on novel ones. Started again with the same --output, training goes on after the last state saved, and
ends as it would have without the break. <output>/network.keras is the trained network.

--minutes=M trains for that long, reading and compiling included and the test not: the first steps are timed, and the
schedules of the regime are stretched over as many steps as fit in. --epoch given beside it is the most that it takes.

Exit codes: 0 trained and tested, 1 an error, in one line, 130 interrupted.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

BEGIN = time.monotonic()
sys.path.insert(0, str(Path(__file__).parent.parent))

from caps_tf.errors import UserError
from caps_tf.files import locked
from caps_tf.presets import load_preset
from caps_tf.run_flags import define_flags, given_flags, overruled, print_presets
from caps_tf.scripts import run_script
from caps_tf.startup import start_keras
from caps_tf.training.config import RunConfig
from caps_tf.training.params import load_params, save_params

DATA = flags.DEFINE_string("data", None, "directory of images, IDX files or .mat files; else as --dataset says")
OUTPUT = flags.DEFINE_string("output", None, "directory of the run: log, state, network")
MINUTES = flags.DEFINE_float("minutes", None, "train for that long, with the schedules stretched to it", lower_bound=0)

OTHERS = {
    "protocol": "images are as they are in the data",
    "num_gpus": "one device trains",
    "cluster": "one device trains",
    "name": "a run is called by its --output",
    "log_every": "the log has a line an epoch",
    "checkpoint_every": "the state is saved at the end of epochs",
    "keep_checkpoints": "only the last state is kept",
    "routing_gauges": "there are no gauges",
    "profile": "there is no profiler",
    "check_memory": "memory is not checked",
    "reconstruction": "there is no decoder",
}
"""Flags of train_val.py that mean nothing here, and why."""
_DECIDE_WHAT_A_STEP_IS = ("batch_size", "val_prop", "val_instances", "viewpoints", "seed")
"""With another value a run that goes on would not know where it stands."""


def resolve() -> tuple[RunConfig, dict[str, Any]]:
    """The run's parameters, and its "minutes" and "steps": of a new run, or of the one in --output."""
    if not OUTPUT.value:
        raise UserError("say where the run goes: --output=DIR")
    path = Path(OUTPUT.value, "params.json")
    preset = flags.FLAGS["preset"].value
    params: dict[str, Any] = dict(load_preset(preset).flags) if preset else {}
    timing: dict[str, Any] = {"minutes": MINUTES.value, "steps": None}
    if path.exists():
        params = load_params(path, tuple(timing))
        saved = {name: params.pop(name, None) for name in timing}
        _check_same("preset", params.get("preset"), preset or params.get("preset"))
        if saved["minutes"] is not None and "epoch" in given_flags():
            _check_same("epoch", params["epoch"], flags.FLAGS["epoch"].value)
        if MINUTES.value is not None:
            _check_same("minutes", saved["minutes"], MINUTES.value)
        for name in given_flags() & set(_DECIDE_WHAT_A_STEP_IS):
            _check_same(name, params.get(name), flags.FLAGS[name].value)
        timing = saved
    config = overruled(params)
    for option in dataclasses.fields(RunConfig):
        if option.name in OTHERS and getattr(config, option.name) != option.default:
            of_preset = "" if option.name in given_flags() else f", of --preset={config.preset},"
            default = str(option.default).lower().removesuffix(".0")
            raise UserError(
                f"--{option.name}{of_preset} is for train_val.py; here {OTHERS[option.name]}: set "
                f"--{option.name}={default}"
            )
    return dataclasses.replace(config, dataset=str(find_data(config))), timing


def _check_same(flag: str, started: Any, given: Any) -> None:
    if started != given:
        begun = f"--{flag}={started}" if started not in (None, "") else f"no --{flag}"
        raise UserError(f"{OUTPUT.value}: the run in it was started with {begun}: give the same, or another --output")


def find_data(config: RunConfig) -> Path:
    """Where the images are: --data, else what the flags of train_val.py say."""
    if DATA.value or config.data_dir:
        return Path(DATA.value or config.data_dir)
    return Path(config.dataset) if Path(config.dataset).is_dir() else Path(config.storage, "data", config.dataset)


def main(argv: list[str]) -> None:
    if flags.FLAGS["preset"].value == "list":
        print_presets()
        return
    config, timing = resolve()
    # Keras takes seconds to start: only once the flags are known to be good.
    start_keras()
    from caps_tf.any_backend.data import read_images
    from caps_tf.any_backend.trainer import AnyBackendTrainer, memory_explained
    from caps_tf.processor import exact_float32, processor_of
    from caps_tf.training.initial_weights import start_from
    from caps_tf.training.votes import describe_votes

    exact_float32()
    images = read_images(Path(config.dataset))
    output = Path(OUTPUT.value)
    in_use = "another process is training there: wait for its end, or stop it"
    with memory_explained(), locked(output, in_use):
        trainer = AnyBackendTrainer(config, images, output, timing["steps"], paced=timing["minutes"] is not None)
        print(f"training in {output} on {processor_of().describe()}", file=sys.stderr)
        votes = describe_votes(trainer.network, config.batch_size, processor_of())
        if votes:
            print(votes, file=sys.stderr)
        if trainer.restore():
            print(f"going on from step {trainer.step} of {trainer.total_steps} in {output}", file=sys.stderr)
        elif config.init_from:
            print(start_from(trainer.network, config.init_from), file=sys.stderr)
        if not trainer.step and timing["minutes"] is not None and timing["steps"] is None:
            at_most = config.epoch * trainer.steps_per_epoch if "epoch" in given_flags() else None
            timing["steps"] = trainer.choose_steps(60 * timing["minutes"] - (time.monotonic() - BEGIN), at_most)
            print(f"{timing['steps']} steps fit into {timing['minutes']:g} minutes", file=sys.stderr)
        save_params(config, output / "params.json", **timing)
        trainer.run()


if __name__ == "__main__":
    define_flags()
    run_script(main)
