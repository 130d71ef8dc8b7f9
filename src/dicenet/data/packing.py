"""Pictures from files into WebDataset shards: shuffled, encoded, written the same way every time."""

import hashlib
import io
import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dicenet.data.manifest import ShardEntry
from dicenet.data.pictures import read_picture
from dicenet.data.samples import Sample, quiet_worker
from dicenet.data.seeding import derived_seed
from dicenet.errors import ConfigError, DataError

_NOT_IN_KEYS = re.compile(r"[^0-9A-Za-z_-]+")
_LONGEST_STEM = 64


@dataclass(frozen=True)
class Encoding:
    """What a shard holds of a picture: its file as it is, or a JPEG of smaller size.

    Attributes:
        resize: shorter side in pixels of larger pictures; smaller ones, and all if it is None, are copied.
        quality: of JPEGs that are encoded, from 1 to 100.
    """

    resize: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise ConfigError(f"resize must be at least 1 pixel, got {self.resize}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must lie from 1 to 100, got {self.quality}")

    def encoded(self, file: Path, name: str) -> tuple[str, bytes]:
        """Suffix (without a dot) and content for a picture. Raises DataError if it cannot be read: see read_picture."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
        picture = read_picture(content, name)  # what cannot be decoded is known now, not in every training
        if self.resize is None or min(picture.size) <= self.resize:
            suffix = file.suffix[1:].lower()
            return "jpg" if suffix == "jpeg" else suffix, content
        scale = self.resize / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        stream = io.BytesIO()
        try:
            picture.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=self.quality)
        except (OSError, ValueError) as error:  # longer than a JPEG can be
            raise DataError(f"{name}: {width}x{height} cannot be a JPEG: {error}") from error
        return "jpg", stream.getvalue()


class Packed(NamedTuple):
    """A sample as it is written, or ``reason``, why it cannot be."""

    key: str
    target: int
    path: str
    suffix: str = ""
    content: bytes = b""
    reason: str = ""


class _Encoded(Dataset[Packed]):
    """Samples of an image folder by index, encoded."""

    def __init__(self, samples: Sequence[tuple[int, Sample]], root: Path, encoding: Encoding) -> None:
        self.samples = samples
        self.root = root
        self.encoding = encoding

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Packed:
        number, sample = self.samples[index]
        file = Path(sample.name)
        path = str(file.relative_to(self.root))
        stem = _NOT_IN_KEYS.sub("_", file.stem)[:_LONGEST_STEM]
        key = f"{number:08d}_{stem}"  # the number makes it unique, the name can be found again
        try:
            return Packed(key, sample.target, path, *self.encoding.encoded(file, path))
        except DataError as error:
            return Packed(key, sample.target, path, reason=str(error).removeprefix(f"{path}: "))


def encoded(samples: Sequence[tuple[int, Sample]], root: Path, encoding: Encoding, workers: int) -> Iterator[Packed]:
    """Numbered samples of an image folder below ``root``, in order, encoded by several processes."""
    data = _Encoded(samples, root, encoding)
    yield from DataLoader(
        data, batch_size=None, collate_fn=_unchanged, num_workers=workers, worker_init_fn=quiet_worker
    )


def _unchanged(item: Any) -> Any:
    return item


def shuffled_shards(
    part: str, samples: Sequence[Sample], shard_size: int, seed: int
) -> dict[str, list[tuple[int, Sample]]]:
    """Which numbered samples lie in which shard of a part, by name; the order depends on seed and part alone."""
    numbered = list(enumerate(samples))
    random.Random(derived_seed(seed, "shards of", part)).shuffle(numbered)
    starts = range(0, len(numbered), shard_size)
    return {f"{part}-{n:06d}.tar": numbered[start : start + shard_size] for n, start in enumerate(starts)}


def source_digest(parts: dict[str, Sequence[Sample]], root: Path) -> str:
    """SHA-256 of the names, classes and sizes of all pictures: other pictures make other shards."""
    digest = hashlib.sha256()
    for part, samples in parts.items():
        for sample in samples:
            file = Path(sample.name)
            line = f"{part}\t{sample.target}\t{file.relative_to(root)}\t{file.stat().st_size}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class _Hashed:
    """Passes on what is written to a file, counted and hashed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        return self.file.write(content)


def write_shard(path: Path, name: str, items: Iterable[Packed]) -> ShardEntry:
    """Write a tar file at ``path``, of the same bytes for the same items, and describe it as ``name``."""
    samples, left_out = 0, []
    with path.open("wb") as file:
        hashed = _Hashed(file)
        # a stream: written from front to back, as it is hashed
        with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.USTAR_FORMAT) as archive:  # type: ignore[call-overload]
            for item in items:
                if item.reason:
                    left_out.append({"path": item.path, "reason": item.reason})
                    continue
                samples += 1
                _add(archive, f"{item.key}.{item.suffix}", item.content)
                _add(archive, f"{item.key}.cls", str(item.target).encode())
    return ShardEntry(name, samples, hashed.size, hashed.digest.hexdigest(), left_out)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of nobody, at no time
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
