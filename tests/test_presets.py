"""Presets: their files, what --preset makes of them, and what of that a run keeps."""

import dataclasses
import json
import shlex
import tomllib

import pytest

from caps_tf.errors import UserError
from caps_tf.presets import DIRECTORY, OF_A_RUN, departures, list_presets, load_preset, read_preset
from caps_tf.training.config import RunConfig
from caps_tf.training.params import load_params, save_params
from tests.runs import start_training
from tests.small_norb import SMALL_DATA, expect_one_line, run_script

# What train_val.py makes of its flags, for each line of them, without starting TensorFlow.
RESOLVE = """
import dataclasses, json, shlex, sys
from absl import flags
from caps_tf.commands import train
train.define_flags()
for line in sys.argv[1:]:
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["train_val.py", *shlex.split(line)])
    print(json.dumps(dataclasses.asdict(train.resolve_config())))
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
"""


def resolve(*lines):
    """The parameters of each command line."""
    found = [RunConfig(**json.loads(said)) for said in run_script("-c", RESOLVE, *lines).stdout.splitlines()]
    assert len(found) == len(lines)
    return found


def write(directory, text, name="mine"):
    path = directory / f"{name}.toml"
    path.write_text(text)
    return path


ABOUT = '[about]\nsummary = "of a test"\ncommand = "python train_val.py --preset=mine"\n'


def test_a_presets_command_names_it_and_trains_with_exactly_its_flags():
    presets = {path.stem: load_preset(path.stem) for path in DIRECTORY.glob("*.toml")}
    commands = {name: preset.about.command.removeprefix("python train_val.py ") for name, preset in presets.items()}
    for config, (name, command) in zip(resolve(*commands.values()), commands.items(), strict=True):
        flags = shlex.split(command)
        assert config.preset == name and f"--preset={name}" in flags
        given = {flag.lstrip("-").partition("=")[0] for flag in flags}
        for field, default in dataclasses.asdict(RunConfig()).items():
            if field not in given:
                assert getattr(config, field) == presets[name].flags.get(field, default), (name, field)


def test_every_file_is_listed_and_none_is_called_as_the_list_is():
    presets = list_presets()
    assert {"demo", "hinton2018_smallnorb", "heinsen2019_sst", "tsai2020_cifar100"} <= set(presets)
    assert all(preset.name == name for name, preset in presets.items()) and "list" not in presets


def test_the_matrix_capsules_preset_spells_out_the_defaults_and_leaves_out_validation():
    values, defaults = load_preset("hinton2018_smallnorb").flags, dataclasses.asdict(RunConfig())
    different = {name for name, value in values.items() if value != defaults[name]}
    # Of these the defaults are the same, decided by network and data.
    assert different == {"val_prop", "resize", "image_size", "augment", "iter_routing", "loss"}
    assert values["val_prop"] == 0


def test_flags_overrule_the_preset_wherever_they_stand_and_the_preset_the_defaults():
    assert RunConfig().epoch == 100 and RunConfig().sequential_routing is False
    others = "--sequential_routing --lrn_rate=0.003"
    for config in resolve(
        f"--preset=tsai2020_cifar10 --epoch=7 {others}", f"--epoch=7 --preset=tsai2020_cifar10 {others}"
    ):
        assert (config.network, config.batch_size, config.weight_decay) == ("attention", 128, 5e-4)
        assert (config.epoch, config.sequential_routing, config.lrn_rate) == (
            7,
            True,
            0.003,
        )  # the default rate, but given
        assert (config.seed, config.storage) == (0, ".")


def test_iterations_have_two_names_and_one_value():
    preset = "--preset=tsai2020_cifar10"
    found = resolve(f"{preset} --iter_routing=3", f"{preset} --num_routing=3", "--num_routing=1")
    assert [config.routing_iterations for config in found] == [3, 3, 1]


def test_the_list_has_a_line_for_each_preset_with_its_summary():
    lines = run_script("train_val.py", "--preset=list").stdout.splitlines()
    presets = list_presets()
    assert [line.split()[0] for line in lines] == list(presets)
    columns = {line.index(preset.about.summary) for line, preset in zip(lines, presets.values(), strict=True)}
    assert len(columns) == 1


def test_an_unknown_preset_gets_the_nearest_names_and_exit_code_1():
    process = run_script("train_val.py", "--preset=tsai2020_cifar", check=False)
    expect_one_line(process, "'tsai2020_cifar'", "tsai2020_cifar10", "tsai2020_cifar100", "--preset=list")
    assert process.returncode == 1
    with pytest.raises(UserError, match="no preset is called '../presets/demo'"):
        load_preset("../presets/demo")


def test_a_run_departs_from_its_preset_and_without_one_or_with_a_forgotten_one_from_the_defaults():
    of_preset = dataclasses.asdict(RunConfig(preset="demo", name="a", storage="b", **load_preset("demo").flags))
    assert departures(of_preset) == ("preset demo", {})
    assert departures({**of_preset, "seed": 3, "step": 9}) == ("preset demo", {"seed": (3, 0)})
    for preset in ("", "forgotten"):
        against, differing = departures({**of_preset, "preset": preset})
        assert (against, differing["epoch"], "seed" in differing) == ("defaults", (15, 100), False)
    assert departures({"network": "attention", "num_routing": 4})[1]["iter_routing"] == (4, 0)


