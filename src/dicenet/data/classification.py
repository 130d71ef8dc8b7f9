"""A classification data set from a path or name: its layout is recognised, its parts are found."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dicenet.data.arrays import DIGITS, cifar_root, read_cifar, read_digits
from dicenet.data.image_folder import is_image_folder, read_image_folder
from dicenet.data.manifest import UNFINISHED_FILE
from dicenet.data.parts import CLASSES_FILE, PART_FOLDERS, read_names
from dicenet.data.pictures import is_picture
from dicenet.data.samples import Part, SampleList
from dicenet.data.shard_sets import is_pattern, open_pattern, open_remote
from dicenet.data.shards import Shards, shard_files
from dicenet.data.streams import is_remote
from dicenet.errors import ConfigError, DataError

#: Data sets whose median side is below this get their own size and the small stem.
SMALL_SIDE = 64
_SMALLEST_INPUT = 32
#: Layouts, as messages call them.
SHARDS, CLASS_FOLDERS = "WebDataset shards", "one folder per class"
_MEASURED_PICTURES = 64


@dataclass(frozen=True)
class ClassificationData:
    """A data set: its layout, its class names, and the parts that it has (``train``, ``val``, ``test``, ``all``).

    ``all`` is a set without parts: one folder per class and nothing else.
    """

    path: str
    layout: str
    parts: dict[str, Part]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in order of their numbers."""
        return list(next(iter(self.parts.values())).class_names)

    def median_side(self) -> int:
        """Median of the shorter sides of some of its pictures, in pixels; 0 if none can be read."""
        return median_side(next(iter(self.parts.values())))

    def evaluation_part(self, name: str | None = None) -> tuple[str, Part]:
        """The part to evaluate on: ``name``, or the first there is of test, val, all.

        Raises:
            ConfigError: there is no such part.
        """
        for candidate in [name] if name else ["test", "val", "all"]:
            if candidate in self.parts:
                return candidate, self.parts[candidate]
        raise ConfigError(f"{self.path} has no part {name or 'test or val'}: it has {', '.join(self.parts)}")


def median_side(part: Part) -> int:
    """Median of the shorter sides of some pictures of a part, in pixels; 0 if none can be read."""
    sizes = part.sizes(_MEASURED_PICTURES)
    return int(statistics.median(min(size) for size in sizes)) if sizes else 0


def small_input(median_side: int) -> int | None:
    """Input size for a set of small pictures, or None for a set of usual ones."""
    return max(_SMALLEST_INPUT, median_side) if 0 < median_side < SMALL_SIDE else None


def _part_folder(path: Path, part: str) -> Path | None:
    return next((path / name for name in PART_FOLDERS[part] if (path / name).is_dir()), None)


def _shard_class_names(path: Path) -> list[str]:
    for folder in (path, path.parent):
        if (folder / CLASSES_FILE).exists():
            return read_names(folder / CLASSES_FILE)
    raise DataError(f"{path} holds shards but no {CLASSES_FILE}: write one with the name of class n in line n")


def _read_folder(folder: Path, class_names: Sequence[str] | None = None) -> tuple[str, Part] | None:
    """One part, in whatever layout it is; None if it is in none."""
    if files := shard_files(folder):
        return SHARDS, Shards(files, _shard_class_names(folder))
    if is_image_folder(folder):
        return CLASS_FOLDERS, read_image_folder(folder, class_names)
    return None


