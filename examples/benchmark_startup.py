"""What the plug-in costs at interpreter start: python examples/benchmark_startup.py [FILE.json].

Starts Python 30 times with ``-X importtime`` and reads our line, the import of tscode_yolo by its .pth file. The
package has to be installed in this environment.
"""

import json
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 30


def main(argv: list[str]) -> int:
    times = []
    for _ in range(ROUNDS):
        command = [sys.executable, "-X", "importtime", "-c", "pass"]
        log = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(sys.prefix)).stderr
        line = re.search(r"\|\s*(\d+) \|\s*tscode_yolo$", log, re.MULTILINE)
        if line is None:
            print("tscode_yolo is not loaded at start here; install it first (pip install .)", file=sys.stderr)
            return 1
        times.append(int(line.group(1)))
    result = {
        "command": "python examples/benchmark_startup.py",
        "rounds": ROUNDS,
        "microseconds": {"median": statistics.median(times), "min": min(times), "max": max(times)},
        "python": platform.python_version(),
        "hardware": platform.machine(),
    }
    print(json.dumps(result, indent=1))
    if argv:
        Path(argv[0]).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
