"""Notebooks are kept as they should be read: valid, executed in order without errors, of no machine, linked. Not executed here:
`make notebooks` does that on TensorFlow, and this file the first of them on other backends.
"""

import json
import re
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(DIRECTORY.glob("*.ipynb"))
LARGEST, LARGEST_IN_ALL = 600_000, 1_500_000
A_WORKSTATION = re.compile(r"/(home|root|Users|tmp|work|usr|opt|var)/|\.venv|site-packages|[A-Z]:\\\\")


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_executed_in_order_and_of_no_machine(path):
    nbformat = pytest.importorskip("nbformat", reason="in the extra [dev], which the other backends do without")
    nbformat.validate(nbformat.read(path, as_version=4))
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) >= 4
    assert not [each for each in outputs if each["output_type"] == "error" or each.get("name") == "stderr"]
    data = [text for each in outputs for kind, text in each.get("data", {}).items() if kind != "image/png"]
    assert not A_WORKSTATION.search(json.dumps([data, [each.get("text") for each in outputs]]))


def test_notebooks_are_small_and_named_by_their_titles_in_the_docs():
    sizes = {path.name: path.stat().st_size for path in NOTEBOOKS}
    assert len(sizes) == 5 and max(sizes.values()) < LARGEST and sum(sizes.values()) < LARGEST_IN_ALL, sizes
    index, site = (DIRECTORY / "README.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for path in NOTEBOOKS:
        title = json.loads(path.read_text())["cells"][0]["source"][0].removeprefix("# ").strip()
        assert f"[{title}]({path.name})" in index and f"notebooks/{path.stem}.md" in site
    assert "](examples/notebooks" in (ROOT / "README.md").read_text()


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="`make notebooks` executes it")
def test_capsules_in_a_keras_model_of_ones_own_learn_on_this_backend():
    namespace = {}
    for cell in code_cells(DIRECTORY / "1_layers.ipynb"):
        exec("".join(cell["source"]), namespace)
    assert namespace["history"].history["val_accuracy"][-1] > 0.9
