"""Executes the notebooks beside it, and fails where a cell does.

    pip install '.[notebooks]'
    python examples/notebooks/execute.py                   # all of them, which leaves the files as they are
    python examples/notebooks/execute.py --write 2*.ipynb  # these, and keeps what they put out

What is kept says nothing of when and where it was made, so that a file changes only where a result does.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

DIRECTORY = Path(__file__).resolve().parent
ROOT = DIRECTORY.parent.parent
sys.path.insert(0, str(ROOT))

from caps_tf.startup import set_environment

SECONDS_A_CELL = 3600
_RANDOM = re.compile("[0-9a-f]{32}")


def execute(path: Path, write: bool) -> float:
    """Executes one notebook in its directory; returns the seconds that it took.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    begin = time.monotonic()
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, timeout=SECONDS_A_CELL, resources=resources, record_timing=False, coalesce_streams=True
    ).execute()
    seconds = time.monotonic() - begin
    if write:
        nbformat.write(without_traces(notebook), path)
    return seconds


def without_traces(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leaves out what libraries log, second pictures of the same, random names and the version of Python."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for data in (output.data for output in cell.outputs if "data" in output):
                if "image/png" in data:
                    data.pop("image/jpeg", None)
                if "text/html" in data:
                    data["text/html"] = _RANDOM.sub(cell.id.replace("-", ""), data["text/html"])
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="which, instead of all")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the files")
    arguments = parser.parse_args()
    set_environment()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    failed = 0
    for path in arguments.notebooks or sorted(DIRECTORY.glob("*.ipynb")):
        try:
            print(f"{path.name}: {execute(path, arguments.write):.0f} s", flush=True)
        except CellExecutionError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
