"""The package installs elsewhere, its commands are those of the scripts, and its lists of dependencies say the same."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from caps_tf import scripts
from tests.small_norb import run_script

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LINTERS = ("ruff", "mypy")
COMMANDS = {command.removeprefix("caps-tf-"): script for script, command in scripts.COMMANDS.items()}


def lines_of(name):
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def test_the_files_of_requirements_name_the_versions_of_pyproject_toml():
    linters = [line for line in EXTRAS["dev"] if line.startswith(LINTERS)]
    tests = [line for line in EXTRAS["dev"] if not line.startswith(LINTERS)]
    assert lines_of("requirements.txt") == [*PROJECT["dependencies"], *tests]
    assert lines_of("requirements-lint.txt") == linters
    assert lines_of("requirements-docs.txt") == EXTRAS["docs"]
    assert lines_of("requirements-notebooks.txt") == EXTRAS["notebooks"]
    assert {*EXTRAS["text"], *(line for line in tests if line.startswith("nbformat"))} < {*EXTRAS["notebooks"]}
    assert set(lines_of("requirements-backends.txt")) < {*PROJECT["dependencies"], *tests}
    for backend in ("jax", "torch"):
        assert lines_of(f"requirements-{backend}.txt") == ["-r requirements-backends.txt", *EXTRAS[backend]]
    [tensorflow] = [line for line in PROJECT["dependencies"] if line.startswith("tensorflow>")]
    assert EXTRAS["gpu"] == [tensorflow.replace("tensorflow", "tensorflow[and-cuda]")]


def test_the_conda_environment_installs_requirements_txt():
    environment = (ROOT / "capsenv.yml").read_text()
    assert "- -r requirements.txt" in environment
    assert f"python{PROJECT['requires-python']}" in environment


def test_who_uses_the_package_does_not_install_its_tests():
    assert not [line for line in PROJECT["dependencies"] if line.startswith(("pytest", "hypothesis", "nb", *LINTERS))]


MISSING = """
from caps_tf.data.datasets import open_dataset
try:
    open_dataset("renderedNORB")
except Exception as error:
    print(error)
"""
PUBLIC = """
import sys
import caps_tf
assert "keras" not in sys.modules and "tensorflow" not in sys.modules, "flags would wait for Keras"
for name in ("matplotlib", "tensorflow_datasets", "trimesh", "pytest", "hypothesis"):
    sys.modules[name] = None  # an import of it fails
from caps_tf import layers, losses, models, routing
for name in caps_tf.__all__:
    part = getattr(caps_tf, name)
    missing = [each for each in getattr(part, "__all__", ()) if not hasattr(part, each)]
    assert not missing, missing
assert callable(layers.EMConvCapsules) and callable(routing.heinsen_routing)
assert set(caps_tf.__all__) <= set(dir(caps_tf))
try:
    caps_tf.nothing
except AttributeError as error:
    assert "nothing" in str(error)
print(caps_tf.__file__, caps_tf.__version__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The bin directory of an environment outside the checkout that has the built wheel, and this one's dependencies."""
    directory = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", ROOT]
    built = subprocess.run([*build, "-w", directory / "wheels"], capture_output=True, text=True)
    if built.returncode != 0 and ("No matching distribution" in built.stderr or "Connection" in built.stderr):
        pytest.skip("a wheel is built with setuptools>=77, which cannot be fetched here")
    assert built.returncode == 0, built.stderr
    [wheel] = (directory / "wheels").glob("caps_tf-*.whl")
    venv.create(directory / "env")
    python = directory / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    ours = directory / "env" / "lib" / version / "site-packages"
    (ours / "dependencies.pth").write_text("\n".join({sysconfig.get_path(name) for name in ("purelib", "platlib")}))
    return python.parent


def run_installed(program, *arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run([program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert process.returncode in (0, 1), process.stderr  # 1 is what --help leaves
    return process


@pytest.mark.campaign
def test_the_wheel_is_the_library_and_needs_at_import_only_what_layers_need(installed, tmp_path):
    process = run_installed(installed / "python", "-c", PUBLIC, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    path, version = process.stdout.split()
    assert Path(path).is_relative_to(installed.parent) and version.count(".") == 2


@pytest.mark.campaign
def test_console_commands_are_the_scripts(installed, tmp_path):
    assert {f"caps-tf-{name}" for name in COMMANDS} <= set(PROJECT["scripts"])
    for name in PROJECT["scripts"]:
        said = run_installed(installed / name, "--help", cwd=tmp_path)
        assert "Traceback" not in said.stderr and said.stdout.count("--") > 3, said.stderr
        if (script := COMMANDS.get(name.removeprefix("caps-tf-"))) is not None:
            ours = run_script(script, "--help", check=False).stdout
            assert said.stdout.replace(str(installed / name), script) == ours
    assert "demo" in run_installed(installed / "caps-tf-train", "--preset=list", cwd=tmp_path).stdout
    told = run_installed(installed / "python", "-c", MISSING, cwd=tmp_path).stdout
    assert "run caps-tf-render, then caps-tf-convert --dataset=renderedNORB" in told
    few = ("--instances_per_split=1", "--elevations=1", "--azimuths=1", "--lightings=1", "--image_size=8")
    run_installed(installed / "caps-tf-render", *few, "--num_processes=1", f"--data_dir={tmp_path}", cwd=tmp_path)
    assert len(list(tmp_path.glob("*.mat"))) == 6
