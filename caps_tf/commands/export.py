"""Exports a run: see caps_tf/export.py."""

from pathlib import Path

from absl import flags

from caps_tf.errors import UserError
from caps_tf.export import SAMPLE_SIZE, export_run
from caps_tf.scripts import run_script
from caps_tf.startup import start_keras

flags.disclaim_key_flags()  # they belong to what is run: --help lists its own
FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("load_dir", None, "directory of the run, tested")
    flags.DEFINE_string("output", None, "directory to make; its name becomes that of the network")
    flags.DEFINE_string("ckpt_name", "latest", "checkpoint to export: latest, best, or a name (step-1200)")
    flags.DEFINE_integer("sample", SAMPLE_SIZE, "test examples that go with it", lower_bound=1, upper_bound=10_000)
    flags.DEFINE_list("other_runs", [], "runs that differ in their seed, whose accuracies the card tells")
    flags.DEFINE_string("data", None, "for the card: what it was trained on, and how that was made")
    flags.DEFINE_string("licence", "not stated: ask who trained it", "for the card: of the weights")
    flags.DEFINE_string("not_for", None, "for the card: what else it must not be used for")
    flags.DEFINE_string("storage", None, "directory that holds data/, instead of the training run's")
    flags.DEFINE_string("data_dir", None, "where the data set is, instead of the training run's")


def main(argv: list[str]) -> None:
    del argv
    for name in ("load_dir", "output"):
        if not FLAGS[name].value:
            raise UserError(f"say --{name}=DIR: see --help")
    if Path(FLAGS.output).exists():
        raise UserError(f"{FLAGS.output}: is there already: choose another --output, or delete it")
    start_keras()
    from caps_tf.trained_runs import read_accuracy, read_run
    from caps_tf.weights.card import NOT_FOR, told_accuracy

    others = [dict(zip(("seed", "accuracy"), read_accuracy(Path(run)), strict=True)) for run in FLAGS.other_runs]
    overrides = {name: str(FLAGS[name].value) for name in ("storage", "data_dir") if FLAGS[name].value}
    run = read_run(Path(FLAGS.load_dir), FLAGS.ckpt_name, FLAGS.sample, overrides)
    card = {
        "other_seeds": others,
        "licence": FLAGS.licence,
        "not_for": " ".join(filter(None, [NOT_FOR, FLAGS.not_for])),
        **({"data": FLAGS.data} if FLAGS.data else {}),
    }
    directory = export_run(run, FLAGS.output, card)
    size = sum(path.stat().st_size for path in directory.iterdir())
    accuracy = "; ".join(f"{name} {told_accuracy(found)}" for name, found in run.accuracy.items())
    print(f"{directory}: {run.config.network}, {size / 1e6:.2f} MB; {accuracy}")


def run(usage: str | None = None) -> None:
    """python -m caps_tf.export."""
    define_flags()
    run_script(main, usage or __doc__)
