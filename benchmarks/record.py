"""Write what a training run and its evaluation gave as one row of a CSV, with machine, versions, commit and seed.

python benchmarks/record.py RUN_FOLDER EVALUATION_FOLDER CSV
"""

import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

import dicenet
from dicenet.analysis.count import count
from dicenet.engine.machine import machine, write_csv


def read(run: Path, evaluation: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, str]], Any]:
    """Arguments of a run, results of its evaluation, its epochs, and its best network."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    results = json.loads((evaluation / "results.json").read_text())
    with (run / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    return config, results, epochs, dicenet.load(run / "best.safetensors")


def record_pyramid(run: Path, evaluation: Path, out: str, score: str, scores: tuple[str, ...], of_class: str) -> None:
    """Record a run of a network on a feature pyramid: one row in OUT.csv, its epochs in OUT_epochs.csv.

    ``score`` chose the best epoch, ``scores`` are written of the evaluation, and ``of_class`` of each class.
    """
    config, results, epochs, net = read(run, evaluation)
    cost = count(net, (3, *net.input_size))
    seconds = [float(epoch["seconds"]) for epoch in epochs]
    best = max(epochs, key=lambda epoch: float(epoch[f"val_{score}"]))
    row = {
        "backbone": net.architecture,
        **({"head": net.head_type} if hasattr(net, "head_type") else {}),
        "weights": Path(config["weights"]).name if config["weights"] else "random",
        "data": Path(config["data"]).name,
        "epochs": len(epochs),
        "seed": config["seed"],
        "parameters": cost.parameters,
        "macs": cost.macs,
        "input_size": "x".join(map(str, net.input_size)),
        "best_epoch": best["epoch"],
        f"val_{score}": round(float(best[f"val_{score}"]), 4),
        "pictures": results["pictures"],
        **{key: round(results[key], 4) for key in scores},
        **{
            f"{of_class}_{c['class']}": "" if c[of_class] is None else round(c[of_class], 4) for c in results["classes"]
        },
        "training_seconds": round(sum(seconds)),
        "median_epoch_seconds": round(statistics.median(seconds), 1),  # hardly moved by other load in some epochs
        **machine(),
    }
    write_csv(Path(f"{out}.csv"), [row])
    write_csv(Path(f"{out}_epochs.csv"), epochs)
    print(row)


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
