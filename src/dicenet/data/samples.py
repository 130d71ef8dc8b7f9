"""What readers give: pictures with class indices, split into parts, and how to batch and share out pictures.

The sampler and the batches at the end serve classes, masks and boxes alike.
"""

import atexit
import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from dicenet.data.seeding import derived_seed, seed_chance
from dicenet.data.transforms import Transform
from dicenet.errors import ConfigError, DataError


class Sample(NamedTuple):
    """A picture and what it shows. ``read`` decodes it and raises DataError if it cannot.

    ``target`` is the number of its class, or an array of several: see :mod:`dicenet.data.labels`.
    """

    name: str
    read: Callable[[], Image.Image]
    target: Any


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
        """Batches: for training shuffled and without a smaller last one; else in order, each picture once."""
        return batches(SampleList(self.samples, self.class_names, transform), train, settings, collate)


def quiet_worker(number: int) -> None:
    """Start of a reading process.

    It says nothing of a main process that no longer listens, as after Ctrl-C. It goes on at the first SIGTERM: one that
    is sent to all processes of a job is for the main one, which needs its readers until it has stopped.
    """
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError):
            usual(kind, error, trace)

    sys.excepthook = hook
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@atexit.register  # behind multiprocessing's own: so it is called before
def _end_readers() -> None:
    """End reading processes that are left, as after an error: SIGTERM, which multiprocessing sends, they pass over."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


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
    """A batch of pictures with classes: see :func:`joined`; target (N,), or (N, 4, C) of several classes a picture."""
    return joined(items, default_collate)


def process_share() -> tuple[int, int]:
    """Number of this process among those that compute together, and how many they are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def check_shares(pictures: int, processes: int) -> None:
    """Raise DataError if a process would have none to judge by: Lightning cannot wait for one with nothing to do."""
    if pictures < processes:
        raise DataError(f"too few pictures to judge by ({pictures}) for {processes} processes: give fewer --devices")


class EachOnce(Sampler[int]):
    """Gives each process its share of the pictures, none twice: padding would count some pictures double.

    The processes are asked for when it is used, they need not exist before.
    """

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def _indices(self) -> range:
        rank, processes = process_share()
        pictures = len(self.data)  # type: ignore[arg-type]
        check_shares(pictures, processes)
        return range(rank, pictures, processes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices())

    def __len__(self) -> int:
        return len(self._indices())


class Draw(NamedTuple):
    """A picture in an epoch: what its augmentation depends on."""

    epoch: int
    picture: int


