"""Everything worth knowing of one accelerator in a stated time: `python -m benchmarks.accelerator --help`."""
