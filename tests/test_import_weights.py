"""Published PyTorch weights: read without running what a file may hold, and giving the original's outputs."""

import os
import zipfile

import keras
import numpy as np
import pytest

from caps_tf.errors import UserError
from caps_tf.pretrained import import_weights, save_model
from caps_tf.state_dict import read_state_dict
from tests import heinsen_networks_reference as reference
from tests.small_norb import expect_one_line, run_script
from tests.torch_files import write_state_dict

BOTH_FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])


def routing_state(prefix, n_inp, n_out, d_cov, d_inp, d_out, draw):
    return {
        f"{prefix}.W": draw(n_inp, n_out, d_inp, d_out),
        f"{prefix}.B": draw(n_inp, n_out, d_cov, d_out),
        f"{prefix}.beta_use": draw(n_inp, n_out),
        f"{prefix}.beta_ign": draw(n_inp, n_out),
        f"{prefix}.CONST_one": np.ones((), "float32"),
    }


def sst_state(depth=3, width=10, features=6, parts=4, pose_size=2, num_classes=3, seed=0):
    """Random weights under the published names."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype("float32")

    return {
        "depth_emb": draw(depth, width),
        "detect_parts.0.weight": draw(features, width),
        "detect_parts.0.bias": draw(features),
        "detect_parts.2.weight": draw(features),
        "detect_parts.2.bias": draw(features),
        **routing_state("routings.0", 1, parts, 1, features, pose_size, draw),
        **routing_state("routings.1", parts, num_classes, 1, pose_size, pose_size, draw),
    }


def norb_state(channels=5, parts=3, pose_size=4, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype("float32")

    def batch_norm(prefix, size):
        return {
            f"{prefix}.weight": draw(size),
            f"{prefix}.bias": draw(size),
            f"{prefix}.running_mean": draw(size),
            f"{prefix}.running_var": rng.uniform(0.5, 2, size=size).astype("float32"),
            f"{prefix}.num_batches_tracked": np.int64(7)[()].reshape(()),
        }

    def convolution(prefix, out, inputs, size):
        return {f"{prefix}.weight": draw(out, inputs, size, size), f"{prefix}.bias": draw(out)}

    state = {}
    for block in range(6):
        inputs = channels if block else 4
        state |= batch_norm(f"convolve.{3 * block}", inputs)
        state |= convolution(f"convolve.{3 * block + 1}", channels, inputs, 3)
    for head, size in (("compute_a", parts), ("compute_mu", parts * pose_size**2)):
        state |= batch_norm(f"{head}.0", channels) | convolution(f"{head}.1", size, channels, 1)
    state |= routing_state("routings.0", 1, parts, pose_size, pose_size, pose_size, draw)
    return state | routing_state("routings.1", parts, num_classes, pose_size, pose_size, pose_size, draw)


def assert_near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def double(state):
    return {name: array.astype("float64") for name, array in state.items()}


@BOTH_FORMATS
def test_a_state_dict_is_read_as_it_was_saved(tmp_path, zipped):
    transposed = np.arange(6, dtype="float32").reshape(2, 3).T  # a view of its storage, with strides
    saved = {
        "weight": np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype("float32"),
        "transposed": transposed,
        "steps": np.array(121500),
        "half": np.float16([1.5, -2.0]),
        "empty": np.zeros((0, 3), "float64"),
    }
    read = read_state_dict(write_state_dict(tmp_path / "state.pt", saved, zipped))
    assert list(read) == list(saved)
    for name, array in saved.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@BOTH_FORMATS
@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_sentiment_classifier_gives_the_originals_scores(tmp_path, zipped, num_classes):
    state = read_state_dict(write_state_dict(tmp_path / "sst.pt", sst_state(num_classes=num_classes), zipped))
    model = import_weights("heinsen_sst", state)
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(3, 7, 3, 10)).astype("float32")
    mask = np.float32([[1] * 7, [1, 1, 1, 1, 0, 0, 0], rng.uniform(size=7)])
    expected = [reference.heinsen_sst(*sentence, double(state)) for sentence in zip(embedding, mask.astype("float64"))]
    assert_near(model({"embedding": embedding, "mask": mask}), np.stack(expected))


@BOTH_FORMATS
def test_the_norb_classifier_gives_the_originals_scores(tmp_path, zipped):
    state = read_state_dict(write_state_dict(tmp_path / "norb.pt", norb_state(), zipped))
    model = import_weights("heinsen_norb", state, image_size=37)
    images = np.random.default_rng(1).normal(size=(2, 37, 37, 2)).astype("float32")
    expected = [reference.heinsen_norb(image.astype("float64"), double(state)) for image in images]
    assert_near(model(images, training=False), np.stack(expected))


class Attack:
    def __init__(self, directory):
        self.directory = directory

    def __reduce__(self):
        return os.mkdir, (os.fspath(self.directory),)


@BOTH_FORMATS
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, zipped):
    target = tmp_path / "made"
    for value in (Attack(target), ["weight", Attack(target)]):
        path = write_state_dict(tmp_path / "state.pt", value, zipped)
        with pytest.raises(UserError, match=r"posix\.mkdir.*nothing was run"):
            read_state_dict(path)
    assert not target.exists()


def test_every_way_to_name_a_global_is_guarded(tmp_path):
    # GLOBAL, INST and STACK_GLOBAL opcodes, and a name inside an allowed module.
    for pickle_bytes in (
        b"cbuiltins\neval\n(V1\ntR.",
        b"(V1\nibuiltins\neval\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"ccollections\nnamedtuple\n(V1\ntR.",
        b"ctorch._utils\n_rebuild_tensor_v3\n(tR.",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
    ):
        path = tmp_path / "state.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle_bytes)
        with pytest.raises(UserError, match="nothing was run"):
            read_state_dict(path)


@BOTH_FORMATS
def test_a_file_cut_short_anywhere_is_one_clear_error(tmp_path, zipped):
    path = write_state_dict(tmp_path / "state.pt", {"weight": np.zeros((30, 2), "float32")}, zipped)
    data = path.read_bytes()
    for length in {*range(0, len(data), 17), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"state\.pt: "):
            read_state_dict(path)


@BOTH_FORMATS
@pytest.mark.parametrize(
    "shape, strides",
    [((7,), (1,)), ((2,), (6,)), ((1000, 1000), (0, 0)), ((2,), (-1,)), ((2, 3), (1,)), ((2.0,), (1,))],
)
def test_tensors_cannot_look_beyond_their_storage(tmp_path, zipped, shape, strides):
    arrays = {"weight": np.zeros(6, "float32")}
    path = write_state_dict(tmp_path / "state.pt", arrays, zipped, views=[(shape, strides)])
    with pytest.raises(UserError, match="damaged"):
        read_state_dict(path)


@BOTH_FORMATS
@pytest.mark.parametrize("content", [[1, 2], 3])
def test_a_pickle_without_tensors_by_name_is_refused(tmp_path, zipped, content):
    with pytest.raises(UserError, match=r"save model\.state_dict\(\)"):
        read_state_dict(write_state_dict(tmp_path / "state.pt", content, zipped))


def test_files_of_other_kinds_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_state_dict(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("not a pickle at all")
    with pytest.raises(UserError, match="no state dict of PyTorch"):
        read_state_dict(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        read_state_dict(tmp_path / "other.pt")


def test_a_state_dict_of_another_architecture_is_refused():
    with pytest.raises(UserError, match="not one of heinsen_norb: it lacks"):
        import_weights("heinsen_norb", sst_state())
    with pytest.raises(UserError, match="not one of heinsen_sst: it has extra"):
        import_weights("heinsen_sst", sst_state() | {"extra": np.zeros(3)})
    with pytest.raises(UserError, match="not one of heinsen_sst: shape"):
        import_weights("heinsen_sst", sst_state() | {"routings.1.B": np.zeros((4, 3, 1, 3), "float32")})
    with pytest.raises(UserError, match="not one of heinsen_sst"):
        import_weights("heinsen_sst", sst_state() | {"depth_emb": np.zeros(3, "float32")})


def test_the_command_writes_a_model_or_its_weights(tmp_path):
    source = write_state_dict(tmp_path / "sst.pt", sst_state())
    command = ("-m", "caps_tf.import_weights", "--network=heinsen_sst", f"--source={source}")
    assert "trainable parameters" in run_script(*command, f"--output={tmp_path / 'sst.keras'}").stdout
    sentence = {"embedding": np.ones((1, 5, 3, 10), "float32"), "mask": np.ones((1, 5), "float32")}
    model = import_weights("heinsen_sst", sst_state())
    loaded = keras.saving.load_model(tmp_path / "sst.keras")
    np.testing.assert_array_equal(loaded(sentence), model(sentence))
    save_model(import_weights("heinsen_sst", sst_state()), tmp_path / "sst.weights.h5")
    other = import_weights("heinsen_sst", sst_state(seed=1))
    other.load_weights(tmp_path / "sst.weights.h5")
    np.testing.assert_array_equal(other(sentence), model(sentence))


def test_the_command_tells_what_is_wrong_in_one_line(tmp_path):
    command = ("-m", "caps_tf.import_weights", f"--output={tmp_path / 'sst.keras'}")
    source = write_state_dict(tmp_path / "attack.pt", Attack(tmp_path / "made"))
    process = run_script(*command, "--network=heinsen_sst", f"--source={source}", check=False)
    expect_one_line(process, "attack.pt", "posix.mkdir")
    assert not (tmp_path / "made").exists() and not (tmp_path / "sst.keras").exists()
    with pytest.raises(UserError, match=r"\.keras or \.weights\.h5"):
        save_model(import_weights("heinsen_sst", sst_state()), tmp_path / "sst.h5")
