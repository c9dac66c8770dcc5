"""Converts the six NORB files into TFRecords; --help says how. The code is caps_tf/commands/convert.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.commands.convert import run

if __name__ == "__main__":
    run()
