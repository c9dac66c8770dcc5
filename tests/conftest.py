"""Settings that must be in place before TensorFlow starts: quiet logs, two logical devices for distribution."""

import os
import shutil
import signal
import sys
import threading
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# oneDNN sums in another order: gradients of three routing iterations then leave the tolerance of the reference values.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import pytest

# A shell has what it starts in the background ignore Ctrl-C, and processes inherit that; those of the tests must not.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _tensors_of_every_backend_become_arrays():
    """Other backends convert the output of a layer to an array as it is; PyTorch requires that it is detached first."""
    import keras  # not above: the process that hands out the tests does without

    if keras.config.backend() == "torch":
        import torch

        plain_array = torch.Tensor.__array__

        def detached_array(tensor, dtype=None, copy=None):
            return plain_array(tensor.detach(), dtype)

        torch.Tensor.__array__ = detached_array


@pytest.fixture(scope="session", autouse=True)
def _scripts_keep_what_they_compile_and_fetch_apart(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()  # of a worker, in that of the session
    os.environ["CAPS_TF_CACHE"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")


@pytest.fixture(autouse=True)
def _same_seed_and_policy_for_each_test():
    import keras

    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")


def pytest_terminal_summary(terminalreporter):
    """Adds up what tests have counted with `record_property`: kills survived, inputs refused, examples lost."""
    counts = Counter()
    for report in terminalreporter.stats.get("passed", []):
        counts.update(dict(report.user_properties))
    if counts:
        terminalreporter.write_sep("-", "counted in the tests that passed")
        for name, count in sorted(counts.items()):
            terminalreporter.write_line(f"{name}: {count}")


def pytest_sessionfinish():
    if "tests.script_host" in sys.modules:
        sys.modules["tests.script_host"].HOST.close()


@pytest.fixture(scope="session")
def small_norb(tmp_path_factory):
    """A directory for `--storage` that holds a small data set in the NORB format, converted. Not to be changed."""
    from tests.small_norb import run_script, write_small_norb

    directory = tmp_path_factory.mktemp("small_norb")
    write_small_norb(directory / "data" / "smallNORB")
    run_script("data/convert_to_tfrecord.py", f"--storage={directory}", "--num_shards=2")
    return directory


@pytest.fixture(scope="module")
def storage(tmp_path_factory, small_norb):
    """A directory for `--storage` with that data set, for the runs of a file of tests."""
    directory = tmp_path_factory.mktemp("storage")
    shutil.copytree(small_norb / "data", directory / "data")
    return directory


@pytest.fixture(scope="session")
def trained(small_norb):
    """A run of two epochs of 15 steps on that data set, with a checkpoint every 12 steps. Not to be changed."""
    from tests.runs import train

    return train(small_norb, "whole", "--epoch=2", "--checkpoint_every=12", "--keep_checkpoints=9")