def open_classification_data(path: str) -> ClassificationData:
    """Open the data set at ``path``, or the embedded one called ``digits``.

    Recognised: folders ``train``, ``val``, ``test`` (or only some) of class folders or of WebDataset shards;
    one level of class folders or shards; torchvision's CIFAR-10 and CIFAR-100; a URL or a command (``pipe:``) that
    gives the files of a folder that ``dicenet prepare`` wrote; a pattern of shards, see
    :mod:`dicenet.data.shard_sets`.

    Raises:
        DataError: it does not exist, is empty, is in no known layout, or its parts differ in their classes.
    """
    root = Path(path)
    if not root.exists():
        if path == DIGITS:
            return ClassificationData(path, "scikit-learn's digits", dict(read_digits()))
        if is_pattern(path):
            return _with_classes(ClassificationData(path, SHARDS, dict(open_pattern(path))))
        if is_remote(path):
            return _with_classes(ClassificationData(path, SHARDS, dict(open_remote(path))))
        raise DataError(f"data path {path} does not exist (the embedded set is called {DIGITS!r})")
    return _with_classes(_open_folder(root, path))


def _with_classes(data: ClassificationData) -> ClassificationData:
    """The data set, if its parts have the same classes, two at least; else DataError."""
    names = {part: list(part_data.class_names) for part, part_data in data.parts.items()}
    first, *others = names
    for other in others:
        if difference := set(names[first]) ^ set(names[other]):
            raise DataError(
                f"{data.path}: parts {first} and {other} differ in classes {', '.join(sorted(difference)[:5])}"
            )
    if len(names[first]) < 2:
        raise DataError(f"{data.path} has one class only ({names[first][0]}): a classifier needs two at least")
    return data


def _open_folder(root: Path, path: str) -> ClassificationData:
    """A local data set, which messages call ``path``."""
    if not root.is_dir():
        raise DataError(f"data path {path} is a file: give the folder of a data set")
    if (root / UNFINISHED_FILE).exists():
        raise DataError(f"{path} is not finished: run the 'dicenet prepare' that began it again, it goes on")
    if cifar := cifar_root(root):
        return ClassificationData(path, "torchvision's CIFAR", dict(read_cifar(cifar)))

    layout = ""
    parts: dict[str, Part] = {}
    for part in PART_FOLDERS:
        folder = _part_folder(root, part)
        if folder is None:
            continue
        found = _read_folder(folder, next(iter(parts.values())).class_names if parts else None)
        if found is None and any(is_picture(file) for file in folder.iterdir()):
            continue  # a folder with pictures and nothing else is a class that happens to be called so
        if found is None:
            raise DataError(f"{folder} holds neither class folders with pictures nor .tar shards")
        layout, parts[part] = found
    if not parts and (whole := _read_folder(root)):
        layout, parts["all"] = whole
    if not parts:
        content = "is empty" if not any(root.iterdir()) else "is in no known layout"
        raise DataError(
            f"data path {path} {content}: it needs one folder of pictures per class, or folders train and val (or "
            "test) of these or of .tar shards with classes.txt"
        )
    return ClassificationData(path, layout, parts)


def split_off(part: Part, fraction: float, seed: int) -> tuple[Part, Part]:
    """Hold out a fraction of each class of an indexed part, by chance; at least one picture a class.

    Raises:
        ConfigError: shards cannot be split.
        DataError: a class has fewer than two pictures.
    """
    if not isinstance(part, SampleList):
        raise ConfigError("shards cannot be split into train and val: put them into two folders of these names")
    if not 0 < fraction < 1:
        raise ConfigError(f"val_fraction must lie between 0 and 1, got {fraction}")
    by_class: dict[int, list[int]] = {}
    for index in torch.randperm(len(part), generator=torch.Generator().manual_seed(seed)).tolist():
        by_class.setdefault(part.samples[index].target, []).append(index)
    held_out: set[int] = set()
    for target, indices in by_class.items():
        if len(indices) < 2:
            raise DataError(f"class {part.class_names[target]} has one picture: two are needed to hold one out")
        held_out.update(indices[: max(1, round(fraction * len(indices)))])
    train = [sample for index, sample in enumerate(part.samples) if index not in held_out]
    val = [sample for index, sample in enumerate(part.samples) if index in held_out]
    return SampleList(train, part.class_names), SampleList(val, part.class_names)
