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
        "caps_tf/program_cache.py",
        "caps_tf/tensors.py",
        "caps_tf/run_flags.py",
        "caps_tf/any_backend/*.py",
        "caps_tf/data/any_image.py",
        "caps_tf/data/idx_format.py",
        "caps_tf/data/image_folder.py",
        "caps_tf/data/norb_format.py",
        "caps_tf/data/norb_matrix.py",
        "caps_tf/data/parts.py",
        "caps_tf/data/preprocessing.py",
        "caps_tf/data/viewpoints.py",
        "caps_tf/presets/*.py",
        "caps_tf/training/config.py",
        "caps_tf/training/factories.py",
        "caps_tf/training/options.py",
        "caps_tf/training/params.py",
        "caps_tf/training/regime.py",
        "caps_tf/training/votes.py",
        "caps_tf/startup.py",
        "caps_tf/weights/*.py",
        "examples/train_any_backend.py",
    )
    for path in ROOT.glob(pattern)
)
ALLOWED = {
    *(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in ANY_BACKEND),
    *(f"caps_tf.{name}" for name in ("costs", "errors", "files", "scripts", "state_dict")),
}


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
            assert module in ALLOWED, module
