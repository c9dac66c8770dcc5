"""data/download.sh against a real server on loopback: whole files or one clear line, whatever the server does."""

import gzip
import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from caps_tf.data import norb_format as nf
from caps_tf.data import norb_matrix
from tests.norb_mirror import DAT, SCRIPT, TOOLS, Downloads, Server, assert_one_error, sha256

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"download.sh needs {', '.join(TOOLS)}"
)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.resume.set()
        server.shutdown()
        thread.join()


@pytest.fixture(params=["curl", pytest.param("wget", marks=pytest.mark.campaign)])
def downloads(request: pytest.FixtureRequest, tmp_path: Path, server: Server) -> Downloads:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return Downloads(tmp_path, server, request.param)


def test_fetches_verifies_and_unpacks_six_files_that_can_be_read(downloads):
    result = downloads.fetch()
    downloads.assert_complete(result)
    assert len(nf.read_split(downloads.dir, "training")) == len(nf.read_split(downloads.dir, "testing")) == 10
    assert downloads.server.ranges_asked_for(DAT) == [None]


def test_second_run_verifies_and_downloads_nothing(downloads):
    downloads.fetch()
    downloads.server.requests.clear()
    downloads.assert_complete(downloads.fetch())
    assert downloads.server.requests == []


def test_keep_gz_keeps_them_and_needs_no_server_to_unpack_them_again(downloads):
    packed = [f"{name}.gz" for name in downloads.data]
    downloads.assert_complete(downloads.fetch("--keep-gz"), *packed)
    (downloads.dir / DAT).unlink()
    downloads.server.requests.clear()
    downloads.assert_complete(downloads.fetch("--keep-gz"), *packed)
    assert downloads.server.requests == []


def test_only_a_damaged_file_is_fetched_again(downloads):
    downloads.fetch()
    damaged = bytearray(downloads.data[DAT])
    damaged[1000] ^= 1
    (downloads.dir / DAT).write_bytes(damaged)
    downloads.server.requests.clear()
    downloads.assert_complete(downloads.fetch())
    assert downloads.server.requests == [(f"/norb/{DAT}.gz", None)]


def test_damaged_gz_is_fetched_again(downloads):
    downloads.dir.mkdir()
    (downloads.dir / f"{DAT}.gz").write_bytes(b"damaged")
    downloads.assert_complete(downloads.fetch())


def leave_part(downloads: Downloads, part: bytes) -> None:
    downloads.dir.mkdir()
    (downloads.dir / f"{DAT}.gz.part").write_bytes(part)


def test_broken_download_is_resumed_where_it_broke_off(downloads):
    leave_part(downloads, downloads.server.files[f"{DAT}.gz"][:5000])
    result = downloads.fetch()
    downloads.assert_complete(result)
    assert "continuing after 1 MiB" in result.stdout
    assert downloads.server.ranges_asked_for(DAT) == ["bytes=5000-"]


def test_whole_part_is_not_fetched_again(downloads):
    leave_part(downloads, downloads.server.files[f"{DAT}.gz"])
    downloads.assert_complete(downloads.fetch())
    assert downloads.server.ranges_asked_for(DAT) == []


@pytest.mark.parametrize("size", [5000, 1_000_000])
def test_part_of_another_file_is_thrown_away_and_the_file_fetched_anew(downloads, size):
    leave_part(downloads, bytes(size))
    downloads.assert_complete(downloads.fetch())
    assert downloads.server.ranges_asked_for(DAT) == [f"bytes={size}-", None]


def test_server_without_ranges_is_asked_for_the_whole_file(downloads):
    downloads.server.knows_ranges = False
    leave_part(downloads, downloads.server.files[f"{DAT}.gz"][:5000])
    downloads.assert_complete(downloads.fetch())


