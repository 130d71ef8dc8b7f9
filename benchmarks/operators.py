"""The operators against torch's: dice_local against ONE depth-wise 3x3, dim_conv against the reference.

    taskset -c 0 python benchmarks/operators.py results/operators.csv
    taskset -c 0 python benchmarks/operators.py results/operators_avx2.csv --avx2

Three fresh processes; in each all members are timed in turn, and the verdict is the median of the three ratios of
minima. A process in which a comparator's median lies above 1.5 times its minimum is void, logged, and repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dicenet
from dicenet.analysis.machine import machine, write_csv
from dicenet.analysis.speed.process import keep_freed_memory
from dicenet.analysis.speed.timing import Pace, interleave, summarise
from dicenet.layers import DiCEUnit
from dicenet.ops import dim_conv, use_backend
from dicenet.ops.unit import norm_arguments

LOCAL = [(batch, channels, side) for batch in (1, 32) for channels, side in ((139, 28), (278, 14), (556, 7))]
DIM_CONV = ((64, 139, 8), (64, 278, 4), (64, 556, 2), (8, 139, 28))
VALID = 3
MOST = 6


def local_members(batch: int, channels: int, side: int) -> dict[str, Any]:
    """dice_local and a channels-last depth-wise convolution of the same map."""
    unit = DiCEUnit(channels, channels, (side, side)).eval()
    parts = unit.parts()
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    conv = conv.to(memory_format=torch.channels_last)
    table = torch.ops.dicenet.fold_local(
        parts.weight_depth,
        *norm_arguments(parts.norm),
        parts.slope,
        parts.norm.eps,
        parts.join,
        *norm_arguments(parts.joined_norm),
        parts.joined_slope,
        parts.joined_norm.eps,
    )
    return {
        "dice_local": lambda: torch.ops.dicenet.dice_local(x, table, parts.weight_height, parts.weight_width),
        "depth-wise 3x3": lambda: conv(x),
    }


def dim_conv_members(batch: int, channels: int, side: int) -> dict[str, Any]:
    """dim_conv forward and backward (input and kernels), C++ and reference."""
    planes = (channels, side, side)
    x = torch.randn(batch, channels, side, side)
    inputs: list[Tensor] = [x, *(torch.randn(p, 1, 3, 3) for p in planes)]
    inputs = [t.requires_grad_() for t in inputs]
    fast = [t.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for t in inputs]

    def step(backend: str, tensors: list[Tensor], grad: Tensor) -> None:
        with use_backend(backend):
            torch.autograd.grad(dim_conv(*tensors), tensors, grad)

    grad = torch.randn(batch, 3 * channels, side, side)
    grad_fast = grad.contiguous(memory_format=torch.channels_last)
    return {
        "dim_conv": lambda: step("cpp", fast, grad_fast),
        "reference": lambda: step("reference", inputs, grad),
        "reference channels-last": lambda: step("reference", fast, grad_fast),
    }


def measure() -> list[dict[str, Any]]:
    """All cases in this process: ratio of each comparator to the operator, and the operator's to the comparator's."""
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    cases = [("local", case) for case in LOCAL] + [("dim_conv", case) for case in DIM_CONV]
    for what, (batch, channels, side) in cases:
        make = local_members if what == "local" else dim_conv_members
        members = make(batch, channels, side)
        with torch.inference_mode(what == "local"):
            trials = interleave(list(members.values()), Pace(trials=21, warmup=3, shortest=0.02, seed=0))
        names, times = list(members), [summarise(t.milliseconds) for t in trials]
        for name, time, trial in zip(names[1:], times[1:], trials[1:], strict=True):
            rows.append(
                {
                    "case": f"{batch}x{channels}x{side}x{side}",
                    "operator": names[0],
                    "comparator": name,
                    "operator_us": round(1000 * times[0].minimum, 1),
                    "comparator_us": round(1000 * time.minimum, 1),
                    "ratio": round(times[0].minimum / time.minimum, 3),
                    "ratio_of_medians": round(times[0].median / time.median, 3),
                    "page_faults": round(max(trial.page_faults), 1),
                    "valid": not time.disturbed,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", help="CSV to write")
    parser.add_argument("--avx2", action="store_true", help="both sides without AVX-512")
    arguments = parser.parse_args()
    if arguments.path is None:
        print(json.dumps({"rows": measure(), "level": torch.ops.dicenet.cpu_level()}))
        return
    environment = dict(os.environ)
    if arguments.avx2:
        environment |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    runs: list[dict[str, Any]] = []
    level = ""
    for run in range(MOST):
        done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout.splitlines()[-1])
        level = answer["level"]
        runs += [{"run": run + 1, **row} for row in answer["rows"]]
        valid = [sum(r["valid"] for r in runs if key(r) == k) for k in {key(r) for r in runs}]
        if min(valid) >= VALID:
            break
    medians = []
    for case in dict.fromkeys(key(r) for r in runs):
        good = [r for r in runs if key(r) == case and r["valid"]][:VALID]
        middle = statistics.median(r["ratio"] for r in good) if good else None
        medians.append({**next(r for r in runs if key(r) == case), "run": "median", "ratio": middle})
        print(*case, middle)
    about = {**machine(), "dicenet_level": level, "command": " ".join(sys.argv)}
    for row in medians:
        for name in ("operator_us", "comparator_us", "ratio_of_medians", "page_faults"):
            row[name] = ""
    write_csv(arguments.path, [{**row, **about} for row in [*medians, *runs]])


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["case"], row["operator"], row["comparator"]


if __name__ == "__main__":
    assert dicenet.ops.cpu.available, "the C++ operators were not built"
    main()
