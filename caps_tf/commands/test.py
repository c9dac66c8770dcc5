"""Tests a trained directory on the test set and writes a report with figures.

    python test.py --load_dir=logs/smallNORB/<date>_<name>
    python test.py --load_dir=... --ckpt_name=best      # latest (default), best, all, or a name such as step-1200
    python test.py --load_dir=... --attack=fgsm         # and on adversarial images: see docs/PROTOCOLS.md
    python test.py --compare=logs/smallNORB/<one>,logs/smallNORB/<other>    # tests that were made, on one page

Network and data are those of the run, from its params.json.
"""

import dataclasses
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from absl import flags

from caps_tf.errors import UserError
from caps_tf.limits import check_address_space
from caps_tf.networks import NETWORKS
from caps_tf.scripts import run_script
from caps_tf.startup import start_keras
from caps_tf.training.attack_config import ATTACKS, AttackConfig, parse_epsilons
from caps_tf.training.config import CLUSTERS, RunConfig
from caps_tf.training.params import load_params

flags.disclaim_key_flags()  # they belong to what is run: --help lists its own
FLAGS = flags.FLAGS
ATTACK_FLAGS = ("attack_epsilon", "attack_steps", "attack_target", "attack_from", "attack_examples")
OVERRIDES = ("storage", "data_dir", "batch_size", "num_gpus", "cluster")


def define_flags() -> None:
    flags.DEFINE_string("load_dir", None, "directory that train_val.py wrote: logs/<dataset>/<date>_<name>")
    flags.DEFINE_list(
        *("compare", []),
        "runs that were tested, with commas between them: compare.html tells whether they differ. Of a directory of a run "
        "the test of the latest checkpoint counts; <run>/test/<checkpoint> names another",
    )
    flags.DEFINE_string("output", None, "directory for compare.html, instead of the first run's test/")
    flags.DEFINE_string("ckpt_name", "latest", "checkpoints to test: latest, best, all, or a name (step-1200)")
    flags.DEFINE_string("storage", None, "directory that holds data/, instead of the training run's")
    flags.DEFINE_string("data_dir", None, "where the data set is, instead of the training run's")
    flags.DEFINE_integer("batch_size", None, "examples in a step, instead of the training run's")
    flags.DEFINE_integer("num_gpus", None, "GPUs to test on, instead of the training run's")
    flags.DEFINE_enum("cluster", None, CLUSTERS, "what names the hosts, instead of the training run's")
    flags.DEFINE_enum(
        *("attack", None, ATTACKS),
        "test adversarial images too: fgsm (fast gradient sign), or bim (basic iterative method)",
    )
    flags.DEFINE_string(
        *("attack_epsilon", "0,0.01,0.02,0.05,0.1,0.2"),
        "how far a pixel is moved at the most, one test for each number; pixels are from 0 to 1, and moved before the "
        "image is normalised",
    )
    flags.DEFINE_integer("attack_steps", 10, "steps of bim")
    flags.DEFINE_string(
        *("attack_target", ""),
        "what images shall be taken for: a class, all (each in turn), or least_likely; default any other",
    )
    flags.DEFINE_string(
        *("attack_from", ""),
        "black box: the run whose newest checkpoint's gradient is used, instead of the tested one's",
    )
    flags.DEFINE_integer("attack_examples", 0, "about how many test examples to attack, 0 for all")


def resolve_config() -> RunConfig:
    """The parameters of the training run, with what the command line says instead."""
    if not FLAGS.load_dir:
        raise UserError("say which run to test: --load_dir=logs/<dataset>/<date>_<name>")
    config = RunConfig(**load_params(Path(FLAGS.load_dir, "train", "params.json")))
    overrides: dict[str, Any] = {name: FLAGS[name].value for name in OVERRIDES if FLAGS[name].value is not None}
    return dataclasses.replace(config, **overrides)


