"""Trains and validates a capsule network.

    python train_val.py --dataset=smallNORB --name=first
    python train_val.py --load_dir=logs/smallNORB/<date>_first        # continue where it stopped
    python train_val.py --helpfull                                    # all flags, in groups
"""

import dataclasses
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path

from absl import flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: its start-up chatter

from caps_tf.errors import UserError, run_script
from caps_tf.training.config import RunConfig, load_params, save_params

LOAD_DIR = flags.DEFINE_string("load_dir", None, "continue the run in this directory, with its parameters")
CKPT_NAME = flags.DEFINE_string("ckpt_name", "latest", "with --load_dir: continue from latest, best, or a name (step-100)")
PARAMS_PATH = flags.DEFINE_string("params_path", None, "take the parameters of a new run from this params.json")
RESET = flags.DEFINE_bool("reset", False, "with --load_dir: delete its checkpoints and logs and start over")

RETIRED_FLAGS = {
    "debugger": "TensorBoard's debugger is gone; a NaN now stops the run and names its layer",
    "db_name": "results are kept as files: logs/<dataset>/<date>_<name>/train/log.jsonl",
    "logdir": "use --name, or --storage for another place of logs/",
    "mode": "run train_val.py to train and validate, test.py to test",
    "norm": "use --normalize; images are standardised one by one by default, as the published code did",
    "num_threads": "the input pipeline uses all cores by itself",
    "drop_rate": "the published code never read it",
}


def define_flags() -> None:
    """One flag for each parameter of `RunConfig`, in its groups, and one for each retired flag."""
    kinds = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string, bool: flags.DEFINE_bool}
    for option in dataclasses.fields(RunConfig):
        metadata = option.metadata
        if metadata["choices"]:
            flags.DEFINE_enum(
                option.name, option.default, metadata["choices"], metadata["help"], module_name=metadata["group"]
            )
        else:
            kinds[option.type](option.name, option.default, metadata["help"], module_name=metadata["group"])
        flags.declare_key_flag(option.name)
    for name, reason in RETIRED_FLAGS.items():
        flags.DEFINE_string(name, None, f"retired: {reason}", module_name="retired")


def resolve_config() -> RunConfig:
    """Parameters: what the command line says, else what the file says, else the defaults."""
    for name, reason in RETIRED_FLAGS.items():
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} no longer exists: {reason}")
    if LOAD_DIR.value and PARAMS_PATH.value:
        raise UserError("--load_dir brings its own params.json: give one of --load_dir and --params_path")
    params = {}
    if LOAD_DIR.value:
        params = load_params(Path(LOAD_DIR.value, "train", "params.json"))
    elif PARAMS_PATH.value:
        params = load_params(PARAMS_PATH.value)
    for option in dataclasses.fields(RunConfig):
        if flags.FLAGS[option.name].present:
            params[option.name] = flags.FLAGS[option.name].value
    return RunConfig(**params)


def make_run_directory(config: RunConfig) -> Path:
    """The directory of the run, named but not yet made: a run that cannot start leaves nothing behind."""
    if LOAD_DIR.value:
        return Path(LOAD_DIR.value)
    if RESET.value:
        raise UserError("--reset starts the run in a directory over: give its --load_dir")
    dataset = Path(config.dataset).name
    date = datetime.now().strftime("%Y%m%d_%H%M%S")
    return Path(config.storage, "logs", dataset, f"{date}_{config.name}")


def main(argv: list[str]) -> None:
    config = resolve_config()
    directory = make_run_directory(config)
    train_directory = directory / "train"

    # TensorFlow takes seconds to start: only once the flags are known to be good.
    import keras

    from caps_tf.training.checkpoints import find_checkpoints
    from caps_tf.training.data import make_training_data
    from caps_tf.training.devices import describe_devices, is_chief, make_strategy
    from caps_tf.training.trainer import Trainer

    strategy = make_strategy(config.num_gpus)
    keras.utils.set_random_seed(config.seed)
    data = make_training_data(config)
    if RESET.value and is_chief(strategy):
        shutil.rmtree(train_directory)
    trainer = Trainer(config, data, train_directory, strategy)
    if LOAD_DIR.value and not RESET.value:
        [checkpoint] = find_checkpoints(train_directory / "checkpoints", CKPT_NAME.value)
        trainer.checkpoints.restore(checkpoint)
        print(f"continuing from {checkpoint}", file=sys.stderr)
    if is_chief(strategy):
        print(f"training in {directory} on {describe_devices(strategy)}", file=sys.stderr)
        save_params(config, train_directory / "params.json")
    trainer.run()
    if is_chief(strategy):
        print(f"trained: {directory}")
        print(f"next: python test.py --load_dir={directory}")


if __name__ == "__main__":
    define_flags()
    run_script(main)
