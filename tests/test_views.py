"""Photographs over viewpoint: what conversion keeps, refuses and counts; the novel-viewpoint protocol in degrees."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from caps_tf.data import view_records
from caps_tf.data.datasets import open_dataset
from caps_tf.data.splits import make_splits
from caps_tf.data.viewpoints import DEGREES, STEPS, are_familiar, parse_viewpoints, to_degrees
from caps_tf.errors import UserError
from caps_tf.training.config import RunConfig
from tests.photographs import RING, write_photographs
from tests.runs import train
from tests.small_norb import expect_one_line, run_script

SCRIPT = "data/convert_views_to_tfrecord.py"


def convert(source, output, *flags, **options):
    return run_script(SCRIPT, f"--source={source}", f"--data_dir={output}", "--num_shards=2", *flags, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "cups"
    process = convert(source, output, "--train_objects=3")
    assert process.stderr.splitlines()[-1].startswith("converting: 72/72 records"), process.stderr
    assert len(process.stderr.splitlines()) == 1  # nothing to complain of
    assert "cup: 1 (0), 2 (1), 3 (2) train; 4 (3) test\n" in process.stdout
    assert process.stdout.endswith(f"{output}: 54 train and 18 test images, 4 shards written\n")
    return output


# Conversion


def test_every_record_holds_its_image_in_grey_and_the_viewpoint_of_its_name_in_degrees(source, converted):
    builder = tfds.builder_from_directory(converted)
    counts = {}
    for split in ("train", "test"):
        records = list(builder.as_dataset(split=split).as_numpy_iterator())
        counts[split] = len(records)
        for record in records:
            path = record["id"].decode()
            expected = np.asarray(Image.open(source / path).convert("L"))
            np.testing.assert_array_equal(record["image"][..., 0], expected)
            category, number = record["label_category"], record["instance"] + 1
            polar, azimuth = 90 - record["label_elevation"], record["label_azimuth"]
            name = ("cup", "dog")[category]
            assert path == f"{name}/{name}{number:02d}_polar{polar:03d}_azimuth{azimuth:03d}.png"
            assert (number == 4) == (split == "test") and record["label_lighting"] == 0
    assert counts == {"train": 54, "test": 18}


def test_the_unit_survives_in_the_metadata_and_sets_without_one_are_in_norbs_steps(converted, storage):
    dataset = open_dataset(str(converted))
    assert dataset.viewpoint_unit == DEGREES and dataset.has_viewpoints and not dataset.has_stereo
    assert open_dataset("smallNORB", storage=storage).viewpoint_unit == STEPS
    assert "cup: 1 (0), 2 (1), 3 (2) train; 4 (3) test" in dataset.builder.info.description


def test_a_second_run_verifies_and_writes_nothing(source, converted):
    before = {path: path.stat().st_mtime_ns for path in converted.iterdir()}
    assert convert(source, converted, "--train_objects=3").stdout.endswith("images, verified\n")
    assert before == {path: path.stat().st_mtime_ns for path in converted.iterdir()}


def test_colour_other_sizes_and_other_names_are_converted_and_what_is_missing_is_counted(tmp_path):
    random = np.random.default_rng(0)
    views = [("anna", 0, 0), ("anna", -90, 10), ("bert", 0, 0), ("bert", 270, 10)]
    for category in ("cat", "dog"):
        for name, azimuth, elevation in views:
            path = tmp_path / "in" / category / name / f"{elevation}_{azimuth}_2.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    (tmp_path / "in" / "dog" / "bert" / "0_0_2.jpg").unlink()
    (tmp_path / "in" / "readme.txt").write_text("not an image")
    pattern = r"(?P<category>\w+)/(?P<object>\w+)/(?P<elevation>\d+)_(?P<azimuth>-?\d+)_(?P<lighting>\d+)\.jpg"
    flags = (f"--pattern={pattern}", "--train_objects=anna,", "--colour")
    refused = convert(tmp_path / "in", tmp_path / "out", *flags, check=False)
    expect_one_line(refused, "30x20 pixels are not square", "--image_size=20x30")
    assert not (tmp_path / "out").exists()
    process = convert(tmp_path / "in", tmp_path / "out", *flags, "--image_size=10")
    assert process.stderr.splitlines()[:2] == [
        "1 files do not match the pattern, the first: readme.txt",
        "1 views that other objects have are missing, the first: dog bert: elevation 0, azimuth 0, lighting 2",
    ]
    records = list(tfds.builder_from_directory(tmp_path / "out").as_dataset(split="train+test").as_numpy_iterator())
    assert {record["image"].shape for record in records} == {(10, 10, 3)}
    keys = ("label_category", "instance", "label_elevation", "label_azimuth", "label_lighting")
    found = [tuple(int(record[key]) for key in keys) for record in records]  # -90 and 270 degrees are one azimuth
    assert sorted(found) == [
        *((0, instance, elevation, azimuth, 2) for instance in (0, 1) for elevation, azimuth in ((0, 0), (10, 270))),
        *((1, 0, 0, 0, 2), (1, 0, 10, 270, 2), (1, 1, 10, 270, 2)),
    ]


def test_objects_are_chosen_by_count_in_the_order_of_their_numbers_or_by_name():
    objects = view_records.objects_by_category(
        [view_records.View("", "car", number, 0, 0, 0) for number in ("10", "9", "2", "rex")]
        + [view_records.View("", "cup", number, 0, 0, 0) for number in ("1", "2", "9")]
    )
    assert objects == {"car": ["2", "9", "10", "rex"], "cup": ["1", "2", "9"]}
    assert view_records.training_objects(objects, "2") == {"car": ["2", "9"], "cup": ["1", "2"]}
    assert view_records.training_objects(objects, "09,2") == {"car": ["2", "9"], "cup": ["2", "9"]}
    assert view_records.number_objects(objects)["cup", "9"] == 2


@pytest.mark.parametrize(
    "text,hint",
    [
        ("3", "cup has 3 objects, which leaves none to test"),
        ("4", "cup has 3 objects, which leaves none to test"),
        ("1,2,3", "cup has 3 objects, which leaves none to test"),
        ("1,8", "cup has no object 8"),
        ("0", "how many of each category"),
        ("anna", "with commas .'anna,'"),
        ("", "how many of each category"),
    ],
)
def test_objects_that_cannot_be_divided_are_one_clear_line(text, hint):
    with pytest.raises(UserError, match=f"`train_objects`={text}: .*{hint}"):
        view_records.training_objects({"cup": ["1", "2", "3"], "dog": ["1", "2", "3", "4", "5"]}, text)


def test_a_single_category_has_nothing_to_be_told_from():
    with pytest.raises(UserError, match="one category, 'cup', and nothing to tell it from"):
        view_records.training_objects({"cup": ["1", "2"]}, "1")


@pytest.mark.parametrize(
    "pattern,hint",
    [
        ("(?P<category>", "is no regular expression"),
        (r"(?P<category>\w+)/(?P<object>\w+)\.png", "needs the named groups category, object and azimuth"),
        (r"(?P<category>\w+)/(?P<object>\w+)_polar(?P<polar>\d+)_azimuth(?P<azimut>\d+).*", "needs the named groups"),
        (r"(?P<category>x)(?P<object>\w+)(?P<azimuth>\d+)", r"'cup/cup01_polar045_azimuth000.png' does not match"),
        (r"(?P<category>\w+)/(?P<object>\w+)_polar(?P<azimuth>\d+).*", "are the same view of one object: remove one"),
        (r"(?P<category>\w+)/(?P<object>\w+?)_(?P<azimuth>.*)\.png", "'polar045_azimuth000' is not a whole number"),
        (r"(?P<category>\w+)/cup0(?P<object>\d)_polar\d+_azimuth(?P<azimuth>(?P<elevation>\d+)).*", "elevation 135"),
        (r"(?P<category>\w+)/(?P<object>x?)cup01_polar045_azimuth(?P<azimuth>\d+)\..*", "finds no category or no obj"),
    ],
)
def test_patterns_that_tell_no_views_are_one_clear_line(source, pattern, hint):
    with pytest.raises(UserError, match=hint):
        view_records.find_views(source, pattern)


def test_images_that_differ_in_size_or_depth_or_cannot_be_read_are_named(tmp_path):
    write_photographs(tmp_path, objects=(1, 2), views=[(90, 0), (90, 90)])
    views, _ = view_records.find_views(tmp_path)
    odd = tmp_path / views[3].path
    Image.new("L", (8, 8)).save(odd)
    with pytest.raises(UserError, match="17x17 pixels in .*8x8 pixels in cup/cup02_polar090_azimuth090.png"):
        view_records.image_shape(tmp_path, views, None, colour=False)
    assert view_records.image_shape(tmp_path, views, (9, 5), colour=True) == (9, 5, 3)
    Image.fromarray(np.full((17, 17), 40_000, np.uint16)).save(odd)
    with pytest.raises(UserError, match="azimuth090.png: has more than 8 bits"):
        view_records.image_shape(tmp_path, views, None, colour=False)
    odd.write_bytes(b"no image")
    with pytest.raises(UserError, match="azimuth090.png: cannot be read as an image"):
        view_records.image_shape(tmp_path, views, None, colour=False)


def test_an_image_cut_short_stops_the_conversion_with_its_name(tmp_path):
    write_photographs(tmp_path / "in", objects=(1, 2), views=[(90, 0), (90, 90)])
    torn = tmp_path / "in" / "dog" / "dog02_polar090_azimuth090.png"
    torn.write_bytes(torn.read_bytes()[:-200])
    process = convert(tmp_path / "in", tmp_path / "out", "--train_objects=1", check=False)
    expect_one_line(process, "dog02_polar090_azimuth090.png: cannot be decoded")
    assert not (tmp_path / "out" / "dataset_info.json").exists()


# The protocol in degrees


NORB_AZIMUTHS = np.arange(18)
NORB_ELEVATIONS = np.arange(9)


@pytest.mark.parametrize("text", ["azimuth", "azimuth:300..40", "azimuth:-60..40", "azimuth:290..400"])
def test_norbs_familiar_azimuths_are_those_of_the_paper(text):
    degrees = {"azimuth": to_degrees("azimuth", NORB_AZIMUTHS, STEPS), "elevation": np.full(18, 30)}
    familiar = NORB_AZIMUTHS[are_familiar(parse_viewpoints(text), degrees)]
    assert set(familiar) == {15, 16, 17, 0, 1, 2}


@pytest.mark.parametrize("text", ["elevation", "elevation:30..40", "elevation:-90..44"])
def test_norbs_familiar_elevations_are_those_of_the_paper(text):
    degrees = {"elevation": to_degrees("elevation", NORB_ELEVATIONS, STEPS), "azimuth": np.full(9, 200)}
    assert set(NORB_ELEVATIONS[are_familiar(parse_viewpoints(text), degrees)]) == {0, 1, 2}


@pytest.mark.parametrize(
    "text,familiar",
    [
        ("azimuth:-67..67", {0, 22, 67, 293, 315, 359}),
        ("azimuth:293..67", {0, 22, 67, 293, 315, 359}),
        ("azimuth:68..292", {68, 180, 292}),
        ("azimuth:67..67", {67}),
        ("azimuth:67..-67", {67, 68, 180, 292, 293}),
    ],
)
def test_ranges_of_azimuths_include_their_ends_and_go_round(text, familiar):
    azimuths = np.array([0, 22, 67, 68, 180, 292, 293, 315, 359])
    held = are_familiar(parse_viewpoints(text), {"azimuth": azimuths, "elevation": 0 * azimuths})
    assert set(azimuths[held]) == familiar


def test_joined_conditions_must_all_hold_and_the_pole_is_no_exception():
    degrees = {"azimuth": np.array([0, 90, 0, 90]), "elevation": np.array([90, 90, 45, 24])}
    held = are_familiar(parse_viewpoints("azimuth:-67..67,elevation:45..90"), degrees)
    assert held.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    "text,hint",
    [
        ("azimut", "must be one of azimuth, elevation, or ranges"),
        ("azimuth:10-20", "or ranges in whole degrees such as azimuth:-67..67"),
        ("azimuth:0.5..20", "whole degrees"),
        ("azimuth:-67..67,", "must be one of"),
        ("polar:0..20", "must be one of"),
        ("azimuth:0..360", "a whole turn"),
        ("elevation:40..30", "from a lower to a higher"),
        ("elevation:0..100", "within -90 and 90"),
        ("azimuth,azimuth:0..20", "names one angle twice"),
    ],
)
def test_impossible_viewpoints_are_one_clear_line_of_the_config(text, hint):
    with pytest.raises(UserError, match=hint):
        RunConfig(viewpoints=text)


def test_a_config_is_checked_before_tensorflow_is_imported():
    code = (
        "import sys; from caps_tf.training.config import RunConfig; RunConfig(viewpoints='azimuth:-67..67'); "
        "assert 'tensorflow' not in sys.modules"
    )
    run_script("-c", code)


def test_splits_by_degrees_and_by_object_hold_the_records_they_should(converted):
    viewpoints = "azimuth:-67..67,elevation:-10..10"
    splits = make_splits(open_dataset(str(converted)), val_instances=[2], viewpoints=viewpoints)
    ids = {
        name: {record["id"].decode() for record in split.records().as_numpy_iterator()}
        for name, split in splits.items()
    }
    near = ("polar090_azimuth000", "polar090_azimuth045", "polar090_azimuth315")

    def expected(objects, views):
        return {f"{name}/{name}0{number}_{view}.png" for name in ("cup", "dog") for number in objects for view in views}

    far = [f"polar{polar:03d}_azimuth{azimuth:03d}" for polar, azimuth in ((45, 0), *RING)]
    assert ids == {
        "train": expected([1, 2], near),
        "validation": expected([3], near),
        "familiar": expected([4], near),
        "novel": expected([4], [view for view in far if view not in near]),
    }
    for name, split in splits.items():
        assert split.num_records == len(ids[name])


def test_an_object_that_does_not_train_cannot_validate(converted):
    with pytest.raises(UserError, match="no records for validation of instance 3: it trains on 0, 1, 2"):
        make_splits(open_dataset(str(converted)), val_instances=[0, 3])


@pytest.mark.campaign
def test_a_run_on_photographs_reports_familiar_and_novel_views_in_degrees(converted, tmp_path):
    trained = train(
        tmp_path,
        "photographs",
        *(f"--dataset={converted}", "--val_instances=2", "--viewpoints=azimuth:-67..67", "--epoch=1", "--batch_size=8"),
        *("--network=conv_capsules", "--routing=em", "--convolutions=4k5s2,8s2", "--capsules=2"),
    )
    assert trained.parent.name == "cups"
    run_script("test.py", f"--load_dir={trained}")
    [path] = (trained / "test").glob("*/report.json")
    parts = json.loads(path.read_text())["parts"]
    by = {name: part["accuracy_by"] for name, part in parts.items()}
    assert set(by["familiar"]["azimuth"]) == {"0", "45", "315"}
    assert set(by["novel"]["azimuth"]) == {"90", "135", "180", "225", "270"}
    assert set(by["familiar"]["elevation"]) == {"0", "45"} and set(by["novel"]["elevation"]) == {"0"}
    assert set(by["novel"]) == {"instance", "elevation", "azimuth", "lighting"}  # there is no second camera
    assert [parts[name]["num_examples"] for name in ("familiar", "novel")] == [8, 10]
    pictures = {picture.name for picture in path.parent.glob("*.png")}
    assert {"accuracy_over_viewpoint.png", "pose_trajectory.png"} <= pictures