class ShuffledBatches(Sampler[list[Draw]]):
    """The batches of an epoch, whole and equally many for each process; what is left over has its turn in others.

    Together the processes see in each step what one process with batches as large as all of theirs would see. The
    order depends on the seed and the epoch alone. It can begin behind some of the batches.

    Args:
        pictures: in all processes; fewer than a batch make one smaller batch.
        batch_size: of a process.
        seed: of the order.
    """

    def __init__(self, pictures: int, batch_size: int, seed: int) -> None:
        self.pictures = pictures
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.done = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0."""
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        return max(1, self.pictures // (self.batch_size * process_share()[1]))

    def __iter__(self) -> Iterator[list[Draw]]:
        rank, processes = process_share()
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.pictures, generator=generator).tolist()[rank::processes]
        for batch in range(self.done, len(self)):
            pictures = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [Draw(self.epoch, picture) for picture in pictures]


class Drawn(Dataset[dict[str, Any]]):
    """Pictures whose augmentation depends on the seed, the epoch and the picture alone.

    Args:
        data: pictures by index.
        seed: of the augmentation.
    """

    def __init__(self, data: Dataset[dict[str, Any]], seed: int) -> None:
        self.data = data
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        seed_chance(derived_seed(self.seed, "picture", *draw))
        return self.data[draw.picture]


class ResumableLoader(DataLoader[Any]):
    """Batches to train on that can begin within an epoch; each pass is the next epoch.

    Lightning keeps its state with that of the training.

    The state is the epoch, how many of its batches were given out, and who read them.

    Args:
        data: as of torch's loader.
        order: what has ``epoch``, ``set_epoch`` and ``done``, the number of batches to begin behind.
        options: of torch's loader.

    Attributes:
        waited: seconds between asking for a batch and having it, of all batches so far, by ``clock``.
    """

    def __init__(self, data: Any, order: Any, **options: Any) -> None:
        super().__init__(data, generator=torch.Generator(), **options)  # of its own: torch draws a number from it
        self.order = order
        self.given = 0
        self.clock: Callable[[], float] = time.monotonic
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given = self.order.done
        asked = self.clock()
        for batch in super().__iter__():
            self.waited += self.clock() - asked
            self.given += 1
            yield batch
            asked = self.clock()
        self.order.set_epoch(self.order.epoch + 1)
        self.given = 0

    @property
    def in_shards(self) -> bool:
        """Whether the pictures come in the order of files that hold many."""
        return isinstance(self.dataset, IterableDataset)

    def _readers(self) -> dict[str, int]:
        """What the order depends on beside the seed: shards are shared out to those that read them."""
        workers = {"workers": self.num_workers} if self.in_shards else {}
        return {"pictures": self.order.pictures, "devices": process_share()[1], **workers}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"epoch": self.order.epoch, "batches": self.given, "of": len(self), **self._readers()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin where another loader stopped.

        Raises:
            ConfigError: it stopped within an epoch that other processes cannot go on with, or is of other pictures.
        """
        self.order.epoch, self.order.done = state["epoch"], state["batches"]
        if not 0 < state["batches"] < state["of"]:
            return
        for name, number in self._readers().items():
            if state.get(name) != number:
                option = "the same --data" if name == "pictures" else f"--{name} {state.get(name)}"
                raise ConfigError(
                    f"the run stopped within an epoch of {state.get(name)} {name}, which cannot go on with {number}: "
                    f"resume it with {option}"
                )


def pictures_of(loader: "DataLoader[Any]") -> int:
    """How many pictures a loader of ours gives in all processes; in training less those of no whole batch."""
    data: Any = loader.dataset
    return data.pictures if hasattr(data, "pictures") else len(data)  # of shards the length is in batches


def batches(
    data: Dataset[dict[str, Any]], train: bool, settings: LoaderSettings, collate_fn: Callable[[Sequence[Any]], Any]
) -> "DataLoader[Any]":
    """Batches of whole pictures: for training shuffled and equally many; else in order, each picture once."""
    reading: dict[str, Any] = {
        "num_workers": settings.workers,
        "worker_init_fn": quiet_worker,
        "persistent_workers": settings.workers > 0,
        "collate_fn": collate_fn,
    }
    if not train:
        return DataLoader(data, batch_size=settings.batch_size, sampler=EachOnce(data), **reading)
    # a smaller last batch would unsettle the norms; a set smaller than one batch has nothing else
    order = ShuffledBatches(len(data), settings.batch_size, settings.seed)  # type: ignore[arg-type]
    return ResumableLoader(Drawn(data, settings.seed), order, batch_sampler=order, **reading)


def joined(items: Sequence[dict[str, Any]], join_targets: Callable[[list[Any]], Any]) -> dict[str, Any]:
    """A batch: image (N, C, H, W), target as ``join_targets`` makes it, name, and ``errors`` (name to reason).

    A batch without any readable picture has no ``image``.
    """
    good = [item for item in items if "image" in item]
    batch: dict[str, Any] = {"errors": {item["name"]: item["error"] for item in items if "error" in item}}
    if good:
        batch["image"] = default_collate([item["image"] for item in good])
        batch["target"] = join_targets([item["target"] for item in good])
        batch["name"] = [item["name"] for item in good]
    return batch


def held_out_indices(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of pictures that are kept and held out, by chance. Errors as of ``hold_out`` of the parts."""
    if not 0 < fraction < 1:
        raise ConfigError(f"val_fraction must lie between 0 and 1, got {fraction}")
    if count < 2:
        raise DataError("there is one picture only: two are needed to hold one out")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = max(1, min(count - 1, math.floor(fraction * count + 0.5)))
    return sorted(order[held_out:]), sorted(order[:held_out])
