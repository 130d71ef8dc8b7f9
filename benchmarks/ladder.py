"""The paper's Figure 7 in small: five recipes of CIFAR-10, each with one part more, two seeds, recorded run by run.

python benchmarks/ladder.py [--data FOLDER] [--train-shards 2] [--seeds 1882 1883] [OPTION=VALUE...]

About 80 minutes on 2 cores without other load: 10,000 pictures to train on (the first two of ten shards), 5 and 10
epochs. The 10,000 pictures that judge the best weights have also chosen their epoch, which flatters all rungs alike;
last_top1 is that of the last epoch. Started again it goes on where it was: a run that is in the table is not repeated,
one that was stopped is resumed. OPTION=VALUE (such as epochs=1) is for trials: give another --out and --runs.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from dicenet.analysis.paper.figure7 import MEASURED, RUNGS
from dicenet.engine.machine import machine, write_csv

REPOSITORY = Path(__file__).parents[1]
TRAINED_ON, JUDGED_BY = "train", "test"


def subset(data: Path, shards: int, folder: Path) -> Path:
    """A folder with the first shards to train on, and all to judge by; links to those of ``data``."""
    if not folder.exists():
        made = folder.with_name(f"{folder.name}.making")
        shutil.rmtree(made, ignore_errors=True)
        for part, count in ((TRAINED_ON, shards), (JUDGED_BY, None)):
            (made / part).mkdir(parents=True)
            for file in sorted((data / part).glob("*.tar*"))[:count]:
                (made / part / file.name).symlink_to(file.resolve())
        shutil.copy(data / "classes.txt", made)
        made.rename(folder)
    return folder


def dicenet(*arguments: Any) -> None:
    """Run a command of dicenet in a process of its own."""
    subprocess.run([sys.executable, "-m", "dicenet_cli", *map(str, arguments)], check=True)


def recorded(path: Path) -> list[dict[str, Any]]:
    """Rows of the table so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trained(rung: str, seed: int, data: Path, run: Path, options: list[str]) -> None:
    """Train a rung, or go on with it."""
    if (run / "config.yaml").exists():
        dicenet("train", "classify", "--resume", run)
        return
    more = [f"--{option}" for option in options]
    dicenet("train", "classify", "--config", f"cifar10/{rung}", "--data", data, "--seed", seed, "--out", run, *more)


def row_of(rung: str, seed: int, run: Path, judged: Path) -> dict[str, Any]:
    """What a run gave."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    results = json.loads((judged / "results.json").read_text())
    with (run / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    best = max(epochs, key=lambda epoch: float(epoch["val_top1"]))
    return {
        "rung": rung,
        "seed": seed,
        "top1": round(results["top1"], 4),
        "top5": round(results["top5"], 4),
        "loss": round(results["loss"], 4),
        "best_epoch": best["epoch"],
        "last_top1": round(float(epochs[-1]["val_top1"]), 4),
        "model": config["model"],
        "data": Path(config["data"]).name,
        **{key: config[key] for key in ("epochs", "batch_size", "accumulate", "lr", "label_smoothing", "ema")},
        "pictures": results["pictures"],
        "training_seconds": round(sum(float(epoch["seconds"]) for epoch in epochs)),
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared/data/cifar10")
    parser.add_argument("--train-shards", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1882, 1883])
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs/ladder")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / MEASURED)
    parser.add_argument("options", nargs="*", help="options of the training, such as epochs=1")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    pictures = f"cifar10_{arguments.train_shards}_shards"
    data = subset(arguments.data, arguments.train_shards, arguments.runs / pictures)
    rows = recorded(arguments.out)
    for seed in arguments.seeds:
        for rung in RUNGS:
            if any(row["rung"] == rung and row["seed"] == str(seed) for row in rows):
                continue
            run = arguments.runs / f"{rung}_{seed}"
            judged = run.with_name(f"{run.name}.test")
            trained(rung, seed, data, run, arguments.options)
            shutil.rmtree(judged, ignore_errors=True)
            best = run / "best.safetensors"
            dicenet("evaluate", "classify", "--weights", best, "--data", data, "--split", JUDGED_BY, "--out", judged)
            rows = [*recorded(arguments.out), row_of(rung, seed, run, judged)]
            write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
