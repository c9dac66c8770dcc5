"""Long runs do not grow: memory, open files and threads after 2,000 steps are what they were after 500."""

import re
import sys

import pytest

from tests.small_norb import run_script

MEASURED = r"""
import gc, os, sys
import keras, numpy as np, tensorflow as tf
from pathlib import Path
from caps_tf.training.config import RunConfig
from caps_tf.training.data import TrainingData
from caps_tf.training.trainer import Trainer

STEPS_PER_EPOCH, MARKS = 100, (500, 2000)

def resident():
    return int(re_line("VmRSS")) / 1024

def re_line(name):
    return next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))

def batches(count, weighted):
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(8, 8, 8, 1)).astype(np.float32), (np.arange(8) % 3).astype(np.int32)
    batch = {"image": image, "label": label, **({"weight": np.ones(8, np.float32)} if weighted else {})}
    return tf.data.Dataset.from_tensors(batch).repeat(count)

def training(epoch, skipped):
    if epoch * STEPS_PER_EPOCH in MARKS:
        gc.collect()
        print("measured", epoch * STEPS_PER_EPOCH, resident(), len(os.listdir("/proc/self/fd")), re_line("Threads"))
    return batches(STEPS_PER_EPOCH - skipped, False)

config = RunConfig(
    network="cnn_baseline", batch_size=8, epoch=21, jit_compile="off", log_every=10, checkpoint_every=50, lrn_rate=1e-4
)
data = TrainingData({"image": (8, 8, 1)}, 3, STEPS_PER_EPOCH, training, lambda: batches(3, True))
Trainer(config, data, Path(sys.argv[1]), tf.distribute.get_strategy()).run()
"""


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_thousand_steps_leave_memory_files_and_threads_flat(tmp_path, record_property):
    process = run_script("-c", MEASURED, str(tmp_path), timeout=1200)
    found = re.findall(r"^measured (\d+) ([\d.]+) (\d+) (\d+)$", process.stdout, re.M)
    (_, early, files, threads), (_, late, files_later, threads_later) = found
    record_property("MiB grown in 1,500 steps", round(float(late) - float(early), 1))
    assert float(late) - float(early) < 20
    assert int(files_later) <= int(files) and int(threads_later) <= int(threads)
    assert len(list((tmp_path / "checkpoints").glob("step-*.index"))) == 5
