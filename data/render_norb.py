"""Renders a set of toys in the format of smallNORB; --help says how. The code is caps_tf/commands/render.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.commands.render import run

if __name__ == "__main__":
    run()
