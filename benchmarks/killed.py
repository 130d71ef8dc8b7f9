"""Kill a training again and again: does it end with the same weights, bit by bit, as one that was left alone?

python benchmarks/killed.py DATA OUT.csv --folder runs/killed    # DATA: CIFAR-10; a row for each case is added

A run on 2,000 pictures is killed (SIGKILL, all its processes) at random moments, also while it starts, and resumed
each time. Then its last checkpoint, best weights and table of epochs are compared with those of an undisturbed run.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dicenet.data.classification import open_classification_data
from dicenet.engine.machine import machine, write_csv
from dicenet.engine.pace import TIMINGS

ARGUMENTS = {
    "model": "dicenet_010",
    "epochs": 24,
    "batch_size": 50,
    "ema": 0.99,
    "drop_rate": 0.1,
    "label_smoothing": 0.1,
    "accumulate": 2,
    "save_every": 3,
    "device": "cpu",
}


def picture_folder(data: str, folder: Path, count: int) -> None:
    """The first pictures of CIFAR-10 as class folders of PNGs; half as many to judge by."""
    dataset = open_classification_data(data)
    for part, pictures in (("train", count), ("test", count // 2)):
        shards: Any = dataset.parts[part]
        samples = shards.samples(shards.files) if hasattr(shards, "files") else iter(shards.samples)
        for number, sample in enumerate(islice(samples, pictures)):
            place = folder / part / dataset.class_names[sample.target]
            place.mkdir(parents=True, exist_ok=True)
            sample.read().save(place / f"{number}.png")


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A training in a process group of its own."""
    with log.open("ab") as file:
        command = [sys.executable, "-m", "dicenet_cli", "train", "classify", *arguments]
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def as_options(arguments: dict[str, Any]) -> list[str]:
    """As they are given on the command line."""
    return [part for key, value in arguments.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def killed_run(first: list[str], out: Path, kills: int, longest: float, seed: int) -> int:
    """A run that is killed and resumed; how many checkpoints within epochs it was resumed from."""
    chance, log, within = random.Random(seed), out.with_suffix(".log"), 0
    for number in range(kills + 1):
        resumable = (out / "config.yaml").exists()
        if not resumable:  # killed before it had begun
            shutil.rmtree(out, ignore_errors=True)
        process = start(["--resume", str(out)] if resumable else first, log)
        try:
            process.wait(None if number == kills else chance.uniform(0.2, 1) * longest)
            if process.returncode:
                raise SystemExit(f"the run failed: see {log}")
            if number < kills:
                raise SystemExit(f"the run ended before kill {number + 1}: give more --epochs")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed {number + 1} of {kills}", flush=True)
    within = log.read_text().count(" batches\n")
    return within


def differences(left: Any, right: Any, name: str = "") -> list[str]:
    """Where two nested values are not the same."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = left.keys() | right.keys()
        return [d for key in keys for d in differences(left.get(key), right.get(key), f"{name}.{key}")]
    if isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        return [d for i, (a, b) in enumerate(zip(left, right, strict=True)) for d in differences(a, b, f"{name}.{i}")]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        same = left.shape == right.shape and torch.equal(left, right)
    else:
        same = left == right
    return [] if same else [name]


def compared(alone: Path, killed: Path) -> dict[str, Any]:
    """How far two runs are the same."""
    checkpoints = [torch.load(run / "last.ckpt", weights_only=True) for run in (alone, killed)]
    parts = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    other = [d for part in parts for d in differences(*(c.get(part) for c in checkpoints), part)]
    tables = []
    for run in (alone, killed):
        with (run / "metrics.csv").open(newline="") as file:
            tables.append([{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)])
    best = [(run / "best.safetensors").read_bytes() for run in (alone, killed)]
    print("different:", other[:5] or "nothing")
    return {
        "tensors": sum(isinstance(v, torch.Tensor) for v in checkpoints[0]["state_dict"].values()),
        "weights_and_optimiser_equal": not other,
        "best_weights_equal": best[0] == best[1],
        "tables_of_epochs_equal": tables[0] == tables[1],
    }


def recorded(path: Path) -> list[dict[str, Any]]:
    """Rows of the table so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Run both, for each number of workers and processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/killed"))
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=22, help="seconds from a start to its kill, at most")
    parser.add_argument("--epochs", type=int, default=ARGUMENTS["epochs"])
    parser.add_argument("--cases", nargs="+", default=["0:1", "2:1", "0:2"], help="workers:processes")
    parser.add_argument("--seed", type=int, default=1882)
    options = parser.parse_args()
    pictures = options.folder / f"pictures_{options.pictures}"
    if not pictures.exists():
        picture_folder(options.data, pictures, options.pictures)
    rows = recorded(options.out)
    for case in options.cases:
        workers, processes = map(int, case.split(":"))
        arguments = ARGUMENTS | {"data": pictures, "workers": workers, "devices": processes, "epochs": options.epochs}
        if processes > 1:
            arguments |= {"strategy": "ddp", "batch_size": ARGUMENTS["batch_size"] // processes}
        case_name = f"{workers}_{processes}_{options.pictures}_{options.epochs}"
        alone, killed = (options.folder / f"{name}_{case_name}" for name in ("alone", "killed"))
        shutil.rmtree(killed, ignore_errors=True)
        killed.with_suffix(".log").unlink(missing_ok=True)
        if not (alone / "curves.png").exists():
            shutil.rmtree(alone, ignore_errors=True)
            if start([*as_options(arguments), "--out", str(alone)], alone.with_suffix(".log")).wait():
                raise SystemExit(f"the undisturbed run failed: see {alone.with_suffix('.log')}")
        began = time.monotonic()
        first = [*as_options(arguments), "--out", str(killed)]
        within = killed_run(first, killed, options.kills, options.longest, options.seed)
        rows.append(
            {
                "pictures": options.pictures,
                "epochs": options.epochs,
                "workers": workers,
                "processes": processes,
                "kills": options.kills,
                "resumed_within_an_epoch": within,
                **compared(alone, killed),
                "seconds": round(time.monotonic() - began),
                "seed": options.seed,
                **machine(),
            }
        )
        print(rows[-1], flush=True)
        write_csv(options.out, rows)


if __name__ == "__main__":
    main()
