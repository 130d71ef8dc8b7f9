"""Table 2 on CIFAR-10: every unit in ResNet and ShuffleNetV2 at the table's widths, trained from scratch, same recipe.

python benchmarks/units.py DATA results/units_cifar10.csv [--epochs 5] [--seed 1882] [--seconds 520] [--limit N]

For a GPU: all pictures lie in its memory. 32x32 pixels, the small stem, flips and shifts of up to 4 pixels, batches of
256, SGD (Nesterov 0.9, weight decay 5e-4 on convolutions), learning rate to 0.2 and linearly to zero. A network that is
in the CSV already is not trained again; none is begun after --seconds.
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from small_pictures import read, top1, train
from torch import nn

from dicenet.analysis.count import count
from dicenet.analysis.paper.entries import TABLES, Source
from dicenet.engine.machine import machine, write_csv
from dicenet.models.resnet import ResNet, ResNetRow
from dicenet.models.shufflenetv2 import ShuffleNetV2, ShuffleNetV2Row

BATCH, RATE = 256, 0.2


def build(source: Source) -> nn.Module:
    arguments = {**source.arguments, "num_classes": 10, "img_size": 32, "stem": "small"}
    if source.name == "ResNet":
        return ResNet(ResNetRow("resnet", "dice", 4, 0), **arguments)
    return ShuffleNetV2(ShuffleNetV2Row("shufflenetv2", "figure4", "dice", 2, 0), **arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1882)
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_part, test_part = ([t.to(device) for t in read(options.data / p, options.limit)] for p in ("train", "test"))
    print(f"{len(train_part[0])} and {len(test_part[0])} pictures, {time.monotonic() - started:.0f} s", flush=True)
    rows = list(csv.DictReader(options.csv.open(newline=""))) if options.csv.exists() else []
    for entry in TABLES[2].entries:
        known = [row for row in rows if (row["architecture"], row["unit"]) == entry.labels]
        if known or time.monotonic() - started > options.seconds:
            continue
        torch.manual_seed(options.seed)
        net = build(entry.source)
        cost = count(net, (3, 32, 32))
        net = net.to(device, memory_format=torch.channels_last)
        begun = time.monotonic()
        train(net, *train_part, epochs=options.epochs, seed=options.seed, batch=BATCH, rate=RATE)
        rows.append(
            {
                "architecture": entry.labels[0],
                "unit": entry.labels[1],
                "channels": entry.source.arguments["channels"],
                "epochs": options.epochs,
                "seed": options.seed,
                "macs": cost.macs,
                "parameters": cost.parameters,
                "top1": round(top1(net, *test_part), 4),
                "seconds": round(time.monotonic() - begun, 1),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                **machine(),
            }
        )
        print(rows[-1], flush=True)
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