def resolve_attack(config: RunConfig) -> AttackConfig | None:
    """The attack that the command line asks for, if any."""
    if not FLAGS.attack:
        for name in ATTACK_FLAGS:
            if FLAGS[name].present:
                raise UserError(f"--{name} is of an attack: add --attack={' or '.join(ATTACKS)}, or leave it out")
        return None
    if NETWORKS[config.network].reads != "image":
        raise UserError(f"{config.network} reads no images, and nothing else can be attacked: leave out --attack")
    if config.protocol:
        raise UserError(f"images of --protocol={config.protocol} are not attacked: name a run without a protocol")
    if FLAGS.attack == "fgsm" and FLAGS["attack_steps"].present:
        raise UserError("fgsm takes a single step: leave out --attack_steps, or choose --attack=bim")
    return AttackConfig(
        kind=FLAGS.attack,
        epsilons=parse_epsilons(FLAGS.attack_epsilon),
        steps=FLAGS.attack_steps,
        target=FLAGS.attack_target,
        examples=FLAGS.attack_examples,
        source=FLAGS.attack_from,
    )


def compare() -> None:
    """Compares tests that were made."""
    for name in ("load_dir", "ckpt_name", "attack", *ATTACK_FLAGS, "batch_size", "num_gpus", "cluster"):
        if FLAGS[name].present:
            raise UserError(f"--compare reads tests that were made: leave out --{name}")
    from caps_tf.commands.comparison import compare_runs

    places: dict[str, Any] = {name: FLAGS[name].value for name in ("storage", "data_dir") if FLAGS[name].present}
    compare_runs([run for run in FLAGS.compare if run], FLAGS.output, places)


def main(argv: list[str]) -> None:
    if FLAGS["compare"].present:
        compare()
    else:
        test()


def test() -> None:
    """Tests one checkpoint of a run, or several, and writes a report of each."""
    if FLAGS.output:
        raise UserError("--output is of --compare: leave it out, a test's report is in the run's directory")
    config = resolve_config()
    attack = resolve_attack(config)
    directory = Path(FLAGS.load_dir)

    check_address_space()
    start_keras()
    from caps_tf.evaluation.report import write_report
    from caps_tf.evaluation.robustness import attack_table
    from caps_tf.evaluation.training_log import read_log
    from caps_tf.training.attacker import open_attacker
    from caps_tf.training.checkpoints import find_checkpoints
    from caps_tf.training.data import make_test_data
    from caps_tf.training.devices import is_chief, make_strategy
    from caps_tf.training.failures import explained
    from caps_tf.training.tester import Tester, collect_images

    checkpoints = find_checkpoints(directory / "train" / "checkpoints", FLAGS.ckpt_name)
    log_path = directory / "train" / "log.jsonl"
    if log_path.exists():
        read_log(log_path)  # a damaged log is reported before the test, not after it
    strategy = make_strategy(config.num_gpus, config.cluster)
    data = make_test_data(config)
    tester = Tester(config, data.input_shapes, data.class_names, strategy)
    attacker = open_attacker(config, attack, tester, data, strategy) if attack else None
    writes = is_chief(strategy)
    images = None
    with explained(strategy, data.find_damage):
        if writes and "image" in data.input_shapes:
            images = {name: list(collect_images(part)) for name, part in data.parts.items()}
    for checkpoint in checkpoints:
        tester.restore(checkpoint)
        with explained(strategy, data.find_damage):
            predictions = {name: tester.predict(name, part) for name, part in data.parts.items()}
            robustness = attacker.measure() if attacker else None
        if not writes:
            continue
        report_directory = directory / "test" / Path(checkpoint).name
        facts = {"step": tester.step, "tested": f"{datetime.now():%Y-%m-%d %H:%M}"}
        facts |= {"parameters": tester.num_parameters, "training_examples": data.num_training}
        write_report(
            report_directory,
            predictions,
            log_path,
            images,
            title=f"{config.network} on {Path(config.dataset).name}",
            decode=None if tester.decoder is None else tester.decode,
            details={"checkpoint": checkpoint, **facts, **dataclasses.asdict(config)},
            robustness=robustness,
        )
        for name, part in predictions.items():
            print(
                f"step {tester.step}: {name} accuracy {part.accuracy:.2%} on {len(part)} examples, loss {part.loss:.4f}"
            )
        if robustness:
            print(attack_table(robustness))
        print(f"report: {report_directory / 'report.html'}", file=sys.stderr)


def run() -> None:
    """test.py and caps-tf-test."""
    define_flags()
    run_script(main, __doc__)
