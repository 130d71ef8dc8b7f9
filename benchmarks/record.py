"""Write what a training run and its evaluation gave as one row of a CSV, with machine, versions, commit and seed.

python benchmarks/record.py RUN_FOLDER EVALUATION_FOLDER CSV
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import yaml

import dicenet
from dicenet.analysis.machine import machine, write_csv


def read(run: Path, evaluation: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, str]], Any]:
    """Arguments of a run, results of its evaluation, its epochs, and its best network."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    results = json.loads((evaluation / "results.json").read_text())
    with (run / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    return config, results, epochs, dicenet.load(run / "best.safetensors")


def main(run: Path, evaluation: Path, path: Path) -> None:
    """Record one run."""
    config, results, epochs, net = read(run, evaluation)
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
    write_csv(path, [row])
    print(row)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
