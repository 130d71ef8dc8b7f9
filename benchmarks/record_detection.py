"""Write what a detection run and its evaluation gave: one row in a CSV, and the epochs in another.

python benchmarks/record_detection.py RUN_FOLDER EVALUATION_FOLDER OUT    # OUT.csv, OUT_epochs.csv
"""

import statistics
import sys
from pathlib import Path

from record import read

from dicenet.analysis.count import count
from dicenet.analysis.machine import machine, write_csv

SCORES = ("map50", "map", "map75", "map50_voc07", "map50_voc10", "mar_100")


def main(run: Path, evaluation: Path, out: str) -> None:
    """Record one run."""
    config, results, epochs, net = read(run, evaluation)
    cost = count(net, (3, *net.input_size))
    seconds = [float(epoch["seconds"]) for epoch in epochs]
    best = max(epochs, key=lambda epoch: float(epoch["val_map50"]))
    row = {
        "backbone": net.architecture,
        "head": net.head_type,
        "weights": Path(config["weights"]).name if config["weights"] else "random",
        "data": Path(config["data"]).name,
        "epochs": len(epochs),
        "seed": config["seed"],
        "parameters": cost.parameters,
        "macs": cost.macs,
        "input_size": "x".join(map(str, net.input_size)),
        "best_epoch": best["epoch"],
        "val_map50": round(float(best["val_map50"]), 4),
        "pictures": results["pictures"],
        **{key: round(results[key], 4) for key in SCORES},
        **{f"map50_{c['class']}": "" if c["map50"] is None else round(c["map50"], 4) for c in results["classes"]},
        "training_seconds": round(sum(seconds)),
        "median_epoch_seconds": round(statistics.median(seconds), 1),  # hardly moved by other load in some epochs
        **machine(),
    }
    write_csv(Path(f"{out}.csv"), [row])
    write_csv(Path(f"{out}_epochs.csv"), epochs)
    print(row)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
