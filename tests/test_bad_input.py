"""What a user gets wrong is reported by train_val.py in one line, with a non-zero exit."""

import pytest

from tests.small_norb import TINY, expect_one_line, run_script, write_small_norb


def test_missing_data_names_the_command_to_run(tmp_path):
    expect_one_line(run_script("train_val.py", f"--storage={tmp_path}", check=False), "./data/download.sh")
    process = run_script("train_val.py", f"--storage={tmp_path}", "--dataset=renderedNORB", check=False)
    expect_one_line(process, "python data/render_norb.py")
    assert not (tmp_path / "logs").exists()


def test_unconverted_data_names_the_command_to_run(tmp_path):
    write_small_norb(tmp_path / "data" / "smallNORB")
    process = run_script("train_val.py", f"--storage={tmp_path}", check=False)
    expect_one_line(process, "python data/convert_to_tfrecord.py --dataset=smallNORB")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--dataset=no_such_dataset"], ["no_such_dataset"]),
        (["--image_size=16"], ["at least 17 pixels"]),
        (["--image_size=99"], ["99"]),
        (["--image_size=wide"], ["--image_size", "wide"]),
        (["--batch_size=100000"], ["--batch_size"]),
        (["--batch_size=0"], ["batch_size must be positive"]),
        (["--val_prop=1.5"], ["val_prop"]),
        (["--reset"], ["--load_dir"]),
        (["--params_path=missing.json"], ["missing.json"]),
        (["--load_dir=no/such/run"], ["no/such/run"]),
        (["stray"], ["stray"]),
        (["--dropout=0.3"], ["matrix_capsules does not read --dropout", "cnn_baseline"]),
        (["--part_noise=0.5"], ["matrix_capsules does not read --part_noise", "heinsen_norb"]),
    ],
)
def test_bad_flags_get_one_clear_line(storage, flags, words):
    process = run_script("train_val.py", *TINY, f"--storage={storage}", *flags, check=False)
    expect_one_line(process, *words)
