"""Tests a trained directory; `python test.py --help` says how. The code is caps_tf/commands/test.py."""

from caps_tf.commands.test import run

if __name__ == "__main__":
    run()
