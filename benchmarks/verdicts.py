"""The bounds on networks, judged from the runs of speed.sh: the median of three processes' ratios of minima.

    python benchmarks/verdicts.py runs/speed results/speed.csv

A process in which the comparator was disturbed (its median above 1.5 times its minimum) is void and does not count,
whichever way it went; it stays in the table.
"""

import csv
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from dicenet.engine.machine import write_csv

BEST = "best"  # the best mode of PyTorch


class Bound(NamedTuple):
    """A ratio of times, `slow` to `fast` (at least `bound`) or, for `at_most`, `fast` to `slow` (at most `bound`)."""

    runs: str
    batch: int
    fast: tuple[str, str]
    slow: tuple[str, str]
    bound: float | None
    at_most: bool = False


OURS, PEERS = ("dicenet_240", "optimized"), (("shufflenet_v2_x1_5", BEST), ("mobilenet_v3_large", BEST))
BOUNDS = (
    Bound("slow_side", 1, ("dicenet_200", "optimized"), ("dicenet_w2", "eager"), 8),
    Bound("slow_side", 32, ("dicenet_200", "optimized"), ("dicenet_w2", "eager"), 6),
    Bound("slow_side", 1, ("dicenet_200", "channels_last"), ("dicenet_w2", "eager"), 2.5),
    Bound("slow_side", 32, ("dicenet_200", "channels_last"), ("dicenet_w2", "eager"), 2.5),
    Bound("slow_side", 1, ("dicenet_200", "optimized"), ("dicenet_200", "reference"), None),
    Bound("slow_side", 32, ("dicenet_200", "optimized"), ("dicenet_200", "reference"), None),
    Bound("peers_1", 1, OURS, PEERS[0], 0.75, True),
    Bound("peers_1", 32, OURS, PEERS[0], 0.90, True),
    Bound("peers_1", 1, OURS, PEERS[1], 0.80, True),
    Bound("peers_1", 32, OURS, PEERS[1], 0.90, True),
    Bound("peers_2", 1, OURS, PEERS[0], 0.80, True),
    Bound("peers_2", 32, OURS, PEERS[0], 0.95, True),
    Bound("peers_2", 1, OURS, PEERS[1], 0.80, True),
    Bound("peers_2", 32, OURS, PEERS[1], 0.95, True),
    Bound("peers_1", 1, OURS, ("shufflenet_v2_x1_5", "onnxruntime"), None, True),
    Bound("peers_1", 32, OURS, ("shufflenet_v2_x1_5", "onnxruntime"), None, True),
    Bound("training", 64, ("dicenet_200", "fast"), ("dicenet_w2", "nchw"), 2.7),
    Bound("training", 64, ("dicenet_200", "fast_channels_last"), ("dicenet_w2", "channels_last"), 2.0),
    Bound("training", 64, ("dicenet_240", "fast_channels_last"), ("shufflenet_v2_x1_5", "channels_last"), 1.9, True),
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def time_of(rows: list[dict[str, str]], batch: int, network: str, mode: str) -> dict[str, str] | None:
    """The row of a network in a mode."""
    for row in rows:
        right_mode = row["best_mode"] == "yes" if mode == BEST else row["mode"] == mode
        if row["network"] == network and int(row["batch_size"]) == batch and right_mode and row["min_ms"]:
            return row
    return None


def judge(bound: Bound, folder: Path) -> list[dict[str, Any]]:
    """One row per process, and the verdict."""
    rows = []
    for path in sorted(folder.glob(f"{bound.runs}_[0-9]/results.csv")):
        results = read(path)
        pair = [time_of(results, bound.batch, *member) for member in (bound.fast, bound.slow)]
        if None in pair:
            continue
        fast, slow = pair
        disturbed = float(slow["median_ms"]) > 1.5 * float(slow["min_ms"])  # type: ignore[index]
        times = [float(row["min_ms"]) for row in pair]  # type: ignore[index]
        ratio = times[0] / times[1] if bound.at_most else times[1] / times[0]
        rows.append(
            {"process": path.parent.name, "ratio": round(ratio, 3), "void": "yes" if disturbed else "no"}
            | {
                "fast": f"{bound.fast[0]} {fast['mode']} {times[0]:.2f} ms",  # type: ignore[index]
                "slow": f"{bound.slow[0]} {slow['mode']} {times[1]:.2f} ms",  # type: ignore[index]
            }
            | {name: fast[name] for name in ("threads", "processor", "torch", "commit")}
        )  # type: ignore[index]
    valid = [row["ratio"] for row in rows if row["void"] == "no"]
    about = {
        "runs": bound.runs,
        "batch": bound.batch,
        "what": f"{bound.fast[0]} ({bound.fast[1]}) / {bound.slow[0]} ({bound.slow[1]})"
        if bound.at_most
        else f"{bound.slow[0]} ({bound.slow[1]}) / {bound.fast[0]} ({bound.fast[1]})",
        "bound": "" if bound.bound is None else f"{'at most' if bound.at_most else 'at least'} {bound.bound}",
    }
    median = round(statistics.median(valid), 3) if valid else None
    met = ""
    if bound.bound is not None and median is not None and len(valid) >= 3:  # fewer say nothing
        met = "yes" if (median <= bound.bound if bound.at_most else median >= bound.bound) else "no"
    verdict = {**about, "process": f"median of {len(valid)}", "ratio": median, "met": met}
    return [verdict, *({**about, **row} for row in rows)]


def main(folder: Path, path: Path) -> None:
    rows = [row for bound in BOUNDS for row in judge(bound, folder)]
    names = dict.fromkeys(name for row in rows for name in row)
    write_csv(path, [{name: row.get(name, "") for name in names} for row in rows])
    for row in rows:
        if "met" in row:
            print(f"{row['what']}, batch {row['batch']}, {row['runs']}: {row['ratio']} ({row['bound']}) {row['met']}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
