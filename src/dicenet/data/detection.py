"""A data set for detection from a path: its layout is recognised, its parts and classes are found."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dicenet.classes import VOC_OBJECTS
from dicenet.data.boxes import BoxedPictures
from dicenet.data.coco_boxes import read_coco_part
from dicenet.data.parts import PART_FOLDERS, read_names
from dicenet.data.pictures import SUFFIXES, data_folder, is_picture
from dicenet.data.voc_boxes import Pair, read_voc_parts
from dicenet.errors import ConfigError, DataError

_LISTS = Path("ImageSets/Main")
_YEARS = ("VOC2007", "VOC2012")
_TRAIN_PARTS = ("train", "trainval", "all")
_EVALUATION_PARTS = ("test", "val", "all")
_PICTURES = ("images", "imgs", "pictures", "JPEGImages")
_ANNOTATIONS = ("annotations", "Annotations", "labels")
_ROBOFLOW = "_annotations.coco.json"
#: What lists of one class say of each picture: absent, difficult, present.
_PRESENCE = {"-1", "0", "1"}


@dataclass(frozen=True)
class DetectionData:
    """A data set: its layout, class names, and the parts that it has (``train``, ``val``, ...), by name.

    ``files`` are the picture and the annotation of each sample of each part; ``plus_one`` says whether boxes end at
    the far edge of the pixel that is named, as the evaluation of PASCAL VOC takes them.
    """

    path: str
    layout: str
    class_names: list[str]
    parts: dict[str, BoxedPictures]
    files: dict[str, list[Pair]]
    plus_one: bool = False

    def part(self, name: str | None, candidates: Sequence[str], purpose: str) -> tuple[str, BoxedPictures]:
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

    def training_part(self, name: str | None = None) -> tuple[str, BoxedPictures]:
        """The part to train on: ``name``, or the first there is of train, trainval, all.

        Raises:
            ConfigError: there is no such part.
            DataError: one of its files is missing, or no picture has a box to learn from.
        """
        name, part = self.part(name, _TRAIN_PARTS, "to train on")
        if not len(part.without_empty()):
            raise DataError(
                f"part {name} of {self.path} has no box to learn from: its pictures are empty, or have crowds or "
                "difficult objects only"
            )
        return name, part

    def evaluation_part(self, name: str | None = None) -> tuple[str, BoxedPictures]:
        """The part to evaluate on: ``name``, or the first there is of test, val, all. Errors as above."""
        name, part = self.part(name, _EVALUATION_PARTS, "test or val")
        if not part.can_be_judged_by():
            raise DataError(f"part {name} of {self.path} has no box to judge by: only empty pictures or crowds")
        return name, part


def _check_files(pairs: Sequence[Pair]) -> None:
    """Raise DataError if a picture or an annotation is not there."""
    annotations: set[Path] = set()  # COCO has one for all pictures
    for picture, annotation in pairs:
        if not picture.exists():
            raise DataError(f"picture {picture} is missing: {annotation} is about it")
        if annotation not in annotations and not annotation.exists():
            raise DataError(f"annotation {annotation} is missing: {picture} needs it")
        annotations.add(annotation)


class _Found(NamedTuple):
    """What a layout's reader found."""

    layout: str
    class_names: list[str]
    parts: dict[str, BoxedPictures]
    files: dict[str, list[Pair]]
    plus_one: bool = False


# -- layouts: each reader says None if a folder is not in its layout


def _is_voc(root: Path) -> bool:
    return all((root / folder).is_dir() for folder in ("JPEGImages", "Annotations", _LISTS))


def _voc(root: Path, difficult: bool) -> _Found | None:
    """PASCAL VOC, one year: each list of pictures is a part."""
    years = _year_folders(root)
    folder = root if _is_voc(root) else years[0] if len(years) == 1 else None
    if folder is None:
        return None
    pictures = _by_stem(folder / "JPEGImages")
    lists = [(file.stem, _listed(file)) for file in sorted((folder / _LISTS).glob("*.txt"))]
    files = {part: _voc_pairs(folder, names, pictures) for part, names in lists if names}
    return _from_voc("PASCAL VOC", root, files, difficult)


