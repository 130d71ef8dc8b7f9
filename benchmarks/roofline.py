"""Where an optimized network's time goes, and how far each kind of step is from what this machine allows.

    taskset -c 0 python benchmarks/roofline.py results/roofline.csv --model dicenet_240

One thread, one picture. The machine is measured first (peak.cpp): bytes copied per second by the size of what is
copied, and multiply-adds per second in registers. The floor of a step is the longer of two
times: that of its multiply-adds at that rate, and that of its bytes (maps read, maps written, weights, each once)
at the rate of copies of their size. Steps are timed by running each one 20 times in a row, so with warm caches; the
whole network beside their sum shows what cold ones cost.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

import dicenet
from dicenet.analysis.speed.process import keep_freed_memory
from dicenet.engine.machine import machine, write_csv
from dicenet.optimize.network import PlannedPart
from dicenet.optimize.steps import FIELDS, Kind, Plan

REPEATS = 20
ROUNDS = 15


def best(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Shortest time of a call, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def peak() -> tuple[float, dict[int, float]]:
    """Floating-point operations per second (two for a multiply-add), and bytes copied per second by their number."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        source = Path(__file__).with_name("peak.cpp")
        compiler = os.environ.get("CXX", "g++")
        flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-ffp-contract=fast"]
        subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
        answer = json.loads(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
    return answer["flops"], {int(size): rate for size, rate in answer["copy"].items()}


def work(s: dict[str, int]) -> tuple[float, float]:
    """Floating-point operations and bytes of a step; channels without padding where they are known."""
    kind, pixels, out_pixels = s["kind"], s["height"] * s["width"], s["out_height"] * s["out_width"]
    channels, count = s["channels"], s["count"]
    match kind:
        case Kind.GEMM:
            return 2 * pixels * channels * count, 4 * (pixels * channels + channels * count + pixels * count)
        case Kind.STEM | Kind.STEM_POOL:
            side = [(s[name] + 2 * s["padding"] - s["kernel"]) // s["stride"] + 1 for name in ("height", "width")]
            taps = s["kernel"] ** 2 * channels * s["out_channels"]
            return 2 * taps * side[0] * side[1], 4 * (pixels * channels + out_pixels * s["out_channels"] + taps)
        case Kind.DEPTH_WISE:
            shuffled = 2 if s["second"] >= 0 else 0
            return 18 * out_pixels * channels, 4 * channels * (pixels + out_pixels * (1 + shuffled) + 9)
        case Kind.LOCAL:
            return 2 * 30 * pixels * channels, 4 * channels * (2 * pixels + 22)
        case Kind.MAX_POOL | Kind.AVERAGE_POOL:
            return 9 * out_pixels * channels, 4 * channels * (pixels + out_pixels)
        case Kind.INTERLEAVE:
            return 0, 4 * channels * pixels * 4
        case Kind.COPY:
            return 0, 4 * channels * pixels * 2
        case Kind.MEAN:
            return pixels * channels, 4 * channels * (pixels + 1)
        case _:
            return 0, 8 * channels * max(pixels, 1)


def plan_of(name: str, picture: torch.Tensor) -> Plan:
    """The plan of a whole network."""
    fast = dicenet.optimize_for_inference(timm.create_model(name))
    fast(picture)
    parts = [module for module in fast.modules() if isinstance(module, PlannedPart)]
    assert len(parts) == 1, "the network is not one plan"
    return parts[0].plans[0]


def run(plan: Plan, program: torch.Tensor, picture: torch.Tensor) -> Any:
    """Some steps of a plan, whatever they give."""
    return torch.ops.dicenet.run_plan(
        [picture], program, plan.weights, plan.out_shapes, plan.arena, 1, len(program), plan.macs
    )


def step_time(plan: Plan, number: int, picture: torch.Tensor) -> float:
    """Seconds of one step, without those of the call."""
    one = plan.program[number : number + 1].contiguous()
    many = one.repeat(REPEATS + 1, 1)
    return max(best(lambda: run(plan, many, picture)) - best(lambda: run(plan, one, picture)), 0.0) / REPEATS


def measure(name: str, picture: torch.Tensor) -> list[dict[str, Any]]:
    """One row per kind of step, the most expensive first, the whole network last."""
    rate, bandwidth = peak()
    for size, bytes_per_second in bandwidth.items():
        print(f"copy of {size >> 10:6d} KB: {bytes_per_second / 1e9:6.1f} GB/s")
    print(f"multiply-adds: {rate / 1e9:.1f} GFLOP/s\n")
    plan = plan_of(name, picture)
    total: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for number, values in enumerate(plan.program.tolist()):
        step = dict(zip(("kind", *FIELDS), values, strict=False))
        flops, moved = work(step)
        size = next((size for size in bandwidth if size >= moved), max(bandwidth))
        row = total[Kind(step["kind"]).name]
        row["steps"] += 1
        row["mflop"] += flops / 1e6
        row["kb"] += moved / 1e3
        row["floor_us"] += 1e6 * max(flops / rate, moved / bandwidth[size])
        row["us"] += 1e6 * step_time(plan, number, picture)
    rows = [{"kind": kind, **row} for kind, row in sorted(total.items(), key=lambda item: -item[1]["us"])]
    names = ("steps", "mflop", "kb", "floor_us", "us")
    rows.append({"kind": "all steps", **{name: sum(row[name] for row in rows) for name in names}})
    whole = 1e6 * best(lambda: run(plan, plan.program, picture), 200)
    rows.append({**rows[-1], "kind": "the network, in one call", "us": whole})
    about = {"gflops": round(rate / 1e9, 1), **{f"gbs_{s >> 10}k": round(b / 1e9, 1) for s, b in bandwidth.items()}}
    return [{"model": name, **{k: round_(v) for k, v in row.items()}, "ratio": ratio(row), **about} for row in rows]


def round_(value: Any) -> Any:
    return round(value, 1) if isinstance(value, float) else value


def ratio(row: dict[str, Any]) -> float:
    return round(row["us"] / row["floor_us"], 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="CSV to write")
    parser.add_argument("--model", default="dicenet_240", help="one of our networks")
    parser.add_argument("--img-size", type=int, default=224)
    arguments = parser.parse_args()
    assert dicenet.ops.cpu.available, "the C++ operators were not built"
    torch.set_num_threads(1)
    keep_freed_memory()
    with torch.inference_mode():
        rows = measure(arguments.model, torch.randn(1, 3, arguments.img_size, arguments.img_size))
    print("| step | number | MFLOP | KB | floor, us | time, us | time / floor |\n|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = [str(row[name]) for name in ("kind", "steps", "mflop", "kb", "floor_us", "us", "ratio")]
        print(f"| {' | '.join(numbers)} |")
    about = {**machine(), "level": torch.ops.dicenet.cpu_level(), "command": " ".join(sys.argv)}
    write_csv(arguments.path, [{**row, **about} for row in rows])


if __name__ == "__main__":
    main()
