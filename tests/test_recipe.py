"""The recipe of CONTRIBUTING.md for a routing, its layer and its network works as it stands there."""

import re
import subprocess
import sys

import pytest

from tests.runs import log_lines
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
TRAIN = "import recipe, runpy, sys; sys.argv[0] = 'train_val.py'; runpy.run_path('train_val.py', run_name='__main__')"


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


def run(recipe, *command):
    environment = {"PYTHONPATH": f"{recipe}:{ROOT}", "PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def test_the_conformance_test_passes_for_the_network_of_the_recipe(recipe):
    tests = ["-m", "pytest", "-p", "recipe", "-p", "no:cacheprovider", "-n", "0", "-q", "tests/test_conformance.py"]
    process = run(recipe, *tests, "-k", "cosine")
    assert process.returncode == 0, process.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", process.stdout)[1]) >= 9


LAYER = """
import recipe, keras, numpy as np
from caps_tf.layers.cosine_capsules import CosineCapsules
from caps_tf.costs import count_costs
children = keras.Input((3, 4, 2, 5))
layer = CosineCapsules(6, iterations=3)
model = keras.Model(children, layer(children))
assert count_costs(model, 2).votes == 2 * 12 * 2 * 6 * 5
steps = layer.routing_trace(np.random.default_rng(0).normal(size=(2, 3, 4, 2, 5))).steps
assert [tuple(step.routing_weights.shape) for step in steps] == [(2, 6, 24)] * 3
for step in steps:
    np.testing.assert_allclose(np.sum(step.routing_weights, axis=1), 1.0, rtol=1e-5)
"""


def test_the_layer_of_the_recipe_counts_and_traces(recipe):
    process = run(recipe, "-c", LAYER)
    assert process.returncode == 0, process.stderr[-2000:]


def test_the_network_of_the_recipe_is_trained_by_its_name(recipe, storage):
    flags = ("--network=cosine", "--capsules=3", f"--storage={storage}", "--name=recipe", "--epoch=2")
    process = run(recipe, "-c", TRAIN, *SMALL_DATA, *flags)
    assert process.returncode == 0, process.stderr[-2000:]
    directory = re.search(r"^trained: (.*)$", process.stdout, re.MULTILINE)[1]
    first, *_, last = log_lines(ROOT / directory, "train")
    assert last["loss"] < first["loss"]
    refused = run(recipe, "-c", TRAIN, *SMALL_DATA, *flags, "--part_noise=1")
    assert refused.returncode == 1 and "cosine does not read --part_noise" in refused.stderr
