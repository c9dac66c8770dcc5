"""The code stays readable: short modules and functions, and no tables that are kept by `id()`."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("caps_tf/**/*.py", "benchmarks/**/*.py", "examples/**/*.py", "data/*.py", "*.py")
TESTS = ("tests/**/*.py",)
LONGEST_MODULE = 400
LONGEST_BODY = 60
"""Lines of a function without its signature and docstring."""


def modules(patterns):
    """Each module's path within the repository, its text and its syntax tree."""
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        yield path.relative_to(ROOT), text, ast.parse(text)


def test_modules_are_short_enough_to_be_read_at_once():
    lengths = {str(path): len(text.splitlines()) for path, text, _ in modules(CODE + TESTS)}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST_MODULE}


def test_functions_are_short_enough_to_be_read_at_once():
    lengths = {}
    for path, _, tree in modules(CODE):
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            lengths[f"{path}: {function.name}"] = body[-1].end_lineno - body[0].lineno + 1 if body else 0
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_BODY}


def test_nothing_is_looked_up_by_its_address():
    calls = [(path, node) for path, _, tree in modules(CODE) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [(path, call.lineno) for path, call in calls if isinstance(call.func, ast.Name) and call.func.id == "id"]
