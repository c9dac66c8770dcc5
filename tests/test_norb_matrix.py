"""Files of one NORB matrix: byte for byte the official ones, and one clear error for every kind of damage."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caps_tf.data import norb_format as nf
from caps_tf.data import norb_matrix
from caps_tf.errors import UserError
from tests.refusals import assert_one_line_naming
from tests.small_norb import compress

# Writing.


@pytest.mark.parametrize(
    ("kind", "size", "sha256"),
    [
        ("cat", 97220, "591ed90c090cb6724593e8de28180bd602095ee8ec82bd1a5ca30b488cd1d06e"),
        ("info", 388820, "318f817236b7c97af03cd90e07a9cbb4346e20ef83a1118a61eeb50e3b96db7e"),
    ],
)
def test_full_test_grid_is_the_official_testing_file_byte_for_byte(tmp_path, kind, size, sha256):
    category, info = nf.grid_info(nf.TEST_INSTANCES, nf.ELEVATIONS, nf.AZIMUTHS, nf.LIGHTINGS)
    path = tmp_path / "testing.mat"
    norb_matrix.write_matrix(path, {"cat": category, "info": info}[kind])
    data = path.read_bytes()
    assert len(data) == size
    assert hashlib.sha256(data).hexdigest() == sha256


def test_header_bytes_of_each_type_and_of_fewer_than_three_dimensions(tmp_path):
    path = tmp_path / "a.mat"
    norb_matrix.write_matrix(path, np.array([7, -2], np.int32))
    assert path.read_bytes() == struct.pack("<Ii3i2i", 0x1E3D4C54, 1, 2, 1, 1, 7, -2)
    norb_matrix.write_matrix(path, np.array([[[[1]], [[2]]]], np.uint8))
    assert path.read_bytes() == struct.pack("<Ii4i2B", 0x1E3D4C55, 4, 1, 2, 1, 1, 1, 2)


def test_big_endian_and_strided_arrays_are_written_little_endian_in_c_order(tmp_path):
    array = np.arange(12, dtype=">i4").reshape(3, 4).T
    norb_matrix.write_matrix(tmp_path / "a.mat", array)
    assert norb_matrix.read_matrix(tmp_path / "a.mat").tolist() == array.tolist()


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    dtype=st.sampled_from([np.uint8, np.int32]),
    packed=st.booleans(),
)
def test_any_shape_survives_the_round_trip(tmp_path_factory, shape, dtype, packed):
    path = tmp_path_factory.mktemp("round") / "a.mat"
    array = np.random.default_rng(1).integers(0, 256, shape).astype(dtype)
    norb_matrix.write_matrix(path, array)
    matrix = norb_matrix.read_matrix(compress(path) if packed else path)
    assert matrix.dtype == dtype
    np.testing.assert_array_equal(matrix, array)


def test_writer_takes_rows_in_any_order_and_shows_the_file_only_when_whole(tmp_path):
    path = tmp_path / "a.mat"
    array = np.arange(20, dtype=np.int32).reshape(5, 4)
    with norb_matrix.MatrixWriter(path, array.shape, array.dtype) as writer:
        writer.write(3, array[3:])
        writer.write(0, array[:2])
        assert not path.exists()
        writer.write(2, array[2:3])
    assert norb_matrix.read_matrix(path).tolist() == array.tolist()
    assert os.listdir(tmp_path) == ["a.mat"]


def test_writer_leaves_the_old_file_and_nothing_else_after_an_error(tmp_path):
    path = tmp_path / "a.mat"
    norb_matrix.write_matrix(path, np.zeros(3, np.int32))
    with pytest.raises(RuntimeError), norb_matrix.MatrixWriter(path, [3], np.int32) as writer:
        writer.write(0, np.ones(3, np.int32))
        raise RuntimeError
    assert norb_matrix.read_matrix(path).tolist() == [0, 0, 0]
    assert os.listdir(tmp_path) == ["a.mat"]


def test_writer_overwrites_what_a_killed_run_left(tmp_path):
    (tmp_path / "a.mat.tmp").write_bytes(bytes(1000))
    norb_matrix.write_matrix(tmp_path / "a.mat", np.ones(3, np.int32))
    assert norb_matrix.read_matrix(tmp_path / "a.mat").tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["a.mat"]


def test_writer_refuses_to_finish_with_rows_missing(tmp_path):
    with (
        pytest.raises(ValueError, match="row 1 was never written"),
        norb_matrix.MatrixWriter(tmp_path / "a.mat", [3], np.int32) as writer,
    ):
        writer.write(0, np.ones(1, np.int32))
        writer.write(2, np.ones(1, np.int32))
    assert os.listdir(tmp_path) == []


def test_second_writer_of_one_file_wins_whole_and_the_first_is_told(tmp_path):
    path = tmp_path / "a.mat"
    with (
        pytest.raises(UserError, match=r"a\.mat: another process"),
        norb_matrix.MatrixWriter(path, [2], np.int32) as first,
    ):
        first.write(0, np.ones(2, np.int32))
        second = norb_matrix.MatrixWriter(path, [2], np.int32).__enter__()
        second.write(0, np.full(2, 2, np.int32))
    second.__exit__(None, None, None)
    assert norb_matrix.read_matrix(path).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("start_row", "rows", "words"),
    [
        (0, np.zeros([2, 3], np.uint8), "expected int32"),
        (0, np.zeros([2, 4], np.int32), r"expected int32 \[3\]"),
        (4, np.zeros([2, 3], np.int32), "rows 4:6 of a file of 5"),
        (-1, np.zeros([1, 3], np.int32), "rows -1:0"),
    ],
)
def test_writer_refuses_rows_that_do_not_fit(tmp_path, start_row, rows, words):
    with (
        pytest.raises(ValueError, match=words),
        norb_matrix.MatrixWriter(tmp_path / "a.mat", [5, 3], np.int32) as writer,
    ):
        writer.write(start_row, rows)


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros(3, np.int64), np.int32(3), np.zeros([0], np.int32), np.zeros([1] * 9, np.uint8)]
)
def test_arrays_the_format_cannot_hold_are_refused(tmp_path, array):
    with pytest.raises(ValueError):
        norb_matrix.write_matrix(tmp_path / "a.mat", array)
    assert os.listdir(tmp_path) == []


def test_writing_into_a_missing_directory_names_the_file(tmp_path):
    with pytest.raises(UserError) as caught:
        norb_matrix.write_matrix(tmp_path / "nowhere" / "a.mat", np.zeros(3, np.int32))
    assert_one_line_naming(caught.value, "a.mat", "No such file or directory")


FULL_DISK = """
import resource, sys
import numpy as np
from caps_tf.data import norb_format as nf
from caps_tf.data import norb_matrix
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    if sys.argv[1].endswith(".gz"):
        norb_matrix.read_matrix(sys.argv[1])
    else:
        norb_matrix.write_matrix(sys.argv[1], np.zeros(100_000, np.uint8))
