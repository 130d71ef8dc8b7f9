"""A data set for segmentation from a path: its layout is recognised, its parts and classes are found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets import Cityscapes

from dicenet.classes import CAMVID, CAMVID_WEIGHTS, CITYSCAPES, CITYSCAPES_WEIGHTS, VOC
from dicenet.data.masks import IGNORE, MOST_CLASSES, MaskCoding, MaskedPictures, MaskedSample, open_mask, read_mask
from dicenet.data.parts import PART_FOLDERS, read_names
from dicenet.data.pictures import data_folder, is_picture, read_picture
from dicenet.errors import ConfigError, DataError

_LISTS = Path("ImageSets/Segmentation")
_VOC_MASKS = ("SegmentationClass", "SegmentationClassAug")
#: Lists to train on: with SBD's masks where they are listed.
_TRAIN_LISTS = ("trainaug", "train_aug", "train", "all")
_EVALUATION_LISTS = ("test", "val", "all")
_PICTURES = ("images", "imgs", "pictures", "JPEGImages")
_MASKS = ("masks", "labels", "annotations", "SegmentationClass")

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class SegmentationData:
    """A data set: its layout, class names, and the parts that it has (``train``, ``val``, ...), by name.

    ``class_weights`` are those that the set brings along, if any; ``files`` the pairs of files of each part.
    """

    path: str
    layout: str
    class_names: list[str]
    parts: dict[str, MaskedPictures]
    class_weights: list[float] | None = None
    files: dict[str, list[Pair]] = field(default_factory=dict)

    def part(self, name: str | None, candidates: Sequence[str], purpose: str) -> tuple[str, MaskedPictures]:
        """The part called ``name``, or the first there is of ``candidates``.

        Raises:
            ConfigError: there is no such part; ``purpose`` says what it was for.
            DataError: one of its files is missing.
        """
        for candidate in [name] if name else candidates:
            if candidate in self.parts:
                _check_files(self.files[candidate])
                return candidate, self.parts[candidate]
        raise ConfigError(f"{self.path} has no part {name or purpose}: it has {', '.join(self.parts)}")

    def training_part(self, name: str | None = None) -> tuple[str, MaskedPictures]:
        """The part to train on: ``name``, or the first there is of trainaug, train, all. ConfigError if none is."""
        return self.part(name, _TRAIN_LISTS, "to train on")

    def evaluation_part(self, name: str | None = None) -> tuple[str, MaskedPictures]:
        """The part to evaluate on: ``name``, or the first there is of test, val, all. ConfigError if none is."""
        return self.part(name, _EVALUATION_LISTS, "test or val")


class _Found(NamedTuple):
    """What a layout's reader found: pairs of files of each part, names, and what the numbers in masks mean."""

    layout: str
    pairs: dict[str, list[Pair]]
    class_names: list[str]
    ignored: tuple[int, ...] = ()
    ids: tuple[tuple[int, int], ...] | None = None
    class_weights: list[float] | None = None


# -- layouts: each reader says None if a folder is not in its layout


def _voc(root: Path) -> _Found | None:
    """PASCAL VOC, with SBD's masks beside its own: lists of names, pictures, palette masks."""
    if not (root / "JPEGImages").is_dir() or not (root / _LISTS).is_dir():
        return None
    pairs: dict[str, list[Pair]] = {}
    for file in sorted((root / _LISTS).glob("*.txt")):
        # some lists of SBD's pictures give the paths of picture and mask in place of a name
        names = [Path(line.split()[0]).stem for line in _lines(file)]
        pairs[file.stem] = [(root / "JPEGImages" / f"{name}.jpg", _voc_mask(root, name)) for name in names]
    return _Found("PASCAL VOC", {part: found for part, found in pairs.items() if found}, _names(root, VOC))


