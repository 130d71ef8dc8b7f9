"""Table 2 on CIFAR-10: every unit in ResNet and ShuffleNetV2 at the table's widths, trained from scratch, same recipe.

python benchmarks/units.py DATA results/units_cifar10.csv [--epochs 5] [--seed 1882] [--seconds 520] [--limit N]

For a GPU: all pictures lie in its memory. 32x32 pixels, the small stem, flips and shifts of up to 4 pixels, batches of
256, SGD (Nesterov 0.9, weight decay 5e-4 on convolutions), learning rate to 0.2 and linearly to zero. A network that is
in the CSV already is not trained again; none is begun after --seconds.
"""

import argparse
import csv
import io
import tarfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from dicenet.analysis.count import count
from dicenet.analysis.machine import machine, write_csv
from dicenet.analysis.paper.entries import TABLES, Source
from dicenet.models.resnet import ResNet, ResNetRow
from dicenet.models.shufflenetv2 import ShuffleNetV2, ShuffleNetV2Row

BATCH, RATE, WARMUP = 256, 0.2, 0.2


def read(folder: Path, limit: int | None) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, 32, 32) as bytes and classes of all shards in a folder."""
    pictures, classes = [], []
    for shard in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(shard) as file:
            for member in file:
                content = file.extractfile(member)
                if content is None or (limit is not None and len(pictures) > limit):
                    continue
                if member.name.endswith(".cls"):
                    classes.append(int(content.read()))
                else:
                    pictures.append(pil_to_tensor(Image.open(io.BytesIO(content.read())).convert("RGB")))
    return torch.stack(pictures[: len(classes)]), torch.tensor(classes[: len(pictures)])


def normalised(pictures: Tensor) -> Tensor:
    return (pictures.float() / 255 - 0.45) / 0.225


def augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Flipped and shifted by up to 4 pixels, each picture by itself."""
    count = len(pictures)
    flip = torch.rand(count, generator=generator) < 0.5
    pictures = torch.where(flip.to(pictures.device)[:, None, None, None], pictures.flip(3), pictures)
    padded = F.pad(pictures, (4, 4, 4, 4), mode="reflect")
    shift = torch.randint(0, 9, (2, count), generator=generator).to(pictures.device)
    side = torch.arange(32, device=pictures.device)
    rows, columns = shift[0][:, None] + side, shift[1][:, None] + side
    index = torch.arange(count, device=pictures.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def build(source: Source) -> nn.Module:
    arguments = {**source.arguments, "num_classes": 10, "img_size": 32, "stem": "small"}
    if source.name == "ResNet":
        return ResNet(ResNetRow("resnet", "dice", 4, 0), **arguments)
    return ShuffleNetV2(ShuffleNetV2Row("shufflenetv2", "figure4", "dice", 2, 0), **arguments)


def train(net: nn.Module, pictures: Tensor, classes: Tensor, epochs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = create_optimizer_v2(net, "sgd", lr=RATE, weight_decay=5e-4, momentum=0.9, filter_bias_and_bn=True)
    steps = epochs * (len(pictures) // BATCH)

    def rate(step: int) -> float:
        done = (step + 1) / steps
        return done / WARMUP if done < WARMUP else max(0.0, (1 - done) / (1 - WARMUP))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(pictures), generator=generator)
        for first in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[first : first + BATCH].to(pictures.device)
            batch = augmented(normalised(pictures[chosen]), generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(batch), classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def top1(net: nn.Module, pictures: Tensor, classes: Tensor) -> float:
    net.eval()
    right = sum(
        (net(normalised(part)).argmax(1) == expected).sum().item()
        for part, expected in zip(pictures.split(500), classes.split(500), strict=True)
    )
    return right / len(classes)


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
        train(net, *train_part, options.epochs, options.seed)
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
