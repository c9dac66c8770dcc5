"""Trains and validates a capsule network; `python train_val.py --help` says how. The code is caps_tf/commands/train.py."""

from caps_tf.commands.train import run

if __name__ == "__main__":
    run()
