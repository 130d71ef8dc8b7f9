"""CIFAR-10 in a device's memory, and a plain training loop: for comparisons of many networks on a GPU."""

import io
import tarfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

WARMUP = 0.2


def read(folder: Path, limit: int | None = None) -> tuple[Tensor, Tensor]:
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


def _prepared(pictures: Tensor, size: int) -> Tensor:
    pictures = (pictures.float() / 255 - 0.45) / 0.225
    if size != pictures.shape[-1]:
        pictures = F.interpolate(pictures, (size, size), mode="bilinear")
    return pictures.contiguous(memory_format=torch.channels_last)


def _augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Flipped and shifted by up to 4 pixels, each picture by itself."""
    count, device = len(pictures), pictures.device
    flip = torch.rand(count, generator=generator) < 0.5
    pictures = torch.where(flip.to(device)[:, None, None, None], pictures.flip(3), pictures)
    padded = F.pad(pictures.float(), (4, 4, 4, 4), mode="reflect")
    shift = torch.randint(0, 9, (2, count), generator=generator).to(device)
    side = torch.arange(pictures.shape[-1], device=device)
    rows, columns = shift[0][:, None] + side, shift[1][:, None] + side
    index = torch.arange(count, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(
    net: nn.Module,
    pictures: Tensor,
    classes: Tensor,
    *,
    epochs: int,
    seed: int,
    batch: int,
    rate: float,
    size: int = 32,
) -> None:
    """SGD (Nesterov 0.9, weight decay 5e-4 on convolutions), learning rate up to ``rate`` and linearly to zero."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = create_optimizer_v2(net, "sgd", lr=rate, weight_decay=5e-4, momentum=0.9, filter_bias_and_bn=True)
    steps = epochs * (len(pictures) // batch)

    def factor(step: int) -> float:
        done = (step + 1) / steps
        return done / WARMUP if done < WARMUP else max(0.0, (1 - done) / (1 - WARMUP))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(pictures), generator=generator)
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch].to(pictures.device)
            logits = net(_prepared(_augmented(pictures[chosen], generator), size))
            loss = F.cross_entropy(logits, classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def top1(net: nn.Module, pictures: Tensor, classes: Tensor, size: int = 32) -> float:
    """Fraction of pictures whose class has the largest logit."""
    net.eval()
    parts = zip(pictures.split(500), classes.split(500), strict=True)
    return sum((net(_prepared(part, size)).argmax(1) == expected).sum().item() for part, expected in parts) / len(
        classes
    )
