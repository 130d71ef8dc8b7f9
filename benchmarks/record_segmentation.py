"""Write what a segmentation run and its evaluation gave: one row in a CSV, and the epochs in another.

python benchmarks/record_segmentation.py RUN_FOLDER EVALUATION_FOLDER OUT    # OUT.csv, OUT_epochs.csv
"""

import statistics
import sys
from pathlib import Path

from record import read

from dicenet.analysis.count import count
from dicenet.analysis.machine import machine, write_csv


def main(run: Path, evaluation: Path, out: str) -> None:
    """Record one run."""
    config, results, epochs, net = read(run, evaluation)
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
