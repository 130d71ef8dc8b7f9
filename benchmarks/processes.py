"""Ratios that count: three valid processes, each with all members timed in turn, and the median of their ratios."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dicenet.analysis.speed.process import keep_freed_memory
from dicenet.analysis.speed.timing import Call, Pace, interleave, summarise
from dicenet.engine.machine import machine, write_csv

VALID = 3
MOST = 6
#: In JSON on the last line of a process.
Rows = list[dict[str, Any]]


def prepare(threads: int = 1) -> None:
    """Threads, and memory that stays: what every measuring process begins with."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def ratios(case: str, members: Mapping[str, Call], pace: Pace) -> Rows:
    """The first member against each other one; ratios are its time to theirs. The others' noise makes a row void."""
    trials = interleave(list(members.values()), pace)
    names, times = list(members), [summarise(t.milliseconds) for t in trials]
    return [
        {
            "case": case,
            "ours": names[0],
            "comparator": name,
            "ours_us": round(1000 * times[0].minimum, 1),
            "comparator_us": round(1000 * time.minimum, 1),
            "ratio": round(times[0].minimum / time.minimum, 3),
            "ratio_of_medians": round(times[0].median / time.median, 3),
            "page_faults": round(max(trials[0].page_faults + trial.page_faults), 1),
            "valid": not time.disturbed,
        }
        for name, time, trial in zip(names[1:], times[1:], trials[1:], strict=True)
    ]


def run(script: str, path: Path | None, measure: Callable[[], Rows], variables: Mapping[str, str] = {}) -> None:
    """Without a path: measure here and print. With one: do so in fresh processes and write all rows and medians."""
    level = torch.ops.dicenet.cpu_level()
    if path is None:
        print(json.dumps({"rows": measure(), "level": level}))
        return
    rows: Rows = []
    for number in range(MOST):
        done = subprocess.run(
            [sys.executable, script], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True
        )
        answer = json.loads(done.stdout.splitlines()[-1])
        level = answer["level"]
        rows += [{"process": number + 1, **row} for row in answer["rows"]]
        if all(len(good) >= VALID for good in by_case(rows).values()):
            break
    medians: Rows = []
    for (case, ours, comparator), good in by_case(rows).items():
        middle = statistics.median(row["ratio"] for row in good[:VALID]) if good else None
        inverse = round(1 / middle, 2) if middle else None
        print(f"{case}: {ours} / {comparator} = {middle} (inverse {inverse})")
        count = f"median of {len(good[:VALID])}"
        medians.append({"process": count, "case": case, "ours": ours, "comparator": comparator, "ratio": middle})
    about = {**machine(), "level": level, "command": " ".join(sys.argv)}
    names = dict.fromkeys(name for row in [*rows, *medians] for name in row)
    write_csv(path, [{**{name: row.get(name, "") for name in names}, **about} for row in [*medians, *rows]])


def by_case(rows: Rows) -> dict[tuple[str, str, str], Rows]:
    """The valid rows of each comparison; void ones count for nothing."""
    cases: dict[tuple[str, str, str], Rows] = {}
    for row in rows:
        good = cases.setdefault((row["case"], row["ours"], row["comparator"]), [])
        if row["valid"]:
            good.append(row)
    return cases