def _voc_years(root: Path, difficult: bool) -> _Found | None:
    """PASCAL VOC as the paper takes it: trains on trainval of 2007 and 2012, test is that of 2007."""
    years = _year_folders(root)
    if len(years) != len(_YEARS):
        return None
    files: dict[str, list[Pair]] = {}
    trained_on = []
    for folder in years:
        pictures = _by_stem(folder / "JPEGImages")
        for part, name in (("train", "trainval"), ("test", "test")):
            file = folder / _LISTS / f"{name}.txt"
            if not file.exists() or (part == "test" and folder.name != _YEARS[0]):
                continue  # the annotations of 2012's test pictures are not public
            files[part] = [*files.get(part, []), *_voc_pairs(folder, _listed(file), pictures)]
            trained_on += [f"{folder.name} {name}"] if part == "train" else []
    return _from_voc(f"PASCAL VOC, train: {' + '.join(trained_on)}", root, files, difficult)


def _from_voc(layout: str, root: Path, files: dict[str, list[Pair]], difficult: bool) -> _Found | None:
    found = _from_xml(layout, root, files, difficult, VOC_OBJECTS)
    return found and found._replace(plus_one=True)


def _year_folders(root: Path) -> list[Path]:
    for parent in (root, root / "VOCdevkit"):
        if years := [parent / year for year in _YEARS if _is_voc(parent / year)]:
            return years
    return []


def _listed(file: Path) -> list[str]:
    """Names of the pictures in a list; none if it is about one class, as ``aeroplane_train.txt`` is."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no list in UTF-8: {error}") from error
    columns = [line.split() for line in lines]
    if all(len(words) == 2 and words[1] in _PRESENCE for words in columns):
        return []
    return [line.removesuffix(Path(line).suffix) if Path(line).suffix.lower() in SUFFIXES else line for line in lines]


def _by_stem(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.iterdir()) if is_picture(path)}


def _voc_pairs(root: Path, names: Sequence[str], pictures: dict[str, Path]) -> list[Pair]:
    """Pictures and annotations of a list; a picture that is not there is named as VOC would."""
    return [
        (pictures.get(name, root / "JPEGImages" / f"{name}.jpg"), root / "Annotations" / f"{name}.xml")
        for name in names
    ]


def _folders(root: Path, difficult: bool) -> _Found | None:
    """Pictures and VOC's XML of the same names in two folders, each in parts, or in both folders of each part."""
    files: dict[str, list[Pair]] = {}
    for part, names in PART_FOLDERS.items():
        for name in names:
            for pictures, annotations in (
                *((root / name / a, root / name / b) for a in _PICTURES for b in _ANNOTATIONS),
                *((root / a / name, root / b / name) for a in _PICTURES for b in _ANNOTATIONS),
            ):
                if part not in files and pictures.is_dir() and _has_xml(annotations):
                    files[part] = list(_same_names(pictures, annotations))
    for a in _PICTURES:
        for b in _ANNOTATIONS:
            if not files and (root / a).is_dir() and _has_xml(root / b):
                files["all"] = list(_same_names(root / a, root / b))
    files = {part: found for part, found in files.items() if found}
    return _from_xml("folders of pictures and annotations", root, files, difficult, ()) if files else None


def _has_xml(folder: Path) -> bool:
    return any(folder.glob("*.xml"))


def _same_names(pictures: Path, annotations: Path) -> Iterator[Pair]:
    found = {p.stem: p for p in sorted(pictures.iterdir()) if is_picture(p) and p.is_file()}
    # what is annotated must be there too: its absence is told when the part is used
    for stem in sorted({*found, *(p.stem for p in annotations.glob("*.xml"))}):
        yield found.get(stem, pictures / f"{stem}.jpg"), annotations / f"{stem}.xml"


def _from_xml(
    layout: str, root: Path, files: dict[str, list[Pair]], difficult: bool, default: Sequence[str]
) -> _Found | None:
    if not files:
        return None
    listed = read_names(root / "classes.txt") if (root / "classes.txt").exists() else None
    names, parts = read_voc_parts(files, listed, default, difficult)
    return _Found(layout, names, parts, files)