@pytest.mark.parametrize("other", ["--load_dir=logs/smallNORB/some", "--params_path=params.json"])
def test_a_preset_is_refused_beside_the_parameters_of_a_run(other):
    expect_one_line(run_script("train_val.py", "--preset=demo", other, check=False), "--preset", "params.json")


def test_a_run_keeps_the_presets_name_and_values_and_goes_on_with_them(storage):
    few = ("--convolutions=4k5s4", "--epoch=1", "--lrn_rate=0.01")
    run = start_training(*SMALL_DATA, f"--storage={storage}", "--preset=norb_average", *few)
    path = run / "train" / "params.json"
    params = load_params(path)
    assert (params["preset"], params["epoch"], params["lrn_rate"]) == ("norb_average", 1, 0.01)
    assert (params["network"], params["schedule"], params["batch_size"]) == ("conv_capsules", "one_cycle", 32)
    run_script("train_val.py", f"--load_dir={run}", "--epoch=2")
    assert load_params(path) == {**params, "epoch": 2}
    assert resolve(f"--params_path={path} --seed=3") == [dataclasses.replace(RunConfig(**params), epoch=2, seed=3)]


def test_parameters_of_earlier_runs_have_no_preset_and_those_of_a_forgotten_one_still_load(tmp_path):
    path = tmp_path / "params.json"
    save_params(RunConfig(A=4, preset="forgotten"), path)
    assert RunConfig(**load_params(path)).preset == "forgotten"
    params = json.loads(path.read_text())
    del params["preset"]
    path.write_text(json.dumps(params))
    assert RunConfig(**load_params(path)) == RunConfig(A=4)


def test_whole_numbers_stand_for_floats_and_the_table_about_is_typed(tmp_path):
    text = ABOUT + "minutes = 4\nmeasured = 2026-11-27\n[flags]\nlrn_rate = 1\nmixup = 0\nepoch = 2\n"
    preset = read_preset(write(tmp_path, text))
    assert (preset.name, preset.about.minutes, preset.about.measured.year) == ("mine", 4, 2026)
    assert preset.flags == {"lrn_rate": 1.0, "mixup": 0.0, "epoch": 2} and type(preset.flags["lrn_rate"]) is float


@pytest.mark.parametrize(
    "text, words",
    [
        ("summary = ", ["not TOML"]),
        ("[flags]\n", ["[about] and [flags]"]),
        (ABOUT + "[flags]\n[more]\n", ["[about] and [flags]"]),
        ("about = 1\n[flags]\n", ["[about] and [flags]"]),
        ("[about]\nsummary = 'x'\n[flags]\n", ["command"]),
        ('[about]\nsummary = """two\nlines"""\ncommand = "x"\n[flags]\n', ["summary", "one line"]),
        (ABOUT + "speed = 3\n[flags]\n", ["'speed'", "minutes"]),
        (ABOUT + "minutes = '4'\n[flags]\n", ["minutes", "a number"]),
        (ABOUT + "minutes = true\n[flags]\n", ["minutes", "a number"]),
        (ABOUT + "measured = '2026-11-27'\n[flags]\n", ["measured", "a date"]),
        (ABOUT + "[flags]\nepochs = 3\n", ["'epochs'", "epoch"]),
        (ABOUT + "[flags]\nload_dir = 'x'\n", ["'load_dir'"]),
        (ABOUT + "[flags]\nepoch = 3.0\n", ["epoch", "int"]),
        (ABOUT + "[flags]\nresize = 48\n", ["resize", "str"]),
        (ABOUT + "[flags]\nprofile = 1\n", ["profile", "bool"]),
        (ABOUT + "[flags]\nepoch = 0\n", ["epoch must be positive"]),
        (ABOUT + f"[flags]\nlrn_rate = {10**400}\n", ["too large"]),
        (ABOUT + "[flags]\nnetwork = 'resnet'\n", ["matrix_capsules"]),
        (ABOUT + "[flags]\nloss = 'spread'\nmixup = 0.2\n", ["mixup"]),
        *((ABOUT + f"[flags]\n{name} = 'x'\n", [repr(name)]) for name in OF_A_RUN),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong_in_one_line(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as refused:
        read_preset(path)
    for word in (str(path), *words):
        assert word in str(refused.value)


def test_a_file_that_is_missing_or_not_text_is_named(tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("missing", "bytes"):
        with pytest.raises(UserError, match=f"{name}.toml"):
            read_preset(tmp_path / f"{name}.toml")


def test_the_packages_data_include_the_presets():
    project = tomllib.loads((DIRECTORY.parent.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["caps_tf"]
    assert set(DIRECTORY.glob("*.toml")) <= {path for pattern in patterns for path in DIRECTORY.parent.glob(pattern)}
