"""Time and memory of training steps, of the input pipeline and of the data scripts: `python -m benchmarks --help`."""
