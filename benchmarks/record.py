"""Write what a training run and its evaluation gave as one row of a CSV, with machine, versions, commit and seed.

python benchmarks/record.py RUN_FOLDER EVALUATION_FOLDER CSV
"""

import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
import yaml

import dicenet


def processor() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def machine() -> dict[str, object]:
    """Where and with what a figure was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dicenet": dicenet.__version__,
        "commit": commit.stdout.strip(),
    }


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(run: Path, evaluation: Path, path: Path) -> None:
    """Record one run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    results = json.loads((evaluation / "results.json").read_text())
    with (run / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    net = dicenet.load(run / "best.safetensors")
    row = {
        "model": config["model"],
        "data": Path(config["data"]).name,
        "epochs": len(epochs),
        "seed": config["seed"],
        "parameters": sum(p.numel() for p in net.parameters()),
        "input_size": "x".join(map(str, net.input_size)),
        "pictures": results["pictures"],
        "top1": round(results["top1"], 4),
        "top5": round(results["top5"], 4),
        "loss": round(results["loss"], 4),
        "training_seconds": round(sum(float(epoch["seconds"]) for epoch in epochs)),
        **machine(),
    }
    write(path, [row])
    print(row)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
