"""Settings that must be in place before TensorFlow starts: quiet logs, two logical devices for distribution."""

import os
import signal
import threading
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# oneDNN sums in another order: gradients of three routing iterations then leave the tolerance of the reference values.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import pytest

if keras.config.backend() == "torch":
    import torch

    # Other backends convert the output of a layer to an array as it is; PyTorch requires that it is detached first.
    plain_array = torch.Tensor.__array__

    def detached_array(tensor, dtype=None, copy=None):
        return plain_array(tensor.detach(), dtype)

    torch.Tensor.__array__ = detached_array


# A shell has what it starts in the background ignore Ctrl-C, and processes inherit that; those of the tests must not.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_seed_and_policy_for_each_test():
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


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A directory for `--storage` that holds a small data set in the NORB format, converted."""
    from tests.small_norb import run_script, write_small_norb

    directory = tmp_path_factory.mktemp("storage")
    write_small_norb(directory / "data" / "smallNORB")
    run_script("data/convert_to_tfrecord.py", f"--storage={directory}", "--num_shards=2")
    return directory
