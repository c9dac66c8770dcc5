"""The three lists of dependencies say the same."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_requirements_txt_and_pyproject_toml_name_the_same_versions():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = [line for line in lines if line and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert required == project["dependencies"]


def test_the_conda_environment_installs_requirements_txt():
    environment = (ROOT / "capsenv.yml").read_text()
    assert "- -r requirements.txt" in environment
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"python{project['requires-python']}" in environment


def test_the_other_backends_are_tested_with_the_same_versions():
    lines = (ROOT / "requirements-backends.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {line for line in lines if not line.startswith("#")} < set(project["dependencies"])
    for backend in ("jax", "torch"):
        included, version = (ROOT / f"requirements-{backend}.txt").read_text().splitlines()
        assert included == "-r requirements-backends.txt" and version.startswith(f"{backend}>=")


PUBLIC = """
import sys
import caps_tf
assert "keras" not in sys.modules and "tensorflow" not in sys.modules, "flags would wait for Keras"
for name in caps_tf.__all__:
    part = getattr(caps_tf, name)
    missing = [each for each in getattr(part, "__all__", ()) if not hasattr(part, each)]
    assert not missing, missing
assert callable(caps_tf.layers.EMConvCapsules) and callable(caps_tf.routing.heinsen_routing)
assert set(caps_tf.__all__) <= set(dir(caps_tf))
try:
    caps_tf.nothing
except AttributeError as error:
    assert "nothing" in str(error)
print(caps_tf.__version__)
"""


def test_the_parts_of_the_library_are_attributes_of_it_and_loaded_at_first_use():
    said = subprocess.run([sys.executable, "-c", PUBLIC], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip().count(".") == 2
