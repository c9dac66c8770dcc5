"""The three lists of dependencies say the same."""

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
