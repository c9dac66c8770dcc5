"""The distributed training loop: parameters, factories, steps, checkpoints and logs."""
