"""The recipe of CONTRIBUTING.md for a routing, its layer and its network works as it stands there."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.small_norb import ROOT, SMALL_DATA

# Imported first, it makes the files of the recipe part of the installed package, and adds the entry.
PLUGIN = """
from pathlib import Path
import caps_tf.layers, caps_tf.models, caps_tf.networks, caps_tf.routing
here = Path(__file__).parent
for part in ("routing", "layers", "models"):
    getattr(caps_tf, part).__path__.append(str(here / "caps_tf" / part))
entry = (here / "entry.txt").read_text()
caps_tf.networks.NETWORKS |= eval("{" + entry + "}", vars(caps_tf.networks))
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A directory with the files of the recipe and a module `recipe` that installs them."""
    directory = tmp_path_factory.mktemp("recipe")
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
    *files, (entry_path, entry) = blocks
    assert entry_path == "caps_tf/networks.py" and len(files) == 3
    for path, text in files:
        assert not (ROOT / path).exists()
        (directory / path).parent.mkdir(parents=True)
        (directory / path).write_text(text)
    (directory / "entry.txt").write_text(entry)
    (directory / "recipe.py").write_text(PLUGIN)
    return directory


TESTS = """
import json, os, re, runpy, shlex, sys
import keras, numpy as np, pytest
from caps_tf.costs import count_costs
from caps_tf.errors import UserError
from caps_tf.training.config import RunConfig

def test_the_layer_of_cosine_counts_and_traces():
    from caps_tf.layers.cosine_capsules import CosineCapsules
    children = keras.Input((3, 4, 2, 5))
    layer = CosineCapsules(6, iterations=3)
    model = keras.Model(children, layer(children))
    assert count_costs(model, 2).votes == 2 * 12 * 2 * 6 * 5
    steps = layer.routing_trace(np.random.default_rng(0).normal(size=(2, 3, 4, 2, 5))).steps
    assert [tuple(step.routing_weights.shape) for step in steps] == [(2, 6, 24)] * 3
    for step in steps:
        np.testing.assert_allclose(np.sum(step.routing_weights, axis=1), 1.0, rtol=1e-5)

def test_a_flag_that_cosine_does_not_read_is_refused():
    with pytest.raises(UserError, match="cosine does not read --part_noise"):
        RunConfig(network="cosine").check_given(["part_noise"])

def test_train_val_trains_cosine_by_its_name(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["train_val.py", *shlex.split(os.environ["FLAGS"])])
    with pytest.raises(SystemExit) as end:
        runpy.run_path("train_val.py", run_name="__main__")
    assert not end.value.code, capfd.readouterr().err
    directory = re.search("^trained: (.*)$", capfd.readouterr().out, re.MULTILINE)[1]
    lines = [json.loads(line) for line in open(directory + "/train/log.jsonl")]
    first, *_, last = [line for line in lines if line["split"] == "train"]
    assert last["loss"] < first["loss"]
"""


def test_the_network_of_the_recipe_conforms_counts_traces_and_is_trained_by_its_name(recipe, storage):
    """All in one process, whose imports take longest."""
    (recipe / "test_cosine.py").write_text(TESTS)
    flags = (*SMALL_DATA, "--network=cosine", "--capsules=3", f"--storage={storage}", "--name=recipe", "--epoch=2")
    environment = {"PYTHONPATH": f"{recipe}:{ROOT}", "PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(
        [sys.executable, *("-m", "pytest", "-p", "recipe", "-p", "no:cacheprovider", "-n", "0", "-q"), "-k", "cosine"]
        + ["tests/test_conformance.py", recipe / "test_cosine.py"],
        cwd=ROOT,
        env={**environment, "FLAGS": shlex.join(flags)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", process.stdout)[1]) >= 8 + 3