def _voc_mask(root: Path, name: str) -> Path:
    """VOC's own mask where there is one: SBD's are coarser."""
    masks = [root / folder / f"{name}.png" for folder in _VOC_MASKS]
    return next((mask for mask in masks if mask.exists()), masks[0])


def _cityscapes(root: Path) -> _Found | None:
    """Cityscapes: masks of train ids, or else of label ids, which are translated."""
    if not (root / "leftImg8bit").is_dir() or not (root / "gtFine").is_dir():
        return None
    # the table has both numberings; 255 and -1 are void in it
    to_train = {label.id: label.train_id for label in Cityscapes.classes if label.id >= 0}
    ids = tuple((number, index if 0 <= index < IGNORE else IGNORE) for number, index in to_train.items())
    pairs: dict[str, list[Pair]] = {}
    suffix = "_labelTrainIds.png" if any(root.glob("gtFine/*/*/*_labelTrainIds.png")) else "_labelIds.png"
    for part in ("train", "val"):  # the masks of test are not public
        pictures = sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.png"))
        stems = [(picture, picture.name.removesuffix("_leftImg8bit.png")) for picture in pictures]
        found = [(p, root / "gtFine" / part / p.parent.name / f"{stem}_gtFine{suffix}") for p, stem in stems]
        if found:
            pairs[part] = found
    coding = ids if suffix == "_labelIds.png" else None
    return _Found("Cityscapes", pairs, list(CITYSCAPES), ids=coding, class_weights=list(CITYSCAPES_WEIGHTS))


def _camvid(root: Path) -> _Found | None:
    """CamVid as SegNet's tutorial has it: lists of pairs of paths; class 11 is void."""
    lists = {part: root / f"{part}.txt" for part in ("train", "val", "test")}
    if not lists["train"].exists() or not (root / "trainannot").is_dir():
        return None
    lists = {part: file for part, file in lists.items() if file.exists()}
    pairs = {part: [_camvid_pair(root, line, file) for line in _lines(file)] for part, file in lists.items()}
    return _Found("CamVid", pairs, list(CAMVID), ignored=(len(CAMVID),), class_weights=list(CAMVID_WEIGHTS))


def _camvid_pair(root: Path, line: str, file: Path) -> Pair:
    paths = line.split()
    if len(paths) != 2:
        raise DataError(f"{file} needs a picture and a mask in each line, got {line!r}")
    # the original lists have paths of another machine: the last two parts are those below the folder
    picture, mask = (root / Path(*Path(path).parts[-2:]) for path in paths)
    return picture, mask


def _folders(root: Path) -> _Found | None:
    """Pictures and masks of the same names in two folders, each in parts, or in both folders of each part."""
    pairs: dict[str, list[Pair]] = {}
    for part, names in PART_FOLDERS.items():
        for name in names:
            for pictures, masks in (
                *((root / name / a, root / name / b) for a in _PICTURES for b in _MASKS),
                *((root / a / name, root / b / name) for a in _PICTURES for b in _MASKS),
            ):
                if part not in pairs and pictures.is_dir() and masks.is_dir():
                    pairs[part] = list(_same_names(pictures, masks))
    for a in _PICTURES:
        for b in _MASKS:
            if not pairs and (root / a).is_dir() and (root / b).is_dir():
                pairs["all"] = list(_same_names(root / a, root / b))
    pairs = {part: found for part, found in pairs.items() if found}
    if not pairs:
        return None
    _check_complete(root, pairs)
    return _Found("folders of pictures and masks", pairs, _names(root, ()))


def _check_complete(root: Path, pairs: dict[str, list[Pair]]) -> None:
    """Raise DataError for a part with pictures but no masks; pictures to test on may have none."""
    for part in ("train", "val"):
        for folder in (
            folder for name in PART_FOLDERS[part] for a in _PICTURES for folder in (root / name / a, root / a / name)
        ):
            if part not in pairs and folder.is_dir() and any(map(is_picture, folder.iterdir())):
                raise DataError(f"{folder} has no folder of masks beside it: it is called {' or '.join(_MASKS)}")


