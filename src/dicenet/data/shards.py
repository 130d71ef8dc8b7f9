"""WebDataset shards: tar files, plain or gzipped, with ``<key>.jpg`` beside ``<key>.cls``; local or remote.

They are read as streams: of a shard no more than a sample is in memory at a time, beside the buffer that shuffles.
"""

import json
import math
import random
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from dicenet.data.pictures import SUFFIXES, read_picture
from dicenet.data.samples import (
    LoaderSettings,
    ResumableLoader,
    Sample,
    check_shares,
    collate,
    prepared,
    process_share,
    quiet_worker,
    readable_sizes,
)
from dicenet.data.seeding import derived_seed, seed_chance
from dicenet.data.streams import Address, beside, items_of, read_bytes
from dicenet.data.transforms import Transform
from dicenet.errors import DataError

_PATTERNS = ("*.tar", "*.tar.gz", "*.tgz")
_TAR_NAME = re.compile(r"[\w.-]+\.(?:tar\.gz|tgz|tar)\b")
_SHUFFLE_BUFFER = 5000
#: Counts of samples per shard; spares reading every shard once.
SIZES_FILE = "sizes.json"


def shard_files(path: Path) -> list[Path]:
    """The shards in a folder, in order of their names."""
    return sorted({file for pattern in _PATTERNS for file in path.glob(pattern)}) if path.is_dir() else []


def shard_name(shard: Address) -> str:
    """Name of a shard without where it lies: the same picture has the same augmentation from everywhere."""
    if isinstance(shard, Path):
        return shard.name
    names = _TAR_NAME.findall(shard)
    return names[-1] if names else shard.rpartition("/")[2]


def _count_samples(shard: Path) -> int:
    try:
        with tarfile.open(shard) as archive:
            return sum(name.endswith(".cls") for name in archive.getnames())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"shard {shard} cannot be read: it is damaged or no tar archive") from error


def _known_sizes(shard: Address) -> dict[str, int]:
    """Numbers of samples by shard, of the folder of a shard; empty for a local folder that does not say."""
    sizes_file = beside(shard, SIZES_FILE)
    if isinstance(sizes_file, Path) and not sizes_file.exists():
        return {}
    try:
        known = json.loads(read_bytes(sizes_file))
    except ValueError as error:
        raise DataError(f"{sizes_file} is not JSON: {error}") from error
    if not isinstance(known, dict) or not all(isinstance(size, int) for size in known.values()):
        raise DataError(f'{sizes_file} must hold numbers of samples by shard, such as {{"a.tar": 5000}}')
    return known


def shard_counts(shards: Sequence[Address]) -> list[int]:
    """Number of samples of each shard: from ``sizes.json`` beside it, else, of a local one, by reading it.

    Raises:
        DataError: a local shard is damaged, or it is not said how many a remote one holds.
    """
    known: dict[Address, dict[str, int]] = {}
    counts = []
    for shard in shards:
        folder = beside(shard, "")
        if folder not in known:
            known[folder] = _known_sizes(shard)
        name = shard_name(shard)
        if name in known[folder]:
            counts.append(known[folder][name])
        elif isinstance(shard, Path):
            counts.append(_count_samples(shard))
        else:
            raise DataError(f"{beside(shard, SIZES_FILE)} does not say how many samples {name} holds")
    return counts


def _picture_key(item: dict[str, Any]) -> str | None:
    """Which of a sample's files is its picture; None if it has none, or no class."""
    return next((suffix[1:] for suffix in SUFFIXES if suffix[1:] in item and "cls" in item), None)


def _sample(item: dict[str, Any]) -> Sample:
    """What webdataset read: the picture's bytes, the class as text."""
    name = f"{item['__url__']}:{item['__key__']}"
    key = _picture_key(item)
    if key is None:
        raise DataError(f"{name}: a sample needs a picture and a .cls file, it has {sorted(item)}")
    text = item["cls"].decode(errors="replace").strip()
    if not text.isdecimal():
        raise DataError(f"{name}.cls holds {text!r}, expected the number of a class")
    return Sample(name, partial(read_picture, item[key], name), int(text))


def _items(stream: IO[bytes], shard: Address, count: int) -> Iterator[dict[str, Any]]:
    """What webdataset reads from an open shard: one sample at a time, as many as there should be."""
    found, lacking = 0, None
    try:
        for item in group_by_keys(tar_file_expander([{"url": shard_name(shard), "stream": stream}])):
            found += 1
            if found > count:
                raise DataError(
                    f"shard {shard} holds more than {count} samples, the number in {SIZES_FILE} or a manifest"
                )
            if lacking is not None:
                yield lacking
            lacking = item if _picture_key(item) is None else None
            if lacking is None:
                yield item
    except ValueError as error:  # a name that is there twice
        raise DataError(f"shard {shard}: {error.args[0]}") from error
    if lacking is not None:  # at the end it may have been cut off between the files of a sample
        raise EOFError(f"its last sample needs a picture and a .cls file, it has {sorted(lacking)}")
    if found < count:
        raise EOFError(f"it ended after {found} of {count} samples")


