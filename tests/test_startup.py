"""TensorFlow's notices do not reach the terminal, and everything else does."""

import os
import subprocess
import sys

import pytest

from caps_tf.startup import ENVIRONMENT, without_chatter
from tests.small_norb import HOSTED, ROOT, expect_one_line, run_script

NOTICES = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1795861186.015797    9785 cudart_stub.cc:31] Could not find cuda drivers on your machine.\n"
)


def test_notices_are_kept_off_stderr_and_nothing_else_is(capfd):
    with without_chatter():
        os.write(2, f"{NOTICES}E0000 00:00:1 cuda.cc:1] a card is broken\n{NOTICES}a warning of Python\n".encode())
    os.write(2, NOTICES.encode())  # afterwards all is as before
    assert capfd.readouterr().err == f"E0000 00:00:1 cuda.cc:1] a card is broken\na warning of Python\n{NOTICES}"


def test_the_last_words_of_a_library_that_ends_the_program_are_heard():
    code = f"""
import os
from caps_tf.startup import without_chatter
with without_chatter():
    os.write(2, {NOTICES.encode()!r} + b"F0000 00:00:1 cpu.cc:1] this processor lacks AVX")
    os.abort()
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode < 0 and process.stderr == "F0000 00:00:1 cpu.cc:1] this processor lacks AVX"


def test_a_program_starts_keras_silently_and_keeps_variables_that_are_set():
    code = (
        "from caps_tf.startup import start_keras; start_keras(); import os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**inherited, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (process.stdout, process.stderr) == ("2\n", "")


NOWHERE = {
    "data/convert_text_to_tfrecord.py": [
        "--train=nowhere",
        "--test=nowhere",
        "--encoder=nowhere.keras",
        "--data_dir=nowhere",
    ],
    "data/convert_to_tfrecord.py": ["--data_dir=nowhere"],
    "data/convert_idx_to_tfrecord.py": ["--source=nowhere", "--data_dir=nowhere"],
    "data/convert_views_to_tfrecord.py": ["--source=nowhere", "--data_dir=nowhere"],
    "data/plain_classifiers.py": ["--dataset=nowhere"],
    "examples/credit.py": ["--data_dir=nowhere", "--output=nowhere"],
    "examples/train_any_backend.py": ["--data=nowhere", "--output=nowhere"],
    "-m": ["caps_tf.predict", "--model=nowhere", "nowhere.png"],
}


@pytest.mark.campaign
@pytest.mark.parametrize("script", NOWHERE)
def test_a_script_that_the_tests_run_in_a_kept_process_also_starts_by_itself(script):
    """Of train_val.py and test.py the default tests start new processes."""
    assert {*NOWHERE, "train_val.py", "test.py"} == set(HOSTED)
    expect_one_line(run_script(script, *NOWHERE[script], check=False, start="new"), "nowhere")