def test_transfer_that_breaks_off_twice_is_continued_within_one_run(downloads):
    whole_before = list(downloads.data).index(DAT)
    downloads.server.break_after = [1_000_000] * whole_before + [5000, 3000]
    downloads.assert_complete(downloads.fetch())
    assert downloads.server.ranges_asked_for(DAT) == [None, "bytes=5000-", "bytes=8000-"]


def test_busy_server_is_asked_again(downloads):
    downloads.server.statuses = [503]
    downloads.assert_complete(downloads.fetch())


def test_wrong_bytes_are_one_error_and_leave_nothing(downloads):
    downloads.server.files[f"{DAT}.gz"] = b"<html>log in to the hotel network</html>"
    assert_one_error(downloads.fetch(), f"{downloads.server.url}/{DAT}.gz", "wrong checksum")
    assert not [name for name in os.listdir(downloads.dir) if name.startswith(DAT)]


def test_gz_that_unpacks_to_something_else_is_one_error_and_leaves_no_file(downloads):
    downloads.write_checksums(sizes={DAT: 7})
    assert_one_error(downloads.fetch(), f"{DAT}.gz", f"unpacks to {len(downloads.data[DAT])} bytes", "expected 7 bytes")
    assert not [name for name in os.listdir(downloads.dir) if name in (DAT, f"{DAT}.tmp")]


def test_missing_file_on_the_server_is_one_error_that_names_its_address(downloads):
    del downloads.server.files[f"{DAT}.gz"]
    assert_one_error(downloads.fetch(), f"{downloads.server.url}/{DAT}.gz", "404")
    assert not [name for name in os.listdir(downloads.dir) if name.startswith(DAT)]


@pytest.mark.parametrize("slashes", ["", "/"])
def test_address_may_end_in_a_slash_or_not(downloads, slashes):
    downloads.assert_complete(downloads.fetch("--url", downloads.server.url + slashes))


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def test_disk_that_fills_up_in_a_transfer_is_one_error_and_the_next_run_continues(downloads):
    assert_one_error(downloads.fetch(preexec_fn=limit_file_size), f"{downloads.dir / DAT}.gz.part: cannot be written")
    downloads.assert_complete(downloads.fetch())
    assert downloads.server.ranges_asked_for(DAT)[-1] == "bytes=10000-"


def test_disk_that_fills_up_in_unpacking_is_one_error_and_the_next_run_continues(downloads):
    downloads.data[DAT] = bytes(20_000)
    downloads.server.files[f"{DAT}.gz"] = gzip.compress(downloads.data[DAT])
    downloads.write_checksums()
    assert_one_error(downloads.fetch(preexec_fn=limit_file_size), f"{DAT}.gz: cannot be unpacked")
    assert [name for name in os.listdir(downloads.dir) if name.startswith(DAT)] == [f"{DAT}.gz"]
    downloads.assert_complete(downloads.fetch())
    assert downloads.server.ranges_asked_for(DAT) == [None]


