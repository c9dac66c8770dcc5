"""caps_tf.predict on images of all kinds: what it says, what it did to them, and the picture of the routing."""

import importlib.util
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from caps_tf.data.any_image import fit_image, read_any_image
from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing
from caps_tf.errors import UserError
from caps_tf.models.preparation import on_pixels
from caps_tf.networks import NETWORKS, ROUTINGS
from caps_tf.predict import judge, routing_map
from tests.networks import CLASSES, tiny
from tests.small_norb import expect_one_line, run_script
from tests.test_weights import write_trained


def write_images(directory):
    """A grey, a colour, a transparent, a 16-bit and a palette image of other sizes, and one that is none."""
    rng = np.random.default_rng(0)
    noise = rng.integers(256, size=(40, 64, 4), dtype=np.uint8)
    images = {
        "exact.png": Image.fromarray(noise[:25, :30, 0]),
        "colour.jpg": Image.fromarray(noise[..., :3]),
        "clear.png": Image.fromarray(noise),
        "deep.png": Image.fromarray(noise[..., 0].astype("uint16") << 8),
        "palette.gif": Image.fromarray(noise[:3, :5, :3]).convert("P"),
    }
    for name, image in images.items():
        image.save(directory / name)
    (directory / "broken.png").write_bytes(b"no image")
    return images


def test_any_image_is_read_and_what_is_done_to_it_is_said(tmp_path):
    images = write_images(tmp_path)
    done = {name: fit_image(read_any_image(tmp_path / name), (25, 30, 1))[1] for name in images}
    assert done["exact.png"] == "as it is"
    assert done["colour.jpg"] == "colour made grey, the middle 40x48 of 40x64 pixels, resized to 25x30"
    assert done["deep.png"] == "the middle 40x48 of 40x64 pixels, resized to 25x30"
    assert read_any_image(tmp_path / "deep.png").max() == np.asarray(images["deep.png"]).max() >> 8
    pixels, _ = fit_image(np.arange(16.0).reshape(4, 4), (2, 2, 1))
    assert pixels[..., 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]  # means of areas
    for image in (np.zeros((4, 4, 5)), np.zeros(4), np.zeros((0, 4))):
        with pytest.raises(UserError):
            fit_image(image, (2, 2, 1))
    with pytest.raises(UserError, match="stereo"):
        fit_image(np.zeros((4, 4)), (2, 2, 2))


WITHOUT_ROUTING = {"conv_capsules none", "cnn_baseline"}
WITHOUT_POSES = {*WITHOUT_ROUTING, "conv_capsules self", "self_routing"}
JUDGED = [name for name, network in NETWORKS.items() if network.reads == "image" and name != "conv_capsules"]
SEVERAL_POSITIONS = {"heinsen_norb": {"image_shape": (37, 45, 2)}}
GRIDS = {"attention": (2, 2), "heinsen_norb": (2, 3), "conv_capsules": (4, 5)}
"""Positions of the parts that are routed to classes; of attention those within its stack, of 4x4 below it."""


@pytest.mark.parametrize("name", [*JUDGED, *(f"conv_capsules {routing}" for routing in ROUTINGS)])
def test_every_network_is_judged_with_poses_and_mapped_to_positions(name):
    entry, _, routing = name.partition(" ")
    keras.utils.set_random_seed(0)
    network = tiny(entry, **SEVERAL_POSITIONS.get(entry, {}), **({"routing": routing} if routing else {}))
    shape, rng = network.input_shape[1:], np.random.default_rng(0)
    model = on_pixels(network, Preprocessing(resize=None, crop=None, **AUGMENTATIONS["none"]), shape)
    model.card = SimpleNamespace(name=name, network=entry, reads="image", logits=NETWORKS[entry].logits)
    pixels = rng.uniform(0, 255, size=(2, *shape)).astype("float32")
    judgement = judge(model, pixels)
    np.testing.assert_allclose(judgement.scores, np.array(model(pixels, training=False)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(judgement.shares.sum(axis=1), 1)
    assert (judgement.poses is None) if name in WITHOUT_POSES else judgement.poses.shape[:2] == (2, CLASSES)
    if name in WITHOUT_ROUTING:
        with pytest.raises(UserError, match="routes nothing"):
            routing_map(model, pixels[0])
        return
    found = routing_map(model, pixels[0])
    assert found.shape == (*GRIDS.get(entry, found.shape[:2]), CLASSES) and np.isfinite(found).all()
    np.testing.assert_allclose(found.mean(axis=-1), 0, atol=1e-6)


def test_the_command_answers_in_lines_of_json_draws_and_names_what_it_could_not_read(tmp_path):
    images = write_images(tmp_path)
    write_trained(tmp_path / "mine")
    draws = importlib.util.find_spec("matplotlib") is not None  # not where the other backends are tested
    picture = [f"--picture={tmp_path / 'drawn'}"] if draws else []
    command = ("-m", "caps_tf.predict", f"--model={tmp_path / 'mine'}", "--format=json", *picture)
    (tmp_path / "other").mkdir()
    images["exact.png"].save(tmp_path / "other" / "exact.png")
    names = [*images, "other/exact.png"]
    process = run_script(*command, *(str(tmp_path / name) for name in [*names, "broken.png"]), check=False)
    expect_one_line(process, "1 of 7 images were left out", "broken.png")
    answers = [json.loads(line) for line in process.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == [str(tmp_path / name) for name in names]
    for answer in answers:
        assert answer["class"] == max(answer["shares"], key=answer["shares"].__getitem__)
        assert set(answer["scores"]) == set(answer["poses"]) == {"a", "b", "c"} and len(answer["poses"]["a"]) == 16
    drawn = {f"{name}.png" for name in images} | {"exact.png-2.png"}
    assert not draws or {path.name for path in (tmp_path / "drawn").iterdir()} == drawn


def test_images_of_a_protocol_are_put_on_its_black_canvas_as_in_training():
    ink = np.arange(1.0, 7.0).reshape(2, 3)
    placed, done = fit_image(ink, (4, 7, 1), part=(2, 3))
    assert done == "put in the middle of 4x7 black pixels" and placed.shape == (4, 7, 1)
    np.testing.assert_array_equal(placed[1:3, 2:5, 0], ink)
    assert placed.sum() == ink.sum()
    placed, done = fit_image(np.full((6, 4), 8.0), (4, 7, 1), part=(2, 2))
    assert done == "the middle 4x4 of 6x4 pixels, resized to 2x2, put in the middle of 4x7 black pixels"
    assert placed.sum() == 4 * 8
    assert fit_image(np.ones((4, 7)), (4, 7, 1), part=(2, 2))[1] == "as it is"


def test_the_command_tells_what_is_missing_in_one_line(tmp_path):
    predict = ("-m", "caps_tf.predict")
    expect_one_line(run_script(*predict, "--model=heinsen2019_smalnorb", "a.png", check=False), "nearest are")
    expect_one_line(run_script(*predict, check=False), "--model=list")
    stereo = run_script(*predict, "--model=heinsen2019_smallnorb", "a.png", check=False)
    expect_one_line(stereo, "takes stereo pairs", "from_preset('heinsen2019_smallnorb')")


NAMES_ALONE = """
import runpy, sys
sys.argv = ["predict", "--model=list"]
try:
    runpy.run_module("caps_tf.predict", run_name="__main__")
finally:
    print("keras" in sys.modules)
"""


def test_names_are_listed_without_keras():
    assert run_script("-c", NAMES_ALONE).stdout.splitlines()[-1] == "False"
