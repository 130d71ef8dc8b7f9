"""What another input size costs: pictures of CIFAR-10 enlarged, maps scaled as they pass against kernels resized.

python benchmarks/rebase.py runs/cifar10_050/best.safetensors ../shared/data/cifar10 results/rebase_cifar10.csv
"""

import sys
from pathlib import Path

import torch

import dicenet
from dicenet.data.classification import open_classification_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import Preprocessing, evaluation_transform
from dicenet.engine.machine import machine, write_csv

SIZES = (32, 36, 40, 48)


def top1(net: torch.nn.Module, data: str, size: int) -> float:
    """Top-1 on the test part, pictures resized to ``size``."""
    net.set_input_size(size)
    transform = evaluation_transform(Preprocessing.of(net.pretrained_cfg))
    _, part = open_classification_data(data).evaluation_part("test")
    right = total = 0
    with torch.inference_mode():
        for batch in part.loader(transform, False, LoaderSettings(200, 1)):
            right += (net(batch["image"]).argmax(1) == batch["target"]).sum().item()
            total += len(batch["target"])
    return right / total


def main(weights: str, data: str, path: str) -> None:
    """Measure all sizes both ways."""
    rows = []
    for size in SIZES:
        scaled = dicenet.load(weights).eval()
        rebased = dicenet.load(weights).eval()
        rebased.rebase(size)
        rows.append(
            {
                "input_size": size,
                "top1_scaled": top1(scaled, data, size),
                "top1_rebased": top1(rebased, data, size),
                **machine(),
            }
        )
        print(rows[-1], flush=True)
    write_csv(Path(path), rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
