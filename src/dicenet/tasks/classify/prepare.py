"""Writing a data set of pictures in folders as WebDataset shards."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import track

from dicenet.data.classification import CLASS_FOLDERS, open_classification_data, split_off
from dicenet.data.manifest import MANIFEST_FILE, UNFINISHED_FILE, Manifest, ShardEntry, manifest_in
from dicenet.data.packing import Encoding, Packed, encoded, shuffled_shards, source_digest, write_shard
from dicenet.data.parts import CLASSES_FILE
from dicenet.data.samples import Sample, SampleList
from dicenet.data.shards import SIZES_FILE
from dicenet.engine.console import say, say_what_was_left_out
from dicenet.engine.run_folder import check_free
from dicenet.errors import ConfigError
from dicenet.tasks.arguments import default_workers
from dicenet.tasks.training import check_seed
from dicenet.weights.files import atomic_path, write_bytes, write_json

#: Files that a process was writing when it was killed, as atomic_path calls them.
_LEFT_BEHIND = re.compile(r"\..*\.[0-9a-f]{8}\.part")


def prepare(
    data: str,
    out: str,
    shard_size: int = 1000,
    resize: int | None = None,
    quality: int = 95,
    val_fraction: float = 0.2,
    seed: int = 1882,
    workers: int | None = None,
) -> Path:
    """Write pictures in one folder per class as WebDataset shards, in an order by chance.

    A command that was cut off is given again and goes on: what is written is the same as without the break.

    Args:
        data: folder with train and val (or test) folders of class folders, or with class folders alone.
        out: folder to write, new, empty, or begun by this command with the same arguments.
        shard_size: pictures in a shard.
        resize: shorter side in pixels that larger pictures are brought to, as JPEGs; all are copied as they are if not
            given.
        quality: of these JPEGs, from 1 to 100.
        val_fraction: part of each class held out as val where the data has no val or test folder.
        seed: of the order and of what is held out.
        workers: processes that read pictures.

    Returns:
        The folder, with train, val or test folders of shards, sizes.json in each, classes.txt and manifest.json.
    """
    if shard_size < 1:
        raise ConfigError(f"shard_size must be at least 1, got {shard_size}")
    if workers is not None and workers < 0:
        raise ConfigError(f"workers must be at least 0, got {workers}")
    encoding = Encoding(resize, quality)
    root, folder = Path(data), Path(out)
    if folder.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"--out {out} lies in --data {data}: give a folder elsewhere")
    _check_target(folder)
    parts, classes = _parts(data, val_fraction, check_seed(seed))
    arguments = {
        "shard_size": shard_size,
        "resize": resize,
        "quality": quality,
        "val_fraction": val_fraction,
        "seed": seed,
    }
    source = {"pictures": sum(map(len, parts.values())), "sha256": source_digest(parts, root)}
    plan = {part: shuffled_shards(part, samples, shard_size, seed) for part, samples in parts.items()}
    target = _Target(folder, Manifest(arguments, source, classes), plan)
    console = Console()
    missing = target.missing()
    if target.done:
        say(console, f"shards that are there: {len(target.done)}; to be written: {len(missing)}")
    samples = [sample for part, name in missing for sample in plan[part][name]]
    items = encoded(samples, root, encoding, default_workers() if workers is None else workers)
    shown = track(
        items, "writing", len(samples), console=console, transient=True, disable=not console.is_terminal or not samples
    )
    try:
        target.write(iter(shown))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("go on with the same command") from None
    _say_what_is_there(console, target.manifest(), folder)
    return folder


def _check_target(folder: Path) -> None:
    """Raise ConfigError for a folder that holds something else; asked before pictures are looked for."""
    if not any((folder / name).is_file() for name in (MANIFEST_FILE, UNFINISHED_FILE)):
        _clear(folder, f".{UNFINISHED_FILE}.")
        check_free(folder)


def _parts(data: str, val_fraction: float, seed: int) -> tuple[dict[str, Sequence[Sample]], list[str]]:
    """Samples of the parts to write, and the names of the classes."""
    dataset = open_classification_data(data)
    if dataset.layout != CLASS_FOLDERS:
        raise ConfigError(f"--data {data} is {dataset.layout}: give a folder with one folder of pictures per class")
    parts = dataset.parts
    if not {"val", "test"} & parts.keys():
        (whole,) = parts.values()
        parts = dict(zip(("train", "val"), split_off(whole, val_fraction, seed), strict=True))
    return {name: part.samples for name, part in parts.items() if isinstance(part, SampleList)}, dataset.class_names


class _Target:
    """The folder that is written.

    Args:
        folder: new, empty, or begun before.
        wanted: what it is to be, without shards.
        plan: numbered samples of each shard, by part and name.

    Attributes:
        done: shards that are there, by part and name.

    Raises:
        ConfigError: the folder holds something else.
    """

    def __init__(
        self, folder: Path, wanted: Manifest, plan: Mapping[str, Mapping[str, Sequence[tuple[int, Sample]]]]
    ) -> None:
        self.folder = folder
        self.wanted = wanted
        self.plan = plan
        self.done = {
            (part, entry.name): entry
            for part, entries in self._recorded().items()
            for entry in entries
            if _size(folder / part / entry.name) == entry.bytes
        }

    def _recorded(self) -> Mapping[str, Sequence[ShardEntry]]:
        """Shards that the same command finished before."""
        for file in (self.folder / MANIFEST_FILE, self.folder / UNFINISHED_FILE):
            if file.is_file():
                begun = manifest_in(file.read_bytes(), str(file))
                self._check_same(begun)
                return begun.parts
        return {}

    def _check_same(self, begun: Manifest) -> None:
        for key, before in begun.arguments.items():
            if (now := self.wanted.arguments.get(key)) != before:
                option = key.replace("_", "-")
                raise ConfigError(
                    f"--out {self.folder} was begun with --{option} {before}, not {now}: give the same arguments, or "
                    "another folder"
                )
        if (begun.source, begun.classes) != (self.wanted.source, self.wanted.classes):
            raise ConfigError(
                f"--out {self.folder} was begun from other pictures ({begun.source['pictures']} then, "
                f"{self.wanted.source['pictures']} now): give another folder"
            )

    def missing(self) -> list[tuple[str, str]]:
        """Shards that are to be written, by part and name."""
        return [(part, name) for part, shards in self.plan.items() for name in shards if (part, name) not in self.done]

    def manifest(self) -> Manifest:
        """What is there."""
        parts = {
            part: [self.done[part, name] for name in shards if (part, name) in self.done]
            for part, shards in self.plan.items()
        }
        return replace(self.wanted, parts=parts)

    def write(self, items: Iterator[Packed]) -> None:
        """Write the missing shards from their encoded samples, and what goes with them."""
        missing = self.missing()
        if not missing and (self.folder / MANIFEST_FILE).exists():
            (self.folder / UNFINISHED_FILE).unlink(missing_ok=True)
            return
        write_json(self.folder / UNFINISHED_FILE, self.manifest().as_json())
        (self.folder / MANIFEST_FILE).unlink(missing_ok=True)  # it is there when all is
        for folder in (self.folder, *(self.folder / part for part in self.plan)):
            _clear(folder, ".")
        for part, name in missing:
            path = self.folder / part / name
            with atomic_path(path) as temporary:
                self.done[part, name] = write_shard(temporary, name, islice(items, len(self.plan[part][name])))
            write_json(self.folder / UNFINISHED_FILE, self.manifest().as_json())
        for part, entries in self.manifest().parts.items():
            write_json(self.folder / part / SIZES_FILE, {entry.name: entry.samples for entry in entries})
        write_bytes(self.folder / CLASSES_FILE, "".join(f"{name}\n" for name in self.wanted.classes).encode())
        write_json(self.folder / MANIFEST_FILE, self.manifest().as_json())
        (self.folder / UNFINISHED_FILE).unlink()


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _clear(folder: Path, beginning: str) -> None:
    """Remove what a process that was killed had not finished."""
    for file in folder.glob(".*.part"):
        if file.name.startswith(beginning) and _LEFT_BEHIND.fullmatch(file.name):
            file.unlink()


def _say_what_is_there(console: Console, manifest: Manifest, folder: Path) -> None:
    left_out = [item for entries in manifest.parts.values() for entry in entries for item in entry.left_out]
    say_what_was_left_out(console, {item["path"]: f"{item['path']}: {item['reason']}" for item in left_out})
    for part, entries in manifest.parts.items():
        pictures, size = sum(entry.samples for entry in entries), sum(entry.bytes for entry in entries)
        shards = "1 shard" if len(entries) == 1 else f"{len(entries)} shards"
        say(console, f"{part}: {pictures} pictures in {shards}, {size / 1e6:.1f} MB")
    say(console, f"{len(manifest.classes)} classes; use it with --data {folder}")
