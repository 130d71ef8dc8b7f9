"""Does a converted network train as the original does? mobilenetv2_100 on CIFAR-10, both from scratch, same recipe.

python benchmarks/converted.py ../shared/data/cifar10 runs/converted results/converted.csv [SEED...]

The converted one has DiCE units in place of all separable convolutions, and the channels with which its multiply-adds
come nearest to the original's. Finished runs are not repeated; a run that was stopped goes on from its last epoch.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from rich.console import Console

import dicenet
from dicenet.analysis.count import count
from dicenet.analysis.machine import machine, write_csv
from dicenet.data.classification import open_classification_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import Augmentation, Preprocessing, evaluation_transform, training_transform
from dicenet.engine.fit import fit
from dicenet.tasks.classify.task import ClassifyTask, Optimisation
from dicenet.tasks.classify.train import COLUMNS

NETWORK, SIZE, EPOCHS, BATCH, SEEDS = "mobilenetv2_100", 64, 2, 128, (1882, 1883)


class Task(ClassifyTask):
    """The classification task for networks of others, whose checkpoints need not describe them."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        pass


def network(kind: str, classes: int) -> torch.nn.Module:
    net = timm.create_model(NETWORK, num_classes=classes)
    if kind == "converted":
        net, report = dicenet.replace_separable_convs(net, SIZE, width="match")
        print(report, flush=True)
    return net


def metrics(folder: Path) -> list[dict[str, str]]:
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(kind: str, seed: int, data: str, folder: Path) -> torch.nn.Module:
    L.seed_everything(seed, workers=True, verbose=False)
    dataset = open_classification_data(data)
    net = network(kind, len(dataset.class_names))
    done = len(metrics(folder))
    if done < EPOCHS:
        folder.mkdir(parents=True, exist_ok=True)
        preprocessing = Preprocessing.of({**net.pretrained_cfg, "input_size": (3, SIZE, SIZE), "crop_pct": 1.0})
        settings = LoaderSettings(BATCH, 1, seed + done)
        fit(
            Task(net, dataset.class_names, Optimisation(lr=0.1)),
            dataset.parts["train"].loader(
                training_transform(preprocessing, Augmentation("resized-crop", 0.4, 0.5)), True, settings
            ),
            dataset.parts["test"].loader(evaluation_transform(preprocessing), False, settings),
            folder,
            columns=COLUMNS,
            callbacks=[],
            console=Console(),
            epochs=EPOCHS,
            device="cpu",
        )
    return net


def main(data: str, out: str, path: str, *seeds: str) -> None:
    rows = []
    for seed in map(int, seeds or SEEDS):
        for kind in ("original", "converted"):
            folder = Path(out) / f"{kind}_{seed}"
            net = train(kind, seed, data, folder)
            epochs = metrics(folder)
            cost = count(net, (3, SIZE, SIZE))
            rows.append(
                {
                    "network": NETWORK,
                    "kind": kind,
                    "seed": seed,
                    "input_size": SIZE,
                    "epochs": len(epochs),
                    "macs": cost.macs,
                    "parameters": cost.parameters,
                    **{f"top1_epoch_{n}": round(float(epoch["val_top1"]), 4) for n, epoch in enumerate(epochs, 1)},
                    "training_seconds": round(sum(float(epoch["seconds"]) for epoch in epochs)),
                    **machine(["timm"]),
                }
            )
            print(rows[-1], flush=True)
            write_csv(Path(path), rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
