"""Annotations of objects in PASCAL VOC's XML files."""

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dicenet.data.boxes import OTHER_SIZE, Array, BoxedPictures, BoxedSample, Boxes, within
from dicenet.data.pictures import read_picture, read_size
from dicenet.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")

#: A picture and its annotation.
Pair = tuple[Path, Path]


class Objects(NamedTuple):
    """The n objects of an XML file.

    Attributes:
        names: of their classes.
        boxes: (n, 4) left, top, right, bottom in pixels, counted from 0.
        difficult: (n,) bool.
        size: (width, height) of the picture, if the file gives it.
    """

    names: list[str]
    boxes: Array
    difficult: Array
    size: tuple[float, float] | None


def read_objects(path: Path) -> Objects:
    """Read an annotation. VOC counts pixels from 1: one is subtracted from all four edges, as the official code does.

    Raises:
        DataError: it is not there, or is no annotation of VOC's; the message names the object.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise DataError(f"annotation {path} cannot be read: {error.strerror or error}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: an encoding that is unknown
        raise DataError(f"annotation {path} is no XML: {error}") from error
    if root.tag != "annotation":
        raise DataError(f"{path} is no annotation of PASCAL VOC: it holds <{root.tag}> in place of <annotation>")
    found = root.findall("object")
    names = [_text(element, "name", path) for element in found]
    boxes = [_box(element, name, path) for element, name in zip(found, names, strict=True)]
    difficult = [(element.findtext("difficult") or "0").strip() not in ("0", "") for element in found]
    return Objects(names, np.array(boxes).reshape(-1, 4) - 1, np.array(difficult, bool), _size(root, path))


def _text(element: ElementTree.Element, tag: str, path: Path) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise DataError(f"annotation {path} has an object without <{tag}>: each needs one")
    return text


def _number(text: str | None, what: str, path: Path) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"annotation {path} has {what} {text!r}: a number is needed")
    return number


def _box(element: ElementTree.Element, name: str, path: Path) -> list[float]:
    box = element.find("bndbox")
    if box is None:
        raise DataError(f"annotation {path} has a {name} without <bndbox>: each object needs one")
    return [_number(box.findtext(edge), f"a {name} with {edge}", path) for edge in _CORNERS]


def _size(root: ElementTree.Element, path: Path) -> tuple[float, float] | None:
    """Size as the file gives it; some tools write none, or zeros."""
    given = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    if not all(given):
        return None
    width, height = (_number(text, f"a {side}", path) for text, side in zip(given, ("width", "height"), strict=True))
    return (width, height) if width > 0 and height > 0 else None


def read_voc_parts(
    files: dict[str, list[Pair]], class_names: Sequence[str] | None, default: Sequence[str], difficult: bool
) -> tuple[list[str], dict[str, BoxedPictures]]:
    """Class names and parts from pictures and their annotations.

    A file that is not there is told when its picture is read.

    Args:
        files: of each part.
        class_names: all that there may be; if None, ``default`` if that has all that are found, else those.
        default: names to prefer.
        difficult: whether training sees difficult boxes.

    Raises:
        DataError: an annotation is none, or has a class that ``class_names`` has not; or there is no object at all.
    """
    annotations = dict.fromkeys(annotation for pairs in files.values() for _, annotation in pairs)
    read = {annotation: read_objects(annotation) for annotation in annotations if annotation.exists()}
    found = {name for objects in read.values() for name in objects.names}
    if not class_names and not found:
        raise DataError(f"the annotations of {', '.join(files)} hold no object: there is nothing to detect")
    names = list(class_names or (default if found <= set(default) else sorted(found)))
    index = {name: number for number, name in enumerate(names)}
    checked: dict[Path, tuple[Boxes, Counter[str]]] = {}
    for annotation, picture in {
        annotation: picture for pairs in files.values() for picture, annotation in pairs
    }.items():
        if annotation in read:
            checked[annotation] = _checked(read[annotation], index, picture, annotation)
    return names, {part: _part(pairs, names, checked, difficult) for part, pairs in files.items()}


def _checked(objects: Objects, index: dict[str, int], picture: Path, annotation: Path) -> tuple[Boxes, Counter[str]]:
    """Boxes of a picture, and how many were left out, by reason."""
    if unknown := [name for name in objects.names if name not in index]:
        raise DataError(f"annotation {annotation} has an object of class {unknown[0]!r}: classes.txt does not list it")
    boxes = Boxes.of(objects.boxes, [index[name] for name in objects.names], objects.difficult)
    size = _size_in_file(picture) or objects.size or (math.inf, math.inf)
    kept, counts = within(boxes, *size)
    if objects.size not in (None, size):
        counts[OTHER_SIZE] += 1
    return kept, counts


def _size_in_file(picture: Path) -> tuple[float, float] | None:
    try:
        return read_size(picture)
    except DataError:  # named when it is used; boxes are clipped then, as all are
        return None


def _part(
    pairs: Sequence[Pair], names: list[str], checked: dict[Path, tuple[Boxes, Counter[str]]], difficult: bool
) -> BoxedPictures:
    samples = [
        BoxedSample(
            str(picture),
            partial(read_picture, picture),
            checked[annotation][0],
            tuple(checked[annotation][1].elements()),
        )
        if annotation in checked
        else BoxedSample(str(picture), partial(_refuse, picture, annotation), Boxes.of([], []))
        for picture, annotation in pairs
    ]
    return BoxedPictures(samples, names, difficult=difficult)


def _refuse(picture: Path, annotation: Path) -> Image.Image:
    raise DataError(f"annotation {annotation} is missing: {picture} needs it")
