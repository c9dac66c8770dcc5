"""Checkpoints that a kill, a crash or a bad disk has damaged are noticed, and the one before is used."""

import os
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from caps_tf.errors import Preempted, UserError
from caps_tf.networks import NETWORKS
from caps_tf.training.checkpoints import Checkpoints, find_checkpoints, find_damage, list_checkpoints
from caps_tf.training.config import RunConfig
from caps_tf.training.data import TrainingData
from caps_tf.training.trainer import Trainer
from tests.killing import told_apart_from_time
from tests.networks import tiny_run_model
from tests.runs import assert_same_weights, weights


def make_checkpoints(directory, **options):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return Checkpoints(directory, model, optimizer, **{"keep": 3, **options})


@pytest.fixture
def saved(tmp_path):
    """step-1, step-2 and step-3, whose weights are all 1, 2 and 3."""
    checkpoints = make_checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.step.assign(step)
        checkpoints.save()
    return tmp_path


@pytest.mark.parametrize("network", NETWORKS)
def test_a_checkpoint_holds_every_weight_of_every_network(network, tmp_path):
    # The residual backbone has weights that are not trained.
    options = {"backbone": "resnet"} if network == "attention" else {}
    written, read = (tiny_run_model(network, **options) for _ in range(2))
    for weight in written.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    path = tf.train.Checkpoint(model=written).write(str(tmp_path / "all"))
    tf.train.Checkpoint(model=read).read(path)
    for before, after in zip(written.weights, read.weights, strict=True):
        np.testing.assert_array_equal(before, after, err_msg=before.path)


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


