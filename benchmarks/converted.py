"""Does a converted network train as the original does? mobilenetv2_100 on CIFAR-10, both from scratch, same recipe.

python benchmarks/converted.py DATA results/converted.csv [--rate 0.02] [--seeds 1882,1883] [--seconds 520]

For a GPU: all pictures lie in its memory. 64x64 pixels (enlarged), two epochs, batches of 128, flips and shifts, SGD
(Nesterov 0.9, weight decay 5e-4 on convolutions), the classifier begins near zero. The converted network has DiCE units
in place of all separable convolutions, and the width at which its multiply-adds come nearest to the original's. A run
that is in the CSV already is not repeated; none is begun after --seconds.
"""

import argparse
import csv
import time
from pathlib import Path

import timm
import torch
from small_pictures import read, top1, train
from torch import nn

import dicenet
from dicenet.analysis.count import count
from dicenet.engine.machine import machine, write_csv

NETWORK, SIZE, EPOCHS, BATCH = "mobilenetv2_100", 64, 2, 128


def network(kind: str) -> nn.Module:
    net = timm.create_model(NETWORK, num_classes=10)
    if kind == "converted":
        net, _ = dicenet.replace_separable_convs(net, SIZE, width="match")
    nn.init.normal_(net.classifier.weight, std=0.01)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--seeds", default="1882,1883")
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_part, test_part = ([t.to(device) for t in read(options.data / p, options.limit)] for p in ("train", "test"))
    rows = list(csv.DictReader(options.csv.open(newline=""))) if options.csv.exists() else []
    for seed, kind in ((int(seed), kind) for seed in options.seeds.split(",") for kind in ("original", "converted")):
        known = [
            row for row in rows if (row["kind"], int(row["seed"]), float(row["rate"])) == (kind, seed, options.rate)
        ]
        if known or time.monotonic() - started > options.seconds:
            continue
        torch.manual_seed(seed)
        net = network(kind)
        cost = count(net, (3, SIZE, SIZE))
        net = net.to(device, memory_format=torch.channels_last)
        begun = time.monotonic()
        train(net, *train_part, epochs=EPOCHS, seed=seed, batch=BATCH, rate=options.rate, size=SIZE)
        rows.append(
            {
                "network": NETWORK,
                "kind": kind,
                "seed": seed,
                "rate": options.rate,
                "input_size": SIZE,
                "epochs": EPOCHS,
                "macs": cost.macs,
                "parameters": cost.parameters,
                "top1": round(top1(net, *test_part, SIZE), 4),
                "seconds": round(time.monotonic() - begun, 1),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                **machine(["timm"]),
            }
        )
        print(rows[-1], flush=True)
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