except nf.UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the file size the POSIX way")
@pytest.mark.parametrize("name", ["a.mat", "a.mat.gz"])
def test_full_disk_is_one_error_that_names_the_file_and_leaves_nothing(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(bytes(100_000)))
    before = os.listdir(tmp_path)
    run = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    assert run.stdout.count("\n") == 1
    assert str(path) in run.stdout and "File too large" in run.stdout
    assert os.listdir(tmp_path) == before


# Reading.


def test_reading_maps_the_file_and_cannot_change_it(tmp_path):
    norb_matrix.write_matrix(tmp_path / "a.mat", np.zeros([3, 2], np.uint8))
    matrix = norb_matrix.read_matrix(str(tmp_path / "a.mat"))
    assert isinstance(matrix, np.memmap)
    with pytest.raises(ValueError):
        matrix[0] = 1


MEMORY_PROBE = """
import resource, sys
from caps_tf.data.norb_matrix import read_matrix
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
matrix = read_matrix(sys.argv[1])
print(matrix.shape[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "tensorflow" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux only")
def test_gz_is_decompressed_without_memory_and_leaves_no_file(tmp_path):
    path = tmp_path / "a.mat.gz"
    size = 100 << 20
    with gzip.open(path, "wb", 1) as file:
        file.write(struct.pack("<Ii3i", 0x1E3D4C55, 1, size, 1, 1))
        for _ in range(100):
            file.write(bytes(1 << 20))
    probe = subprocess.run([sys.executable, "-c", MEMORY_PROBE, path], capture_output=True, text=True, check=True)
    rows, extra_kib, tensorflow = probe.stdout.split()
    assert int(rows) == size
    assert int(extra_kib) < 20 << 10
    assert tensorflow == "False"
    assert os.listdir(tmp_path) == ["a.mat.gz"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a directory nobody can write in")
def test_gz_in_a_directory_that_cannot_be_written_is_decompressed_elsewhere():
    # Nobody, not even root, can make a file in /proc/self; nothing there is gzipped, so getting as far as reading
    # it shows that the temporary file went elsewhere.
    with pytest.raises(UserError, match="damaged gzip file"):
        norb_matrix.decompressed(Path("/proc/self/stat"))


GOOD = struct.pack("<Ii3i4i", 0x1E3D4C54, 1, 4, 1, 1, 0, 1, 2, 3)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.mat", b"", ["cut short", "8 bytes, found 0"]),
        ("start.mat", GOOD[:6], ["cut short", "8 bytes, found 6"]),
        ("header.mat", GOOD[:19], ["cut short", "20 bytes, found 19"]),
        ("short.mat", GOOD[:-1], ["cut short", "expected 36 bytes", "found 35"]),
        ("headonly.mat", GOOD[:20], ["cut short", "expected 36 bytes", "found 20"]),
        ("long.mat", GOOD + b"\0", ["bytes after its end", "expected 36 bytes", "found 37"]),
        ("html.mat", b"<html><body>404 Not Found</body></html>", ["not a NORB file"]),
        ("float.mat", struct.pack("<I", 0x1E3D4C51) + GOOD[4:], ["float32", "only uint8 and int32"]),
        ("packed.mat", struct.pack("<I", 0x1E3D4C52) + GOOD[4:], ["packed", "only uint8 and int32"]),
        ("double.mat", struct.pack("<I", 0x1E3D4C53) + GOOD[4:], ["float64", "only uint8 and int32"]),
        ("short.mat", struct.pack("<I", 0x1E3D4C56) + GOOD[4:], ["int16", "only uint8 and int32"]),
        ("swapped.mat", struct.pack(">Ii3i4i", 0x1E3D4C54, 1, 4, 1, 1, 0, 1, 2, 3), ["big-endian"]),
        ("ndim0.mat", struct.pack("<Ii3i", 0x1E3D4C54, 0, 1, 1, 1), ["0 dimensions"]),
        ("ndim9.mat", struct.pack("<Ii9i", 0x1E3D4C55, 9, *[1] * 9) + b"\0", ["9 dimensions"]),
        ("negative.mat", struct.pack("<Ii3i", 0x1E3D4C54, -1, 1, 1, 1), ["-1 dimensions"]),
        ("zero.mat", struct.pack("<Ii3i", 0x1E3D4C54, 2, 4, 0, 1), ["[4, 0]", "positive"]),
        ("minus.mat", struct.pack("<Ii3i", 0x1E3D4C54, 1, -4, 1, 1), ["[-4]", "positive"]),
        ("huge.mat", struct.pack("<Ii8i", 0x1E3D4C54, 8, *[2**31 - 1] * 8), ["cut short", "found 40"]),
        ("unnamed.mat", gzip.compress(GOOD), ["gzip", "rename"]),
        ("cut.mat.gz", gzip.compress(GOOD)[:-6], ["damaged gzip"]),
        ("head.mat.gz", gzip.compress(GOOD)[:5], ["damaged gzip"]),
        ("flipped.mat.gz", gzip.compress(GOOD)[:-8] + b"\xff" * 8, ["damaged gzip", "CRC"]),
        ("deflate.mat.gz", gzip.compress(GOOD)[:10] + b"\xff" * 30, ["damaged gzip"]),
        ("tail.mat.gz", gzip.compress(GOOD) + b"tail", ["damaged gzip"]),
        ("plain.mat.gz", GOOD, ["damaged gzip"]),
        ("empty.mat.gz", b"", ["cut short"]),
        ("inside.mat.gz", gzip.compress(GOOD[:-1]), ["cut short", "expected 36 bytes", "found 35"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_file_is_one_error_that_names_it(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        norb_matrix.read_matrix(tmp_path / name)
    assert_one_line_naming(caught.value, name, *words)
    assert os.listdir(tmp_path) == [name]


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), packed=st.booleans())
def test_any_one_changed_byte_is_read_or_one_clear_error(tmp_path_factory, position, value, packed):
    data = bytearray(gzip.compress(GOOD) if packed else GOOD)
    data[position] = value
    path = tmp_path_factory.mktemp("byte") / ("a.mat.gz" if packed else "a.mat")
    path.write_bytes(data)
    try:
        assert norb_matrix.read_matrix(path).nbytes == 16
    except UserError as error:
        assert_one_line_naming(error, path.name)


@pytest.mark.parametrize("name", ["missing.mat", "missing.mat.gz"])
def test_missing_file_is_one_error_that_names_it(tmp_path, name):
    with pytest.raises(UserError) as caught:
        norb_matrix.read_matrix(tmp_path / name)
    assert_one_line_naming(caught.value, name, "no such file")


@pytest.mark.parametrize("name", ["folder.mat", "folder.mat.gz"])
def test_directory_in_place_of_a_file_is_one_error_that_names_it(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError) as caught:
        norb_matrix.read_matrix(tmp_path / name)
    assert_one_line_naming(caught.value, name, "cannot be read")
