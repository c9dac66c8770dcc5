"""Trains and validates a capsule network.

    python train_val.py --dataset=smallNORB --name=first
    python train_val.py --preset=list                                 # named flags; --preset=NAME trains with them
    python train_val.py --load_dir=logs/smallNORB/<date>_first        # continue where it stopped
    python train_val.py --helpfull                                    # all flags, in groups

Exit codes: 0 trained to the end, 1 an error, in one line, 130 interrupted, 143 stopped by SIGTERM after saving.
"""

import shutil
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from absl import flags

from caps_tf.errors import UserError
from caps_tf.files import locked
from caps_tf.limits import check_address_space
from caps_tf.presets import load_preset
from caps_tf.run_flags import define_flags as define_run_flags
from caps_tf.run_flags import overruled, print_presets
from caps_tf.scripts import how_to_call, run_script
from caps_tf.startup import start_keras
from caps_tf.training.config import RunConfig
from caps_tf.training.params import load_params, save_params
from caps_tf.weights import find_weights

flags.disclaim_key_flags()  # they belong to what is run: --help lists its own
FLAGS = flags.FLAGS

IN_USE = "another process is training there: wait for its end, or stop it"


def define_flags() -> None:
    """The flags of a run, and which run to continue."""
    flags.DEFINE_string("load_dir", None, "continue the run in this directory, with its parameters")
    flags.DEFINE_string("ckpt_name", "latest", "with --load_dir: continue from latest, best, or a name (step-100)")
    flags.DEFINE_string("params_path", None, "take the parameters of a new run from this params.json")
    flags.DEFINE_bool("reset", False, "with --load_dir: delete its checkpoints and logs and start over")
    define_run_flags()


def resolve_config() -> RunConfig:
    """Parameters: what the command line says, else what the preset or the file says, else the defaults."""
    if FLAGS.load_dir and FLAGS.params_path:
        raise UserError("--load_dir brings its own params.json: give one of --load_dir and --params_path")
    preset = FLAGS["preset"]
    if preset.present and (FLAGS.load_dir or FLAGS.params_path):
        raise UserError("--preset is for a new run, and --load_dir and --params_path bring their params.json: give one")
    params = {}
    if FLAGS.load_dir:
        params = load_params(Path(FLAGS.load_dir, "train", "params.json"))
    elif FLAGS.params_path:
        params = load_params(FLAGS.params_path)
    elif preset.value:
        params = dict(load_preset(preset.value).flags)
    return overruled(params)


def make_run_directory(config: RunConfig) -> Path:
    """The directory of the run, named but not yet made: a run that cannot start leaves nothing behind."""
    if FLAGS.load_dir:
        return Path(FLAGS.load_dir)
    if FLAGS.reset:
        raise UserError("--reset starts the run in a directory over: give its --load_dir")
    dataset = Path(config.dataset).name
    date = datetime.now().strftime("%Y%m%d_%H%M%S")
    return Path(config.storage, "logs", dataset, f"{date}_{config.name}")


def clear(directory: Path) -> None:
    """Removes what a run has learned; its parameters stay, so that it can be started over at any moment."""
    for path in directory.iterdir():
        if path.name == "checkpoints":
            shutil.rmtree(path)
        elif path.is_file() and path.name != "params.json":
            path.unlink()


def find_checkpoint(directory: Path) -> str | None:
    """The checkpoint to go on from; None if the run was stopped before it saved one."""
    from caps_tf.training.checkpoints import find_checkpoints, list_checkpoints

    if FLAGS.ckpt_name == "all":
        raise UserError("--ckpt_name=all is for test.py: continue from latest, best, or a name such as step-100")
    if FLAGS.ckpt_name == "latest" and not list_checkpoints(directory):
        return None
    return find_checkpoints(directory, FLAGS.ckpt_name)[0]


def main(argv: list[str]) -> None:
    if FLAGS.preset == "list":
        print_presets()
        return
    config = resolve_config()
    if config.init_from and not FLAGS.load_dir:
        find_weights(config.init_from)
    directory = make_run_directory(config)
    train_directory = directory / "train"

    check_address_space()
    start_keras()
    import keras

    from caps_tf.processor import processor_of
    from caps_tf.training.data import make_training_data
    from caps_tf.training.devices import describe_devices, is_chief, make_strategy
    from caps_tf.training.failures import explained
    from caps_tf.training.memory import check_memory
    from caps_tf.training.trainer import Trainer
    from caps_tf.training.votes import describe_votes

    strategy = make_strategy(config.num_gpus, config.cluster)
    data = make_training_data(config)
    if config.check_memory:
        check_memory(config, data, strategy)
    keras.utils.set_random_seed(config.seed)
    with ExitStack() as stack:
        stack.enter_context(explained(strategy, data.find_damage))
        claims = is_chief(strategy)
        if claims and FLAGS.load_dir:
            stack.enter_context(locked(directory, IN_USE))
            if FLAGS.reset:
                clear(train_directory)
        trainer = Trainer(config, data, train_directory, strategy)
        checkpoint = None
        if FLAGS.load_dir and not FLAGS.reset:
            checkpoint = find_checkpoint(train_directory / "checkpoints")
            if checkpoint:
                trainer.checkpoints.restore(checkpoint)
            print(f"continuing from {checkpoint or 'the start: nothing was saved yet'}", file=sys.stderr)
        if config.init_from and not checkpoint:
            print(trainer.start_from(config.init_from), file=sys.stderr)
        if claims:
            if not FLAGS.load_dir:
                stack.enter_context(locked(directory, IN_USE))
            print(f"training in {directory} on {describe_devices(strategy)}", file=sys.stderr)
            votes = describe_votes(
                trainer.model, -(-config.batch_size // strategy.num_replicas_in_sync), processor_of()
            )
            if votes:
                print(votes, file=sys.stderr)
            save_params(config, train_directory / "params.json")
        trainer.run()
    if is_chief(strategy):
        print(f"trained: {directory}")
        print(f"next: {how_to_call('test.py')} --load_dir={directory}")


def run() -> None:
    """train_val.py and caps-tf-train."""
    define_flags()
    run_script(main, __doc__)
