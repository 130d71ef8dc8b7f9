"""What every classification reader gives: pictures with class indices, split into parts, and how to batch them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from dicenet.data.transforms import Transform
from dicenet.errors import ConfigError, DataError


class Sample(NamedTuple):
    """A picture of a known class. ``read`` decodes it and raises DataError if it cannot."""

    name: str
    read: Callable[[], Image.Image]
    target: int


class Part(Protocol):
    """One part of a data set (train, val, test), whatever its layout."""

    class_names: Sequence[str]

    def __len__(self) -> int:
        """Number of pictures."""

    def sizes(self, count: int) -> list[tuple[int, int]]:
        """(width, height) of up to ``count`` of its pictures."""

    def loader(self, transform: Transform, train: bool, settings: "LoaderSettings") -> "DataLoader[Any]":
        """Batches of it: see :func:`collate`."""


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made: pictures per batch, worker processes, seed of the order."""

    batch_size: int
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise ConfigError(
                f"batch_size must be at least 1 and workers at least 0, got {self.batch_size} and {self.workers}"
            )


class SampleList(Dataset[dict[str, Any]]):
    """A part of a data set that can be indexed: a sequence of samples."""

    def __init__(self, samples: Sequence[Sample], class_names: Sequence[str], transform: Transform | None = None):
        self.samples = samples
        self.class_names = class_names
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return prepared(self.samples[index], self.transform)

    def sizes(self, count: int) -> list[tuple[int, int]]:
        """(width, height) of up to ``count`` pictures, evenly spread; those that cannot be read are passed over."""
        return readable_sizes([self.samples[i] for i in evenly_spread(len(self.samples), count)])

    def loader(self, transform: Transform, train: bool, settings: LoaderSettings) -> "DataLoader[Any]":
        """Batches, shuffled and without a smaller last one for training."""
        generator = torch.Generator().manual_seed(settings.seed)
        return DataLoader(
            SampleList(self.samples, self.class_names, transform),
            batch_size=settings.batch_size,
            shuffle=train,
            # a smaller last batch would unsettle the norms; a set smaller than one batch has nothing else
            drop_last=train and len(self.samples) > settings.batch_size,
            num_workers=settings.workers,
            worker_init_fn=quiet_worker,
            persistent_workers=settings.workers > 0,
            collate_fn=collate,
            generator=generator,
        )


def quiet_worker(number: int) -> None:
    """Start of a reading process: it says nothing of a main process that no longer listens, as after Ctrl-C."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError):
            usual(kind, error, trace)

    sys.excepthook = hook


def evenly_spread(total: int, count: int) -> list[int]:
    """Up to ``count`` indices below ``total``, evenly spread."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total)).round()})


def readable_sizes(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """(width, height) of the pictures that can be read."""
    sizes = []
    for sample in samples:
        try:
            sizes.append(sample.read().size)
        except DataError:
            continue  # named and counted where pictures are used, here only their size is asked
    return sizes


def prepared(sample: Sample, transform: Transform | None) -> dict[str, Any]:
    """A sample as the loader's worker sends it: the tensor, or the reason why there is none."""
    try:
        picture = sample.read()
    except DataError as error:
        return {"name": sample.name, "error": str(error)}
    image = transform(picture) if transform else picture
    return {"name": sample.name, "image": image, "target": sample.target}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: image (N, C, H, W), target (N,), name, and ``errors`` (name to reason) of what could not be read.

    A batch without any readable picture has no ``image``.
    """
    good = [item for item in items if "image" in item]
    batch: dict[str, Any] = {"errors": {item["name"]: item["error"] for item in items if "error" in item}}
    if good:
        batch |= default_collate([{"image": item["image"], "target": item["target"]} for item in good])
        batch["name"] = [item["name"] for item in good]
    return batch