def test_download_stopped_by_ctrl_c_is_continued_by_the_next_run(downloads):
    downloads.server.stall_after = 15_000
    part = downloads.dir / f"{DAT}.gz.part"
    with subprocess.Popen(
        [SCRIPT, *downloads.options()], env=downloads.env, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while process.poll() is None and not (part.exists() and part.stat().st_size):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
    size = part.stat().st_size
    downloads.server.stall_after = None
    downloads.server.resume.set()
    downloads.assert_complete(downloads.fetch())
    assert size > 0
    assert downloads.server.ranges_asked_for(DAT) == [None, f"bytes={size}-"]


# Under fire: whatever the server does, whole files or one line in bounded time.


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_a_refusal_is_one_error_with_the_answer_and_no_second_try(downloads, status):
    downloads.server.statuses = [status] * 9
    result = downloads.fetch()
    assert_one_error(result, f"the server answered {status}")
    assert "trying again" not in result.stdout and os.listdir(downloads.dir) == []


def test_redirections_are_followed(downloads):
    for name in downloads.data:
        downloads.server.redirects[f"/norb/{name}.gz"] = f"/moved/{name}.gz"
    downloads.server.files |= {f"/moved/{name}": data for name, data in downloads.server.files.items()}
    downloads.assert_complete(downloads.fetch())


def test_redirections_in_circles_are_one_error(downloads):
    for name in downloads.data:
        downloads.server.redirects[f"/norb/{name}.gz"] = f"/norb/{name}.gz"
    assert_one_error(downloads.fetch(), "redirects in circles")


@pytest.mark.campaign
def test_a_redirection_to_nowhere_is_one_error_that_names_the_address_asked_for(downloads):
    for name in downloads.data:
        downloads.server.redirects[f"/norb/{name}.gz"] = "http://127.0.0.1:1/"
    assert_one_error(downloads.fetch(), downloads.server.url, "connect")


@pytest.mark.parametrize("promised", [10, 10_000_000])
def test_a_wrong_length_ends_in_bounded_time_with_whole_files_or_one_error(downloads, promised):
    downloads.server.promised = promised
    begin = time.monotonic()
    result = downloads.fetch("--patience=1")
    assert time.monotonic() - begin < 40
    if promised == 10_000_000 and result.returncode == 0:  # all bytes had come before the connection closed
        downloads.assert_complete(result)
    else:
        assert_one_error(result, f"{downloads.server.url}/")
        assert not [name for name in os.listdir(downloads.dir) if name.endswith(".mat")]


@pytest.mark.campaign
@pytest.mark.parametrize("after", [100, 0])
def test_a_silent_server_is_given_up_in_bounded_time(downloads, after):
    downloads.server.stall_after = after
    begin = time.monotonic()
    result = downloads.fetch("--patience=1")
    assert_one_error(result, f"{downloads.server.url}/", "run this again")
    assert result.stdout.count("trying again") == 4
    assert time.monotonic() - begin < 40


@pytest.mark.campaign
def test_a_server_that_trickles_is_given_up_in_bounded_time(downloads):
    downloads.server.trickles, downloads.server.promised = True, 10_000_000
    begin = time.monotonic()
    assert_one_error(downloads.fetch("--patience=1"), f"{downloads.server.url}/")
    assert time.monotonic() - begin < 60


def test_no_network_is_one_error_at_once(downloads):
    result = downloads.run("--dir", downloads.dir, "--url=http://127.0.0.1:1/")
    assert_one_error(result, "http://127.0.0.1:1/smallnorb-5x46789x9x18x6x2x96x96-training-", "connect")
    assert "trying again" not in result.stdout
    assert os.listdir(downloads.dir) == []


# The rest does not depend on the program that downloads.


@pytest.fixture
def curl_downloads(tmp_path: Path, server: Server) -> Downloads:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return Downloads(tmp_path, server, "curl")


def test_defaults_put_the_files_beside_the_script_from_the_address_in_the_environment(curl_downloads, tmp_path):
    script = tmp_path / "some where" / "download.sh"
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    curl_downloads.env["CAPS_TF_NORB_URL"] = curl_downloads.server.url
    result = curl_downloads.run("--checksums", curl_downloads.checksums, script=script)
    curl_downloads.dir = script.parent / "smallNORB"
    curl_downloads.assert_complete(result)


def test_too_little_disk_space_is_one_error_before_anything_is_fetched(curl_downloads):
    curl_downloads.write_checksums(sizes={DAT: 10**15})
    result = curl_downloads.fetch()
    assert_one_error(result, str(curl_downloads.dir), "MiB available")
    needed = int(re.search(r"(\d+) MiB needed", result.stderr)[1])
    assert 2 * 10**15 <= needed << 20 < 2 * 10**15 + 10**7
    assert curl_downloads.server.requests == []


def test_neither_curl_nor_wget_is_one_error(curl_downloads):
    (curl_downloads.bin / "curl").unlink()
    assert_one_error(curl_downloads.fetch(), "neither curl nor wget", "install")


@pytest.mark.parametrize("place", ["a file/inside", "a file"])
def test_directory_that_cannot_be_made_is_one_error(curl_downloads, tmp_path, place):
    (tmp_path / "a file").touch()
    curl_downloads.dir = tmp_path / place
    assert_one_error(curl_downloads.fetch(), f"{curl_downloads.dir}: cannot be created", "--dir")


def test_directory_that_cannot_be_written_is_one_error(curl_downloads):
    # Permissions do not stop root, who runs many CI jobs; a directory in the place of the file does.
    (curl_downloads.dir / f"{DAT}.gz.part").mkdir(parents=True)
    assert_one_error(curl_downloads.fetch(), f"{curl_downloads.dir}: cannot write there", "--dir")


def test_shasum_serves_where_sha256sum_is_missing(curl_downloads):
    if shutil.which("shasum") is None:
        pytest.skip("shasum is not installed")
    (curl_downloads.bin / "sha256sum").unlink()
    (curl_downloads.bin / "shasum").symlink_to(shutil.which("shasum"))
    curl_downloads.assert_complete(curl_downloads.fetch())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dirr", "x"], ["unknown option --dirr", "--help"]),
        (["x"], ["unknown option x"]),
        (["--keep-gz=yes"], ["yes"]),
        (["--dir"], ["--dir needs a value"]),
        (["--url="], ["--url needs a value"]),
        (["--checksums", "nowhere.txt"], ["nowhere.txt: cannot be read"]),
    ],
)
def test_wrong_option_is_one_error(curl_downloads, arguments, words):
    assert_one_error(curl_downloads.run(*arguments), *words)


