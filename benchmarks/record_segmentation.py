"""Write what a segmentation run and its evaluation gave: one row in a CSV, and the epochs in another.

python benchmarks/record_segmentation.py RUN_FOLDER EVALUATION_FOLDER OUT    # OUT.csv, OUT_epochs.csv
"""

import csv
import json
import statistics
import sys
from pathlib import Path

import yaml

import dicenet
from dicenet.analysis.count import count
from dicenet.analysis.machine import machine, write_csv


def main(run: Path, evaluation: Path, out: str) -> None:
    """Record one run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    results = json.loads((evaluation / "results.json").read_text())
    with (run / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    net = dicenet.load(run / "best.safetensors")
    cost = count(net, (3, *net.input_size))
    seconds = [float(epoch["seconds"]) for epoch in epochs]
    best = max(epochs, key=lambda epoch: float(epoch["val_mean_iou"]))
    row = {
        "backbone": net.architecture,
        "weights": Path(config["weights"]).name if config["weights"] else "random",
        "data": Path(config["data"]).name,
        "epochs": len(epochs),
        "seed": config["seed"],
        "parameters": cost.parameters,
        "macs": cost.macs,
        "input_size": "x".join(map(str, net.input_size)),
        "best_epoch": best["epoch"],
        "val_mean_iou": round(float(best["val_mean_iou"]), 4),
        "pictures": results["pictures"],
        **{key: round(results[key], 4) for key in ("mean_iou", "pixel_accuracy")},
        **{f"iou_{c['class']}": "" if c["iou"] is None else round(c["iou"], 4) for c in results["classes"]},
        "training_seconds": round(sum(seconds)),
        "median_epoch_seconds": round(statistics.median(seconds), 1),  # hardly moved by other load in some epochs
        **machine(),
    }
    write_csv(Path(f"{out}.csv"), [row])
    write_csv(Path(f"{out}_epochs.csv"), epochs)
    print(row)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