def _coco(root: Path, difficult: bool) -> _Found | None:
    """COCO: lists in ``annotations``, pictures in a folder for each."""
    stems = {file.stem.removeprefix("instances_"): file for file in sorted(root.glob("annotations/instances_*.json"))}
    parts = {stem: _part_name(stem) for stem in stems}
    if len(set(parts.values())) < len(parts):  # train2014 and train2017
        parts = {stem: stem for stem in stems}
    return _from_json(
        "COCO", {parts[stem]: (file, _picture_folder(root, stem)) for stem, file in stems.items()}, difficult
    )


def _part_name(stem: str) -> str:
    """``train2017`` is the part train, ``valid`` the part val."""
    name = re.sub(r"\d+$", "", stem)
    return next((part for part, names in PART_FOLDERS.items() if name in names), name or stem)


def _picture_folder(root: Path, stem: str) -> Path:
    folders = [root / stem, root / "images" / stem, root / "images"]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _coco_folders(root: Path, difficult: bool) -> _Found | None:
    """COCO as Roboflow writes it: a folder for each part, in which the list lies beside its pictures."""
    folders = {root / name: part for part, names in PART_FOLDERS.items() for name in reversed(names)}
    lists = {part: (folder / _ROBOFLOW, folder) for folder, part in folders.items() if (folder / _ROBOFLOW).exists()}
    return _from_json("COCO in folders", lists, difficult)


def _from_json(layout: str, lists: dict[str, tuple[Path, Path]], difficult: bool) -> _Found | None:
    """Parts from their lists and folders of pictures."""
    if not lists:
        return None
    read = {part: read_coco_part(file, folder, difficult) for part, (file, folder) in lists.items()}
    (first, (classes, _)), *others = read.items()
    for part, (other, _) in others:
        if other != classes:
            difference = sorted(set(classes) ^ set(other))[0]
            raise DataError(
                f"{lists[first][0]} and {lists[part][0]} differ in category {difference[0]} ({difference[1]}): all "
                "parts need the same categories"
            )
    files = {
        part: [(Path(sample.name), lists[part][0]) for sample in pictures.samples]
        for part, (_, pictures) in read.items()
    }
    names = [name for _, name in classes]
    return _Found(layout, names, {part: pictures for part, (_, pictures) in read.items()}, files)


_LAYOUTS: tuple[Callable[[Path, bool], _Found | None], ...] = (_voc, _voc_years, _coco, _coco_folders, _folders)


def recognise_detection_data(root: Path, difficult: bool = False) -> DetectionData | None:
    """The data set in a folder; None if it is in no known layout. Else as :func:`open_detection_data`."""
    found = next((found for layout in _LAYOUTS if (found := layout(root, difficult))), None)
    return None if found is None else DetectionData(str(root), *found)


def open_detection_data(path: str, *, difficult: bool = False) -> DetectionData:
    """Open the data set at ``path``.

    Recognised: PASCAL VOC, one year or a folder of 2007 and 2012 (then the paper's parts); COCO's lists, in
    ``annotations`` or, as Roboflow writes them, in a folder for each part; and folders ``images`` and ``annotations``
    of VOC's XML files, whole or in parts ``train``, ``val``, ``test``. Classes are those that ``classes.txt`` lists
    (line n is class n - 1; not for COCO, whose lists name them), else VOC's, in its layout, if there are no others,
    else those found, sorted.

    Args:
        path: folder of the set.
        difficult: whether training sees difficult boxes; official training does not.

    Raises:
        DataError: it does not exist, is in no known layout, or an annotation is wrong. Missing files are told of the
            part that is asked for.
    """
    found = recognise_detection_data(data_folder(path), difficult)
    if found is None:
        raise DataError(
            f"data path {path} is in no known layout for detection: it needs PASCAL VOC or COCO as they are unpacked, "
            "or folders images and annotations (XML files of the same names; also in train and val)"
        )
    return found