@pytest.mark.parametrize(
    "line",
    [
        "a.mat",
        f"../a.mat {'0' * 64} 5 {'0' * 64}",
        f"a.gz {'0' * 64} 5 {'0' * 64}",
        f"a.mat {'0' * 63} 5 {'0' * 64}",
        f"a.mat {'0' * 64} 5x {'0' * 64}",
        f"a.mat {'0' * 64} 05 {'0' * 64}",
        f"a.mat {'0' * 64} 5 {'0' * 64} more",
    ],
)
def test_wrong_line_of_checksums_is_one_error_that_names_file_and_line(curl_downloads, line):
    curl_downloads.checksums.write_text(f"# comment\n{line}\n")
    assert_one_error(curl_downloads.fetch(), "checksums.txt: line 2")


def test_help_names_every_option(curl_downloads):
    result = curl_downloads.run("--help")
    assert (result.returncode, result.stderr) == (0, "")
    for option in ("--dir", "--url", "--keep-gz", "--checksums", "CAPS_TF_NORB_URL"):
        assert option in result.stdout


def test_table_in_the_script_names_the_official_files(tmp_path):
    table = dict(re.findall(r"^(smallnorb\S+)\.mat +[0-9a-f]{64} (\d+ [0-9a-f]{64})$", SCRIPT.read_text(), re.M))
    axes = (nf.ELEVATIONS, nf.AZIMUTHS, nf.LIGHTINGS)
    names = {
        split: nf.split_prefix("smallnorb", instances, *axes, 96) + f"-{split}"
        for split, instances in (("training", nf.TRAIN_INSTANCES), ("testing", nf.TEST_INSTANCES))
    }
    assert sorted(table) == sorted(f"{name}-{kind}" for name in names.values() for kind in ("dat", "cat", "info"))
    category, info = nf.grid_info(nf.TEST_INSTANCES, *axes)
    for name, array in (
        (f"{names['training']}-cat", category),
        (f"{names['testing']}-cat", category),
        (f"{names['testing']}-info", info),
    ):
        norb_matrix.write_matrix(tmp_path / name, array)
        data = (tmp_path / name).read_bytes()
        assert table[name] == f"{len(data)} {sha256(data)}"
