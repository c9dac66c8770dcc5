"""A process of the benchmark that uses the backend: imports it, then waits for its task, one line of JSON on stdin.

Results are lines of JSON on stdout, written as soon as they are measured. A task that fails says so in a line of its own.
"""

import json
import sys
import traceback

from benchmarks.accelerator.frame import explain


def main() -> int:
    # What takes time to import, before there is a task.
    from benchmarks.accelerator import device, network_task

    kinds = {"device": device.measure_device, "network": network_task.measure_network}
    line = sys.stdin.readline()
    if not line.strip():
        return 0
    task = json.loads(line)
    try:
        kinds[task.pop("kind")](emit=_emit, **task)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        _emit(failed=explain(error))
    return 0


def _emit(**figures) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    sys.exit(main())