class Shards:
    """One part of a data set as shards.

    Args:
        files: local ones as Path, remote ones as text.
        class_names: name of class n.
        counts: samples of each shard; see :func:`shard_counts` if not given.
    """

    def __init__(
        self, files: Sequence[Address], class_names: Sequence[str], counts: Sequence[int] | None = None
    ) -> None:
        self.files = list(files)
        self.class_names = class_names
        self.counts = list(shard_counts(self.files) if counts is None else counts)
        if not sum(self.counts):
            raise DataError(
                f"the shards in {beside(self.files[0], '')} hold no samples (a picture and a .cls file each)"
            )

    def __len__(self) -> int:
        return sum(self.counts)

    def sizes(self, count: int) -> list[tuple[int, int]]:
        """(width, height) of the first ``count`` pictures."""
        return readable_sizes(list(self.span(range(len(self.files)), 0, min(count, len(self)))))

    def samples(self, shard: int) -> Iterator[Sample]:
        """Samples of a shard, in order, streamed. DataError if there are more or fewer than there should be."""
        file, count = self.files[shard], self.counts[shard]
        for item in items_of(file, lambda stream: _items(stream, file, count)):
            sample = _sample(item)
            if sample.target >= len(self.class_names):
                raise DataError(
                    f"{sample.name} is of class {sample.target}, but only {len(self.class_names)} are named"
                )
            yield sample

    def span(self, order: Sequence[int], start: int, end: int) -> Iterator[Sample]:
        """Samples ``start`` to ``end`` of the line of all shards in some order; only shards that lie in it are read."""
        first = 0
        for shard in order:
            count = self.counts[shard]
            low, high = max(start - first, 0), min(end - first, count)
            if low < high:
                # to the end of a shard that is needed to its end: then it is known to be whole
                yield from islice(self.samples(shard), low, None if high == count else high)
            first += count

    def loader(self, transform: Transform, train: bool, settings: LoaderSettings) -> "DataLoader[Any]":
        """Batches: for training shuffled, whole and equally many for each process; else in order. Each sample once."""
        data = ShardBatches(self, transform, train, settings)
        reading: dict[str, Any] = {
            "batch_size": None,
            "num_workers": settings.workers,
            "worker_init_fn": quiet_worker,
            "persistent_workers": settings.workers > 0,
        }
        return ResumableLoader(data, data, **reading) if train else DataLoader(data, **reading)


class ShardBatches(IterableDataset[dict[str, Any]]):
    """Ready batches from shards, for one of several reading processes.

    All samples lie in a line, shard by shard; for training the shards are in an order of the epoch. Each reader has a
    stretch of it, whatever the number of shards, so that no sample comes twice. In training the stretches are of whole
    batches, and a reader shuffles its own through a buffer; what is left over at the end of the line, less than a batch
    of all processes, has its turn in another epoch.
    """

    def __init__(self, shards: Shards, transform: Transform, train: bool, settings: LoaderSettings) -> None:
        self.shards = shards
        self.transform = transform
        self.train = train
        self.settings = settings
        self.workers = max(1, settings.workers)
        self.share: tuple[int, int] | None = None
        # readers that live on from epoch to epoch see what is written here
        self.position = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        """A reader that is not forked knows nothing of the processes that train together: it is told."""
        return {**self.__dict__, "share": process_share()}

    @property
    def epoch(self) -> int:
        """That the order is of."""
        return int(self.position[0])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.position[0] = epoch

    @property
    def done(self) -> int:
        """Batches of this process to begin behind."""
        return int(self.position[1])

    @done.setter
    def done(self, batches: int) -> None:
        self.position[1] = batches

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0."""
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        if self.train:
            return max(1, len(self.shards) // (self.batch_size * self._processes()[1]))
        stretches = map(self._stretch, self._own())
        return sum(math.ceil((end - start) / self.batch_size) for start, end in stretches)

    @property
    def pictures(self) -> int:
        """In all processes."""
        return len(self.shards)

    @property
    def batch_size(self) -> int:
        """Of a process."""
        return self.settings.batch_size

    def _processes(self) -> tuple[int, int]:
        return self.share or process_share()

    def _own(self) -> list[int]:
        """Numbers of the readers of this process, among those of all."""
        rank = self._processes()[0]
        return [rank * self.workers + worker for worker in range(self.workers)]

    def _stretch(self, reader: int) -> tuple[int, int]:
        """Where in the line a reader begins and ends."""
        rank, worker = divmod(reader, self.workers)
        total, size = len(self.shards), self.batch_size
        if not self.train:
            check_shares(total, self._processes()[1])
            readers = self.workers * self._processes()[1]
            return total * reader // readers, total * (reader + 1) // readers
        batches = len(self)
        before = rank * batches + sum(len(range(w, batches, self.workers)) for w in range(worker))
        own = len(range(worker, batches, self.workers))
        return min(total, before * size), min(total, (before + own) * size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        # batches are taken from the workers in turn: behind some of them the turn is another's
        worker = ((info.id if info else 0) + self.done) % self.workers
        reader = self._own()[worker]
        shards = list(range(len(self.shards.files)))
        if not self.train:
            yield from self._batches(self.shards.span(shards, *self._stretch(reader)))
            return
        random.Random(derived_seed(self.settings.seed, "shards", self.epoch)).shuffle(shards)
        chance = random.Random(derived_seed(self.settings.seed, "samples", self.epoch, reader))
        mix = wds.shuffle(_SHUFFLE_BUFFER, initial=_SHUFFLE_BUFFER, rng=chance)
        samples = iter(mix(self.shards.span(shards, *self._stretch(reader))))
        given = len(range(worker, self.done, self.workers)) * self.batch_size
        yield from self._batches(islice(samples, given, None))

    def _batches(self, samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
        while chosen := list(islice(samples, self.batch_size)):
            yield collate([self._prepared(sample) for sample in chosen])

    def _prepared(self, sample: Sample) -> dict[str, Any]:
        if self.train:
            seed_chance(derived_seed(self.settings.seed, "picture", self.epoch, sample.name))
        return prepared(sample, self.transform)
