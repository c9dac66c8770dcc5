"""What works on every Keras backend imports none of them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ANY_BACKEND = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "caps_tf/routing/*.py",
        "caps_tf/layers/*.py",
        "caps_tf/models/*.py",
        "caps_tf/initializers.py",
        "caps_tf/losses.py",
        "caps_tf/networks.py",
        "caps_tf/optimizers.py",
        "caps_tf/processor.py",
        "caps_tf/tensors.py",
        "examples/cifar10_any_backend.py",
    )
    for path in ROOT.glob(pattern)
)
ALLOWED = {
    f"caps_tf.{name}" for name in ("errors", "initializers", "layers", "losses", "models", "networks", "optimizers")
} | {"caps_tf.processor", "caps_tf.routing", "caps_tf.tensors"}


def imported(path):
    """What a module imports as soon as it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("name", ANY_BACKEND)
def test_code_for_any_backend_imports_none(name):
    for module in imported(ROOT / name):
        assert module.split(".")[0] not in ("tensorflow", "tensorflow_datasets", "jax", "torch"), module
        if module.startswith("caps_tf"):
            assert ".".join(module.split(".")[:2]) in ALLOWED, module
