"""WebDataset shards: tar files, plain or gzipped, with ``<key>.jpg`` beside ``<key>.cls``."""

import json
import math
import random
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dicenet.data.pictures import SUFFIXES, read_picture
from dicenet.data.samples import LoaderSettings, Sample, collate, prepared, quiet_worker, readable_sizes
from dicenet.data.transforms import Transform
from dicenet.errors import DataError

_PATTERNS = ("*.tar", "*.tar.gz", "*.tgz")
_SHUFFLE_BUFFER = 5000
#: Counts of samples per shard, written by some packers; spares reading every shard once.
_SIZES_FILE = "sizes.json"


def shard_files(path: Path) -> list[Path]:
    """The shards in a folder, in order of their names."""
    return sorted({file for pattern in _PATTERNS for file in path.glob(pattern)}) if path.is_dir() else []


def _count_samples(shard: Path) -> int:
    try:
        with tarfile.open(shard) as archive:
            return sum(name.endswith(".cls") for name in archive.getnames())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"shard {shard} cannot be read: it is damaged or no tar archive") from error


def _sample(item: dict[str, Any]) -> Sample:
    """What webdataset read: the picture's bytes, the class as text."""
    name = f"{Path(item['__url__']).name}:{item['__key__']}"
    key = next((suffix[1:] for suffix in SUFFIXES if suffix[1:] in item), None)
    if key is None or "cls" not in item:
        raise DataError(f"{name}: a sample needs a picture and a .cls file, it has {sorted(item)}")
    text = item["cls"].decode(errors="replace").strip()
    if not text.isdecimal():
        raise DataError(f"{name}.cls holds {text!r}, expected the number of a class")
    return Sample(name, partial(read_picture, item[key], name), int(text))


class Shards:
    """One part of a data set as shards; class names from ``classes.txt`` (line n is class n)."""

    def __init__(self, files: Sequence[Path], class_names: Sequence[str]) -> None:
        self.files = list(files)
        self.class_names = class_names
        self.counts = self._read_counts()
        if not sum(self.counts):
            raise DataError(f"the shards in {self.files[0].parent} hold no samples (a picture and a .cls file each)")

    def _read_counts(self) -> list[int]:
        sizes_file = self.files[0].parent / _SIZES_FILE
        try:
            known = json.loads(sizes_file.read_text()) if sizes_file.exists() else {}
        except ValueError as error:
            raise DataError(f"{sizes_file} is not JSON: {error}") from error
        if not isinstance(known, dict) or not all(isinstance(size, int) for size in known.values()):
            raise DataError(f'{sizes_file} must hold numbers of samples by shard, such as {{"a.tar": 5000}}')
        return [known[file.name] if file.name in known else _count_samples(file) for file in self.files]

    def __len__(self) -> int:
        return sum(self.counts)

    def sizes(self, count: int) -> list[tuple[int, int]]:
        """(width, height) of the first ``count`` pictures."""
        return readable_sizes(list(islice(self.samples(self.files), count)))

    def samples(self, files: Sequence[Path], buffer: int = 0, seed: int = 0) -> Iterator[Sample]:
        """Samples of some shards, in order or shuffled through a buffer."""
        # which process reads which shards is decided below, not again by webdataset
        data: Any = wds.WebDataset(
            [str(file) for file in files],
            shardshuffle=False,
            nodesplitter=None,
            workersplitter=None,
            empty_check=False,
        )
        for item in data.shuffle(buffer, rng=random.Random(seed)) if buffer else data:
            sample = _sample(item)
            if sample.target >= len(self.class_names):
                raise DataError(
                    f"{sample.name} is of class {sample.target}, but only {len(self.class_names)} are named"
                )
            yield sample

    def loader(self, transform: Transform, train: bool, settings: LoaderSettings) -> "DataLoader[Any]":
        """Batches; each worker reads its own shards, so there are never more workers than shards."""
        workers = min(settings.workers, len(self.files))
        batches = ShardBatches(self, transform, train, settings, workers)
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=quiet_worker,
            persistent_workers=workers > 0,
        )


class ShardBatches(IterableDataset[dict[str, Any]]):
    """Ready batches from shards, for one of several reading processes.

    In training every epoch has the same number of whole batches, whatever shards a reader gets: it repeats its
    own until its share is done. In evaluation every sample comes once. Where there are fewer shards than
    readers, each reads all shards and takes its share of the samples.
    """

    def __init__(
        self, shards: Shards, transform: Transform, train: bool, settings: LoaderSettings, workers: int
    ) -> None:
        self.shards = shards
        self.transform = transform
        self.train = train
        self.settings = settings
        self.workers = max(1, workers)
        self.epoch = 0

    def _reader(self, worker: int) -> tuple[int, int]:
        """Number of this reader among all, over training processes and their workers, and how many there are."""
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return rank * self.workers + worker, world * self.workers

    def __len__(self) -> int:
        readers = self._reader(0)[1]
        if self.train:
            return max(1, len(self.shards) // (self.settings.batch_size * (readers // self.workers)))
        shares = [self._share(self._reader(worker)[0], readers) for worker in range(self.workers)]
        return sum(math.ceil(share / self.settings.batch_size) for share in shares)

    def _share(self, reader: int, readers: int) -> int:
        """How many samples a reader gets in evaluation."""
        if len(self.shards.files) < readers:
            return len(range(reader, len(self.shards), readers))
        return sum(self.shards.counts[reader::readers])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker = info.id if info else 0
        reader, readers = self._reader(worker)
        if not self.train:
            yield from self._batches(self._own(self.shards.files, reader, readers))
            return
        share = len(range(worker, len(self), self.workers))
        yield from islice(self._batches(self._endless(reader, readers)), share)
        self.epoch += 1

    def _own(self, files: Sequence[Path], reader: int, readers: int, **shuffle: int) -> Iterator[Sample]:
        if len(files) < readers:
            return islice(self.shards.samples(files, **shuffle), reader, None, readers)
        return self.shards.samples(files[reader::readers], **shuffle)

    def _endless(self, reader: int, readers: int) -> Iterator[Sample]:
        order = random.Random(f"{self.settings.seed}/{self.epoch}")  # the same for all readers
        while True:
            files = list(self.shards.files)
            order.shuffle(files)
            yield from self._own(files, reader, readers, buffer=_SHUFFLE_BUFFER, seed=order.randrange(2**32))

    def _batches(self, samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
        while chosen := list(islice(samples, self.settings.batch_size)):
            yield collate([prepared(sample, self.transform) for sample in chosen])
