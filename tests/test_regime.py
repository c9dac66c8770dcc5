"""The training regime: losses, mixup, augmentation and parameters, alone and together in a resumed run."""

import functools
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from caps_tf.data.datasets import open_dataset
from caps_tf.data.images import evaluation_batches, training_batches
from caps_tf.data.mixup import mix_examples, mixed_batches
from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing
from caps_tf.data.splits import make_splits
from caps_tf.errors import UserError
from caps_tf.losses import margin_loss, spread_loss
from caps_tf.optimizers import MomentumSGD
from caps_tf.training.config import RunConfig
from caps_tf.training.factories import cross_entropy, make_model, margins, spread
from caps_tf.training.params import load_params
from caps_tf.training.steps import make_scorer, make_train_step
from tests.small_norb import run_script

# Losses


def test_cross_entropy_of_logits_is_that_of_their_softmax():
    logits = tf.constant([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    labels = tf.constant([0, 2])
    expected = -np.log(tf.nn.softmax(logits).numpy()[[0, 1], [0, 2]])
    np.testing.assert_allclose(cross_entropy(labels, logits, 0.0, from_logits=True), expected, rtol=1e-5)
    np.testing.assert_allclose(cross_entropy(labels, tf.nn.softmax(logits), 0.0), expected, rtol=1e-5)


@pytest.mark.parametrize("from_logits", [True, False])
def test_the_loss_of_a_blend_is_the_blend_of_the_losses(from_logits):
    scores = tf.constant([[0.9, 0.4, 0.2]])
    targets = tf.constant([[0.7, 0.0, 0.3]])
    hard = [float(cross_entropy(tf.constant([label]), scores, 0.0, from_logits)[0]) for label in (0, 2)]
    found = float(cross_entropy(targets, scores, 0.0, from_logits)[0])
    assert found == pytest.approx(0.7 * hard[0] + 0.3 * hard[1], rel=1e-5)


def test_spread_and_margin_loss_of_logits_are_those_of_their_softmax():
    logits, labels = tf.constant([[2.0, -1.0, 0.5]]), tf.constant([1])
    found = spread(labels, logits, 0.5, from_logits=True)
    np.testing.assert_allclose(found, spread_loss(labels, tf.nn.softmax(logits), 0.5), rtol=1e-6)
    found = margins(labels, logits, 0.5, from_logits=True)
    np.testing.assert_allclose(found, margin_loss(labels, tf.nn.softmax(logits)), rtol=1e-6)


# Batches by name


def test_a_network_with_several_inputs_and_soft_labels_learns_and_is_scored():
    embedding, mask = keras.Input((None, 2), name="embedding"), keras.Input((None,), name="mask")
    pooled = keras.layers.Dot(axes=1)([mask, embedding])
    model = keras.Model({"embedding": embedding, "mask": mask}, keras.layers.Dense(2)(pooled))
    optimizer = MomentumSGD(0.1)
    optimizer.build(model.trainable_variables)
    random = np.random.default_rng(0)
    label = random.integers(2, size=32).astype("int32")
    data = {
        "embedding": (random.normal(size=(32, 5, 2)) + label[:, None, None]).astype("float32"),
        "mask": np.full((32, 5), 0.2, "float32"),
        "label": label,
    }
    batch = {name: tf.constant(value) for name, value in data.items()}
    soft = {**batch, "target": tf.one_hot(label, 2) * 0.9 + 0.05}
    strategy = tf.distribute.get_strategy()
    loss = functools.partial(cross_entropy, from_logits=True)
    step = make_train_step(strategy, model, optimizer, loss, 32, jit_compile=False)
    scores = model({"embedding": batch["embedding"], "mask": batch["mask"]})
    expected = float(tf.reduce_mean(loss(soft["target"], scores, 0.0)))
    assert float(step(soft, tf.constant(0.0)).loss) == pytest.approx(expected, rel=1e-5)
    for _ in range(20):
        result = step(batch, tf.constant(0.0))
    assert float(result.correct) >= 28
    weighted = tf.data.Dataset.from_tensors({**batch, "weight": tf.constant([1.0] * 30 + [0.0] * 2)})
    [scored] = make_scorer(strategy, model, loss)(weighted, 0.0)
    assert scored.outputs[0].shape == (30, 2) and set(scored.batch) == {"label", "weight"}


def test_a_network_that_reads_images_says_so_where_there_are_none():
    with pytest.raises(UserError, match="reads 'image', but sst holds embedding, mask"):
        make_model(RunConfig(dataset="sst"), {"embedding": (9, 2, 4), "mask": (9,)}, 2)


# Mixup


def big_batch(size=4000):
    values = tf.range(size, dtype=tf.float32)
    labels = {"label": tf.range(size) % 3, "id": tf.range(size)}
    return {"image": values[:, None, None], "mask": values[:, None] * 2, **labels}


def test_mixup_blends_all_features_and_targets_with_one_weight_an_example():
    batch = big_batch()
    mixed = mix_examples(batch, ["image", "mask"], num_classes=3, alpha=0.2, key=tf.constant([3, 4]))
    image, target = mixed["image"].numpy()[:, 0, 0], mixed["target"].numpy()
    np.testing.assert_allclose(mixed["mask"].numpy()[:, 0], 2 * image, rtol=1e-5)
    np.testing.assert_array_equal(mixed["id"], batch["id"])
    np.testing.assert_array_equal(mixed["label"], batch["label"])
    np.testing.assert_allclose(target.sum(axis=1), 1, rtol=1e-5)
    # Where the partner's class is another one, the target shows the weight, and with it the partner's number.
    own = target[np.arange(4000), batch["label"]]
    clear = (own < 0.9) & (np.sort(target, axis=1)[:, 0] == 0) & (own > 0)
    assert clear.sum() > 500
    partner = (image - own * np.arange(4000))[clear] / (1 - own[clear])
    np.testing.assert_allclose(partner, np.round(partner), atol=0.05)
    others = np.argmax(np.where(np.arange(3) == np.array(batch["label"])[:, None], -1, target), axis=1)
    np.testing.assert_array_equal(np.round(partner).astype(int) % 3, others[clear])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_weights_have_the_moments_of_the_beta_distribution(alpha):
    # Two classes in the halves of a large batch; examples whose partner is of the other class show their weight.
    batch = {"image": tf.zeros((40_000, 1)), "label": tf.repeat([0, 1], 20_000)}
    target = mix_examples(batch, ["image"], 2, alpha, tf.constant([1, 2]))["target"].numpy()
    own = target[np.arange(40_000), batch["label"]]
    # Half of the partners are of the same class, whose own share is 1 whatever the weight; of the rest, the mean is
    # 1/2 and the variance 1 / (4 (2 alpha + 1)).
    variance = 1 / (4 * (2 * alpha + 1))
    assert own.mean() == pytest.approx((1 + 0.5) / 2, abs=0.01)
    assert (own**2).mean() == pytest.approx((1 + 0.25 + variance) / 2, abs=0.01)


def test_mixup_with_a_tiny_alpha_stays_finite():
    target = mix_examples(big_batch(), ["image"], 3, 1e-4, tf.constant([1, 2]))["target"].numpy()
    assert np.isfinite(target).all()


def test_a_resumed_epoch_is_mixed_as_the_whole_one():
    batches = tf.data.Dataset.from_tensor_slices(big_batch(60)).batch(10)

    def mixed(skip=0, epoch=1, seed=5):
        place = {"epoch": epoch, "seed": seed, "skip_batches": skip}
        found = mixed_batches(batches.skip(skip), ["image"], 3, 0.2, **place)
        return [batch["image"].ravel().tolist() for batch in found.as_numpy_iterator()]

    whole = mixed()
    assert mixed(skip=4) == whole[4:] and mixed() == whole
    assert mixed(epoch=2) != whole and mixed(seed=6) != whole
    offsets = [np.subtract(batch, 10 * number).tolist() for number, batch in enumerate(whole)]
    assert offsets[0] != offsets[1]  # each batch has draws of its own


# Images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 20x18 colour images, bright at the top or at the bottom: 40 to train on, 8 to test."""
    directory = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for label in range(2):
            (directory / split / f"class{label}").mkdir(parents=True)
            for index in range(count):
                image = random.integers(1, 120, (20, 18, 3), np.uint8)
                image[10 * label : 10 * label + 10] += 120
                Image.fromarray(image).save(directory / split / f"class{label}" / f"{index}.png")
    return directory


@pytest.fixture(scope="module")
def splits(folder):
    return make_splits(open_dataset(str(folder)), val_prop=0)


def plain_images(split):
    """Images between 0 and 1 by id."""
    plain = Preprocessing(resize=None, crop=None, normalize="none", **AUGMENTATIONS["none"])
    batch = next(evaluation_batches(split, plain, 40).as_numpy_iterator())
    return dict(zip(batch["id"].tolist(), batch["image"], strict=True))


def trained_images(split, epochs=1, **options):
    """What training sees of the images in some epochs: (id, image)."""
    preprocessing = Preprocessing(**{"resize": None, "crop": None, "normalize": "none", **options})
    for epoch in range(epochs):
        for batch in training_batches(split, preprocessing, 20, epoch=epoch, seed=0).as_numpy_iterator():
            yield from zip(batch["id"].tolist(), batch["image"], strict=True)


def corners(padded, crop):
    windows = np.lib.stride_tricks.sliding_window_view(padded, crop.shape)[:, :, 0]
    return [tuple(corner) for corner in np.argwhere(np.isclose(windows, crop, atol=1e-6).all(axis=(2, 3, 4)))]


@pytest.mark.parametrize("mode, numpy_mode", [("edge", "edge"), ("zero", "constant")])
def test_crops_come_from_the_padded_image(splits, mode, numpy_mode):
    originals = plain_images(splits["train"])
    seen = set()
    for key, image in trained_images(splits["train"], epochs=4, pad=2, pad_mode=mode, **AUGMENTATIONS["crop"]):
        assert image.shape == (20, 18, 3)
        found = corners(np.pad(originals[key], ((2, 2), (2, 2), (0, 0)), numpy_mode), image)
        assert len(found) == 1
        seen |= set(found)
    assert {row for row, _ in seen} == {column for _, column in seen} == set(range(5))


def test_padding_with_zeros_is_black_whatever_the_normalisation(splits):
    options = {"pad": 30, "pad_mode": "zero", **AUGMENTATIONS["crop"]}
    black = -np.divide(Preprocessing.channel_mean, Preprocessing.channel_std)
    images = np.array([image for _, image in trained_images(splits["train"], normalize="channel", **options)])
    outside = np.isclose(images, black, atol=1e-5).all(axis=-1)
    assert 0.3 < outside.mean() < 0.95  # 0 does not occur in the images themselves


def test_some_images_are_mirrored_and_nothing_else(splits):
    originals = plain_images(splits["train"])
    mirrored = []
    for key, image in trained_images(splits["train"], epochs=2, **AUGMENTATIONS["crop_flip"]):
        flipped = np.array_equal(image, originals[key][:, ::-1])
        assert flipped or np.array_equal(image, originals[key])
        mirrored.append(flipped)
    assert 0.25 < np.mean(mirrored) < 0.75


def test_channels_are_normalised_by_the_given_statistics(splits):
    originals = plain_images(splits["test"])
    for mean, deviation in (((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)), ((0.5,), (0.1,))):
        preprocessing = Preprocessing(None, crop=None, normalize="channel", channel_mean=mean, channel_std=deviation)
        batch = next(evaluation_batches(splits["test"], preprocessing, 8).as_numpy_iterator())
        for key, image in zip(batch["id"].tolist(), batch["image"], strict=True):
            np.testing.assert_allclose(image, (originals[key] - mean) / deviation, atol=1e-5)
    with pytest.raises(UserError, match="channel_mean has 2 numbers for 3 channels"):
        Preprocessing(None, crop=None, normalize="channel", channel_mean=(0.1, 0.2)).input_shape(splits["test"].dataset)


def test_without_augmentation_training_sees_what_evaluation_sees(splits):
    options = {"crop": (12, 10), "normalize": "image"}
    preprocessing = Preprocessing(resize=None, pad=3, flip=True, **options)
    batch = next(evaluation_batches(splits["train"], preprocessing, 40).as_numpy_iterator())
    evaluated = dict(zip(batch["id"].tolist(), batch["image"], strict=True))
    for key, image in trained_images(splits["train"], **options, **AUGMENTATIONS["none"]):
        np.testing.assert_allclose(image, evaluated[key], atol=1e-6)


# Parameters and whole runs


@pytest.mark.parametrize(
    "params, message",
    [
        ({"mixup": 0.2}, "mixup blends classes.*--loss=cross_entropy"),
        ({"mixup": -1.0}, "mixup must not be negative"),
        ({"pad": 4, "augment": "none"}, "pad widens"),
        ({"augment": "norb", "normalize": "none"}, "--augment=crop"),
        ({"lrn_drop_epochs": "20,10"}, "lrn_drop_epochs must be positive and increase"),
        ({"lrn_drop_epochs": "soon"}, "lrn_drop_epochs must be numbers"),
        ({"channel_std": "0.1,0"}, "channel_std must be positive"),
        ({"channel_mean": "grey"}, "channel_mean must be numbers"),
        ({"momentum": 1.0}, "momentum must be at least 0 and less than 1"),
        ({"optimizer": "lion"}, "optimizer must be one of adam, radam, sgd"),
        ({"schedule": "cosine"}, "schedule must be one of"),
    ],
)
def test_what_does_not_fit_together_is_one_clear_line(params, message):
    with pytest.raises(UserError, match=message):
        RunConfig(**params)


def test_parameters_of_earlier_runs_still_load(tmp_path):
    earlier = {"dataset": "smallNORB", "views": "both", "augment": "auto", "network": "cnn_baseline", "lrn_rate": 0.003}
    (tmp_path / "params.json").write_text(json.dumps(earlier))
    config = RunConfig(**load_params(tmp_path / "params.json"))
    assert (config.optimizer, config.schedule, config.normalize) == ("adam", "exponential", "image")
    assert (config.mixup, config.pad, config.weight_decay) == (0.0, 0, 0.0)


def test_iterations_of_attention_in_earlier_runs_are_those_that_it_was_trained_with(tmp_path):
    for network, expected in (("attention", 4), ("heinsen_norb", 3)):
        # Attention read num_routing and the others iter_routing; every run wrote both.
        earlier = {"network": network, "iter_routing": 0, "num_routing": 4}
        (tmp_path / "params.json").write_text(json.dumps(earlier))
        assert RunConfig(**load_params(tmp_path / "params.json")).routing_iterations == expected


@pytest.mark.campaign
def test_a_run_with_every_option_continued_in_the_middle_ends_with_the_same_weights(folder, tmp_path):
    flags = (
        *("--network=cnn_baseline", "--epoch=3", "--batch_size=8", "--val_prop=0.2", "--log_every=2"),
        *("--optimizer=radam", "--schedule=one_cycle", "--lrn_rate=1e-3", "--weight_decay=1e-3", "--mixup=0.2"),
        *("--pad=2", "--pad_mode=zero", "--augment=crop_flip", "--normalize=channel"),
        *("--checkpoint_every=3", "--keep_checkpoints=20", "--jit_compile=off"),
    )
    process = run_script("train_val.py", f"--dataset={folder}", f"--storage={tmp_path}", "--name=all", *flags)
    directory = Path(re.search(r"^trained: (.*)$", process.stdout, re.M).group(1))
    lines = [json.loads(line) for line in (directory / "train" / "log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    assert {"learning_rate", "momentum"} <= set(trained[0]) and not {"margin", "inverse_temperature"} & set(trained[0])
    assert trained[-1]["step"] == 12

    def variables():
        reader = tf.train.load_checkpoint(str(directory / "train" / "checkpoints" / "step-12"))
        names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("model/", "optimizer/"))]
        return {name: reader.get_tensor(name) for name in names}

    unbroken = variables()
    run_script("train_val.py", f"--load_dir={directory}", "--ckpt_name=step-6")  # two steps into the second epoch
    resumed = variables()
    assert unbroken.keys() == resumed.keys() and len(unbroken) > 20
    for name, value in unbroken.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