def _same_names(pictures: Path, masks: Path) -> Iterator[Pair]:
    for picture in sorted(p for p in pictures.iterdir() if is_picture(p) and p.is_file()):
        yield picture, masks / f"{picture.stem}.png"


_LAYOUTS: tuple[Callable[[Path], _Found | None], ...] = (_voc, _cityscapes, _camvid, _folders)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no list in UTF-8: {error}") from error


def _names(root: Path, default: Sequence[str]) -> list[str]:
    return read_names(root / "classes.txt") if (root / "classes.txt").exists() else list(default)


def _counted_classes(pairs: dict[str, list[Pair]], ignored: Sequence[int]) -> list[str]:
    """Numbers as names, up to the largest that a mask holds."""
    largest = -1
    for _, mask in (pair for found in pairs.values() for pair in found):
        try:
            numbers = np.unique(open_mask(mask))
        except DataError:
            continue  # named when it is used
        largest = max([largest, *(int(n) for n in numbers if n not in ignored and n != IGNORE)])
        if largest >= MOST_CLASSES:
            raise DataError(
                f"mask {mask} holds {largest}: masks can tell {MOST_CLASSES} classes apart, whose numbers begin with 0"
            )
    if largest < 0:
        raise DataError("the masks hold no classes")
    if largest == 0:
        raise DataError(
            "the masks hold class 0 only (255 is void): a mask's pixels must be the numbers of their classes, from 0 on"
        )
    return [str(index) for index in range(largest + 1)]


def recognise_segmentation_data(root: Path, ignore_ids: int | Sequence[int] = ()) -> SegmentationData | None:
    """The data set in a folder; None if it is in no known layout. Else as :func:`open_segmentation_data`."""
    found = next((found for layout in _LAYOUTS if (found := layout(root))), None)
    if found is None or not found.pairs:
        return None
    ignored = (*found.ignored, *((ignore_ids,) if isinstance(ignore_ids, int) else ignore_ids))
    names = found.class_names or _counted_classes(found.pairs, ignored)
    coding = MaskCoding(len(names), ignored, found.ids)
    parts = {part: MaskedPictures(_samples(pairs, coding), names) for part, pairs in found.pairs.items()}
    return SegmentationData(str(root), found.layout, names, parts, found.class_weights, found.pairs)


def open_segmentation_data(path: str, ignore_ids: int | Sequence[int] = ()) -> SegmentationData:
    """Open the data set at ``path``.

    Recognised: PASCAL VOC (with SBD), Cityscapes, CamVid, and folders ``images`` and ``masks``, whole or in parts
    ``train``, ``val``, ``test``, with class names in ``classes.txt`` (line n is class n).

    Args:
        path: folder of the set.
        ignore_ids: number or numbers in masks that are void, beside 255 and those of the layout.

    Raises:
        DataError: it does not exist or is in no known layout. Missing files are told of the part that is asked for.
    """
    found = recognise_segmentation_data(data_folder(path), ignore_ids)
    if found is None:
        raise DataError(
            f"data path {path} is in no known layout for segmentation: it needs folders images and masks (of the same "
            "names; also in train and val), or PASCAL VOC, Cityscapes or CamVid as they are unpacked"
        )
    return found


def _samples(pairs: Sequence[Pair], coding: MaskCoding) -> list[MaskedSample]:
    return [
        MaskedSample(str(picture), partial(read_picture, picture), partial(read_mask, mask, coding))
        for picture, mask in pairs
    ]


def _check_files(pairs: Sequence[Pair]) -> None:
    """Raise DataError if a picture or mask is not there; masks in other formats than PNG are not looked for."""
    for picture, mask in pairs:
        for file, other, what in ((picture, mask, "picture"), (mask, picture, "mask")):
            if not file.exists():
                raise DataError(f"{what} {file} is missing: {other} needs it")
