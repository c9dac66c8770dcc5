"""Scripts that run without their imports run as `python` runs them, and leave nothing behind."""

import json
import subprocess

import pytest

from tests.script_host import HOST
from tests.small_norb import ROOT, start_script

SCRIPT = """
import json, os, signal, sys
print(json.dumps([__name__, sys.argv, os.getcwd(), sys.path[0], os.environ["SAID"]]))
print("an error", file=sys.stderr)
end = sys.argv[1]
if end == "raises":
    raise ValueError("of this kind")
elif end == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif end != "ends":
    sys.exit(int(end) if end.isdigit() else end)
"""


def test_a_script_ends_as_it_would_by_itself(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("SAID", "now")
    for end in ("ends", "3", "words", "raises", "is killed"):
        expected = start_script([str(script), end], {}, (), timeout=60)
        for alone in (False, True):
            found = HOST.run([str(script), end], alone, timeout=60)
            assert found.returncode == expected.returncode, end
            assert found.stderr.splitlines()[-1] == expected.stderr.splitlines()[-1]
            if end != "is killed":  # what is buffered then is lost
                assert found.stdout == expected.stdout
                assert json.loads(found.stdout) == ["__main__", [str(script), end], str(ROOT), str(tmp_path), "now"]


LEAVES = """
import os, signal, sys
import keras
from absl import flags
flags.DEFINE_string("left", None, "a flag")
flags.FLAGS(sys.argv)
handlers = [signal.getsignal(number) == signal.default_int_handler for number in (signal.SIGINT, signal.SIGTERM)]
print(flags.FLAGS.left, handlers, keras.config.dtype_policy().name, keras.layers.Dense(1).name, os.environ.get("LEFT"))
os.environ["LEFT"] = "yes"
os.chdir("/")
keras.mixed_precision.set_global_policy("mixed_float16")
signal.signal(signal.SIGTERM, signal.default_int_handler)
"""


def test_a_script_leaves_nothing_for_the_next_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LEAVES)
    first, second = (HOST.run([str(script), *flags], False, timeout=60) for flags in (["--left=this"], []))
    assert (first.stderr, first.stdout) == ("", "this [True, False] float32 dense None\n")
    assert (second.stderr, second.stdout) == ("", "None [True, False] float32 dense None\n")


@pytest.mark.parametrize("alone", [False, True], ids=["kept", "forked"])
def test_a_script_that_takes_too_long_is_killed_and_the_next_one_runs(tmp_path, alone):
    script = tmp_path / "script.py"
    script.write_text("import sys, time\nprint('here', flush=True)\ntime.sleep(float(sys.argv[1]))")
    with pytest.raises(subprocess.TimeoutExpired) as told:
        HOST.run([str(script), "600"], alone, timeout=0.5)
    assert told.value.output == "here\n"
    assert HOST.run([str(script), "0"], alone, timeout=60).stdout == "here\n"
