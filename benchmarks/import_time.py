"""Seconds to import dicenet and timm, in fresh processes, taken in turn; and to answer --help.

python benchmarks/import_time.py results/import_time.csv
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from dicenet.engine.machine import machine, write_csv

COMMANDS = {
    "import timm": [sys.executable, "-c", "import timm"],
    "import dicenet": [sys.executable, "-c", "import dicenet"],
    "dicenet --help": [str(Path(sys.executable).parent / "dicenet"), "--help"],
    "dicenet --version": [str(Path(sys.executable).parent / "dicenet"), "--version"],
}
ROUNDS = 9


def main(path: str) -> None:
    """Measure in turn; the first round warms the disk cache and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    base = seconds["import timm"][1:]
    rows = [
        {
            "what": name,
            "minimum_s": round(min(values[1:]), 3),
            "median_s": round(statistics.median(values[1:]), 3),
            "ratio_of_minima_to_timm": round(min(values[1:]) / min(base), 3),
            "ratio_of_medians_to_timm": round(statistics.median(values[1:]) / statistics.median(base), 3),
            "rounds": ROUNDS,
            **machine(),
        }
        for name, values in seconds.items()
    ]
    for row in rows:
        print(row)
    write_csv(Path(path), rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