DATA, INDEX = "step-3.data-00000-of-00001", "step-3.index"
TEARS = {
    "data empty": lambda at: cut(at / DATA, 0),
    "data cut": lambda at: cut(at / DATA, (at / DATA).stat().st_size // 2),
    "data without its last byte": lambda at: cut(at / DATA, (at / DATA).stat().st_size - 1),
    "data gone": lambda at: (at / DATA).unlink(),
    "data of another checkpoint": lambda at: shutil.copy(at / "step-2.data-00000-of-00001", at / DATA),
    "a bit of the data flipped": lambda at: flip(at / DATA, 5),
    "zeros, as after a crash": lambda at: (at / DATA).write_bytes(bytes((at / DATA).stat().st_size)),
    "index gone": lambda at: (at / INDEX).unlink(),
    "index empty": lambda at: cut(at / INDEX, 0),
    "index cut": lambda at: cut(at / INDEX, 100),
    "a bit of the index flipped": lambda at: flip(at / INDEX, 60),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_named_and_the_one_before_it_used(saved, tear, capfd, record_property):
    TEARS[tear](saved)
    [path] = find_checkpoints(saved, "latest")
    assert Path(path).name == "step-2"
    lines = [line for line in capfd.readouterr().err.splitlines() if "using the one before it, step-2" in line]
    assert len(lines) == 1 and "step-3: damaged" in lines[0]
    checkpoints = make_checkpoints(saved)
    checkpoints.restore(path)
    assert checkpoints.step.numpy() == 2
    with pytest.raises(UserError, match="step-3: damaged.*step-1, step-2"):
        find_checkpoints(saved, "step-3")
    assert [Path(path).name for path in find_checkpoints(saved, "all")] == ["step-1", "step-2"]
    record_property("torn checkpoints noticed", 1)


def test_a_flipped_byte_is_noticed_or_changes_nothing(saved):
    path = str(saved / "step-3")

    def contents():
        reader = tf.train.load_checkpoint(path)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}

    expected = contents()
    for name in (DATA, INDEX):
        whole = (saved / name).read_bytes()
        unnoticed = 0
        for at in range(0, len(whole), 7):
            flip(saved / name, at)
            if find_damage(path) is None:
                unnoticed += 1
                assert all(np.array_equal(value, expected[key]) for key, value in contents().items())
            (saved / name).write_bytes(whole)
        assert unnoticed <= 15  # the index ends in padding
    assert find_damage(path) is None


def test_where_every_checkpoint_is_damaged_that_is_told_in_one_line(saved):
    for path in saved.glob("step-*.index"):
        path.write_bytes(b"")
    for name in ("latest", "all", "step-2"):
        with pytest.raises(UserError, match="damaged"):
            find_checkpoints(saved, name)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe garbage", b'model_checkpoint_path: "step-3'])
def test_a_lost_or_damaged_list_of_checkpoints_is_made_again(saved, content):
    (saved / "checkpoint").unlink() if content is None else (saved / "checkpoint").write_bytes(content)
    assert list_checkpoints(saved) == ["step-1", "step-2", "step-3"]
    checkpoints = make_checkpoints(saved)
    checkpoints.restore(find_checkpoints(saved, "latest")[0])
    checkpoints.step.assign(4)
    checkpoints.save()
    assert list_checkpoints(saved) == ["step-2", "step-3", "step-4"]
    assert not (saved / "step-1.index").exists()  # it is still deleted in its turn


def test_what_a_killed_process_left_half_written_is_removed(saved):
    (saved / "step-4_temp").mkdir()
    (saved / "step-4_temp" / "part-00000-of-00001.data-00000-of-00001.tempstate1").write_bytes(b"half")
    (saved / "checkpoint.tmp12").write_bytes(b"half")
    make_checkpoints(saved)
    assert {path.name.split(".")[0] for path in saved.iterdir()} == {"checkpoint", "step-1", "step-2", "step-3"}


def test_a_worker_that_is_not_the_chief_writes_nothing_there(tmp_path):
    checkpoints = make_checkpoints(tmp_path / "run", writes=False)
    checkpoints.save()
    checkpoints.save_if_best(0.5)
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_earlier_runs_are_restored(tmp_path):
    checkpoints = make_checkpoints(tmp_path)
    old = tf.train.Checkpoint(
        model=checkpoints._always.model,
        optimizer=checkpoints._always.optimizer,
        step=tf.Variable(7, dtype=tf.int64),
        best_accuracy=tf.Variable(0.5, dtype=tf.float64),
    )
    path = old.write(str(tmp_path / "step-7"))
    checkpoints.restore(path)
    assert checkpoints.step.numpy() == 7 and checkpoints.best_accuracy.numpy() == 0.5
    assert checkpoints.window.numpy().tolist() == [0, 0, 0] and not checkpoints.awaits_validation.numpy()


# A whole run in this process: five steps an epoch, stopped by a signal that comes while a certain batch is made.

CONFIG = RunConfig(
    network="cnn_baseline", batch_size=8, epoch=2, log_every=2, checkpoint_every=3, jit_compile="off", lrn_rate=1e-3
)


def synthetic_data(stop_at=None):
    """Images whose content is a function of epoch and step; SIGTERM comes at (epoch, step) or at "validation"."""

    def batch(epoch, step):
        rng = np.random.default_rng([epoch, step])
        image = rng.normal(size=(8, 17, 17, 1)).astype(np.float32)
        return {"image": image, "label": rng.integers(0, 3, 8).astype(np.int32)}

    def signature(**more):
        return {
            "image": tf.TensorSpec((8, 17, 17, 1), tf.float32),
            "label": tf.TensorSpec((8,), tf.int32),
            **more,
        }

    def training(epoch, skipped):
        def batches():
            for step in range(skipped, 5):
                if stop_at == (epoch, step):
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch(epoch, step)

        return tf.data.Dataset.from_generator(batches, output_signature=signature())

    def validation():
        if stop_at == "validation":
            signal.raise_signal(signal.SIGTERM)

        def batches():
            for step in range(2):
                yield {**batch(99, step), "weight": np.ones(8, np.float32)}

        weight = tf.TensorSpec((8,), tf.float32)
        return tf.data.Dataset.from_generator(batches, output_signature=signature(weight=weight))

    return TrainingData({"image": (17, 17, 1)}, 3, 5, training, validation)


def make_trainer(directory, stop_at=None):
    keras.utils.set_random_seed(CONFIG.seed)
    return Trainer(CONFIG, synthetic_data(stop_at), directory / "train", tf.distribute.get_strategy())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    make_trainer(directory).run()
    return directory


@pytest.mark.parametrize(
    "stop_at",
    ["validation", *(pytest.param(at, marks=pytest.mark.campaign) for at in [(0, 4), (0, 1), (1, 0), (1, 2)])],
)
def test_sigterm_in_training_or_validation_saves_and_the_run_goes_on_as_if_unbroken(unbroken, tmp_path, stop_at):
    trainer = make_trainer(tmp_path, stop_at)
    with pytest.raises(Preempted, match=r"step \d+ is saved in .*go on with --load_dir"):
        trainer.run()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    saved = int(trainer.checkpoints.step.numpy())
    assert saved == 5 if stop_at == "validation" else 0 < saved < 10
    resumed = make_trainer(tmp_path)
    resumed.checkpoints.restore(find_checkpoints(tmp_path / "train" / "checkpoints", "latest")[0])
    assert resumed.checkpoints.step.numpy() == saved
    resumed.run()
    assert told_apart_from_time(tmp_path) == told_apart_from_time(unbroken)
    assert_same_weights(weights(tmp_path), weights(unbroken))


@pytest.mark.campaign
def test_a_validation_that_was_logged_but_not_saved_is_logged_once(unbroken, tmp_path):
    trainer = make_trainer(tmp_path, "validation")
    with pytest.raises(Preempted):
        trainer.run()
    [path] = find_checkpoints(tmp_path / "train" / "checkpoints", "latest")
    for _ in range(2):  # the second time, as after a kill between the validation's line and its checkpoint
        resumed = make_trainer(tmp_path)
        resumed.checkpoints.restore(path)
        resumed.run()
    assert told_apart_from_time(tmp_path) == told_apart_from_time(unbroken)
