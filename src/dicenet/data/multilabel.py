"""A data set for multi-label classification from a path: its layout is recognised, its parts and classes are found."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicenet.data.detection import recognise_detection_data
from dicenet.data.label_lists import check_pictures, lists_in, read_label_lists
from dicenet.data.labels import BACKGROUND, LabelledPictures, from_boxes, from_masks
from dicenet.data.pictures import data_folder
from dicenet.data.segmentation import recognise_segmentation_data
from dicenet.errors import ConfigError, DataError

_TRAIN_PARTS = ("trainaug", "train_aug", "train", "trainval", "all")
_EVALUATION_PARTS = ("test", "val", "all")

#: Goes through pictures, to show progress.
Track = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class MultilabelData:
    """A data set: its layout, class names, and the parts that it has (``train``, ``val``, ...), by name.

    Each part is made when it is asked for: the classes of masks are known only when they are read.
    """

    path: str
    layout: str
    class_names: list[str]
    parts: dict[str, Callable[[], LabelledPictures]]

    def _part(self, name: str | None, candidates: Sequence[str], purpose: str) -> tuple[str, LabelledPictures]:
        for candidate in [name] if name else candidates:
            if candidate in self.parts:
                return candidate, self.parts[candidate]()
        raise ConfigError(f"{self.path} has no part {name or purpose}: it has {', '.join(self.parts)}")

    def training_part(self, name: str | None = None) -> tuple[str, LabelledPictures]:
        """The part to train on: ``name``, or the first there is of trainaug, train, trainval, all.

        Raises:
            ConfigError: there is no such part.
            DataError: one of its files is missing, or no picture shows a class.
        """
        name, part = self._part(name, _TRAIN_PARTS, "to train on")
        if not part.has_labels():
            raise DataError(f"part {name} of {self.path} has no label to learn from: none of its pictures has one")
        return name, part

    def evaluation_part(self, name: str | None = None) -> tuple[str, LabelledPictures]:
        """The part to evaluate on: ``name``, or the first there is of test, val, all. Errors as above.

        Its pictures may show no class: what is found in them is wrong then.
        """
        return self._part(name, _EVALUATION_PARTS, "test or val")


# -- layouts: each reader says None if a folder is not in its layout


def _lists(root: Path, ignore_ids: int | Sequence[int], track: Track) -> MultilabelData | None:
    """CSV files of paths and labels."""
    lists = lists_in(root)
    if not lists:
        return None
    names, parts, rows = read_label_lists(root)

    def checked(part: str) -> LabelledPictures:
        check_pictures(lists[part], rows[part])
        return parts[part]

    return MultilabelData(str(root), "CSV", names, {part: _later(checked, part) for part in parts})


def _boxes(root: Path, ignore_ids: int | Sequence[int], track: Track) -> MultilabelData | None:
    """All layouts for detection: COCO, PASCAL VOC's XML."""
    data = recognise_detection_data(root)
    if data is None:
        return None

    def made(part: str) -> LabelledPictures:
        return from_boxes(data.part(part, (), "")[1])

    return MultilabelData(str(root), data.layout, data.class_names, {part: _later(made, part) for part in data.parts})


def _masks(root: Path, ignore_ids: int | Sequence[int], track: Track) -> MultilabelData | None:
    """All layouts for segmentation: the classes that masks hold, but for the background."""
    data = recognise_segmentation_data(root, ignore_ids)
    if data is None:
        return None
    void = [index for index, name in enumerate(data.class_names) if name == BACKGROUND]
    names = [name for name in data.class_names if name != BACKGROUND]

    def made(part: str) -> LabelledPictures:
        _, pictures = data.part(part, (), "")
        return from_masks(pictures, track(pictures.samples), void)

    return MultilabelData(str(root), f"{data.layout} (masks)", names, {part: _later(made, part) for part in data.parts})


def _later(make: Callable[[str], LabelledPictures], part: str) -> Callable[[], LabelledPictures]:
    return lambda: make(part)


_LAYOUTS = (_lists, _boxes, _masks)


def open_multilabel_data(
    path: str, ignore_ids: int | Sequence[int] = (), track: Track = lambda samples: samples
) -> MultilabelData:
    """Open the data set at ``path``.

    Recognised, in this order: CSV files (``train.csv``, ``val.csv``, ``test.csv``, or ``all.csv`` or ``labels.csv``);
    the layouts for detection (:func:`dicenet.data.detection.open_detection_data`), of which crowds and difficult
    objects count too; those for segmentation (:func:`dicenet.data.segmentation.open_segmentation_data`), of which the
    classes are those that a mask holds, but for one called ``background``.

    Args:
        path: folder of the set.
        ignore_ids: for masks, see there.
        track: goes through the pictures whose masks are read, to show progress.

    Raises:
        DataError: it does not exist, is in no known layout, or something in it is wrong. Missing files are told of the
            part that is asked for.
    """
    root = data_folder(path)
    found = next((found for layout in _LAYOUTS if (found := layout(root, ignore_ids, track))), None)
    if found is None:
        raise DataError(
            f"data path {path} is in no known layout for multi-label classification: it needs train.csv and val.csv (a "
            "path and labels in each line: 'a.jpg,cat dog'), or COCO or PASCAL VOC as they are unpacked"
        )
    return found
