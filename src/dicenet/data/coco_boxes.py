"""Annotations of objects in COCO's JSON files."""

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dicenet.data.boxes import Array, BoxedPictures, BoxedSample, Boxes, faults, usable
from dicenet.data.pictures import read_picture, read_size
from dicenet.errors import DataError

_TABLES = ("images", "annotations", "categories")
#: No coordinate or area is as large.
_LARGEST = 1e12

Rows = list[dict[str, Any]]


def read_coco_part(file: Path, folder: Path, difficult: bool) -> tuple[list[tuple[int, str]], BoxedPictures]:
    """Categories (id and name, in order of the ids, which is that of the class indices) and pictures of a list.

    Crowds are marked. Pictures are not opened, except where the list does not give their sizes.

    Args:
        file: the list.
        folder: of the pictures.
        difficult: whether training sees difficult boxes: COCO has none, but keeps them apart as VOC does.

    Raises:
        DataError: it cannot be read or is no list of COCO's instances; the message names the entry.
    """
    images, annotations, categories = _read_tables(file)
    try:
        classes = _classes(categories, file)
        image_ids = _ids(images, "picture", file)
        _ids(annotations, "annotation", file)
        picture_of = _places(annotations, "image_id", image_ids, "picture", file)
        labels = _places(annotations, "category_id", [number for number, _ in classes], "category", file)
        corners, areas = _corners_and_areas(annotations, file)
        crowd = np.array([_is_crowd(row, file) for row in annotations], bool)
        paths = [folder / row["file_name"] for row in images]
    except KeyError as error:
        raise DataError(f"{file} is no list of COCO's instances: an entry has no {error}") from error
    except TypeError as error:
        raise DataError(f"{file} is no list of COCO's instances: {error!r}") from error
    boxes = Boxes.of(corners, labels, None, crowd, areas)
    width, height = _sizes(images, paths, set(picture_of.tolist()))
    boxes, wrong = faults(boxes, width[picture_of], height[picture_of])
    kept = usable(wrong)
    faults_of: defaultdict[int, list[str]] = defaultdict(list)
    for reason, mask in wrong.items():
        for index in picture_of[mask].tolist():
            faults_of[index].append(reason)
    samples = [
        BoxedSample(str(path), partial(read_picture, str(path)), found, tuple(faults_of.get(index, ())))
        for index, (path, found) in enumerate(
            zip(paths, _by_picture(boxes[kept], picture_of[kept], len(images)), strict=True)
        )
    ]
    return classes, BoxedPictures(samples, [name for _, name in classes], difficult=difficult)


def _without_outline(row: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of a list, and nothing here asks for them: they go as soon as they are read."""
    row.pop("segmentation", None)
    return row


def _read_tables(file: Path) -> tuple[Rows, Rows, Rows]:
    try:
        listed = json.loads(file.read_bytes(), object_hook=_without_outline)
    except OSError as error:
        raise DataError(f"COCO's list {file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"COCO's list {file} is no JSON: {error}") from error
    tables = [listed.get(name) if isinstance(listed, dict) else None for name in _TABLES]
    for name, rows in zip(_TABLES, tables, strict=True):
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{file} is no list of COCO's instances: it has no table {name!r}")
    images, annotations, categories = tables
    return images or [], annotations or [], categories or []


def _ids(rows: Rows, what: str, file: Path) -> list[int]:
    """Their ids: whole numbers, each another."""
    seen: set[int] = set()
    for row in rows:
        number = row["id"]
        if type(number) is not int or not -(2**63) <= number < 2**63:
            raise DataError(f"{file} has a {what} with id {number!r}: ids must be whole numbers")
        if number in seen:
            raise DataError(f"{file} has the {what} id {number} twice: each must be another")
        seen.add(number)
    return [row["id"] for row in rows]


def _classes(categories: Rows, file: Path) -> list[tuple[int, str]]:
    _ids(categories, "category", file)
    classes = sorted((row["id"], str(row["name"])) for row in categories)
    names = [name for _, name in classes]
    if not names or len(set(names)) != len(names):
        raise DataError(f"{file} {'names a category twice' if names else 'has no category'}: each class needs a name")
    return classes


def _places(annotations: Rows, key: str, ids: Sequence[int], what: str, file: Path) -> Array:
    """Where in ``ids`` the pictures or categories of the annotations are, (n,)."""
    place = {number: index for index, number in enumerate(ids)}
    places = [place.get(row[key], -1) for row in annotations]
    if -1 in places:
        row = annotations[places.index(-1)]
        raise DataError(f"annotation {row['id']} of {file} has {key} {row[key]!r}: there is no such {what} in the file")
    return np.array(places, np.int64)


def _is_crowd(row: dict[str, Any], file: Path) -> bool:
    mark = row.get("iscrowd", 0)
    if mark not in (0, 1):
        raise DataError(f"annotation {row['id']} of {file} has iscrowd {mark!r}: 0 or 1 is needed")
    return bool(mark)


def _is_number(value: Any) -> bool:
    # json reads NaN and Infinity as well, which lie in no range
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _corners_and_areas(annotations: Rows, file: Path) -> tuple[Array, Array]:
    """Boxes (n, 4), left, top, right, bottom, and the annotated areas (n,)."""
    for row in annotations:
        if not _is_box(row.get("bbox")):
            raise DataError(
                f"annotation {row['id']} of {file} has the bbox {row.get('bbox')}: four numbers are needed, x, y, "
                "width and height"
            )
    boxes = np.array([row["bbox"] for row in annotations], np.float64).reshape(-1, 4)
    sides = boxes[:, 2:]
    given = np.array([row["area"] if _is_number(row.get("area")) else np.nan for row in annotations], np.float64)
    areas = np.where(np.isnan(given), sides.prod(axis=1), given)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + sides], axis=1), areas


def _sizes(images: Rows, paths: Sequence[Path], needed: set[int]) -> tuple[Array, Array]:
    """Widths and heights of all pictures: as listed, else as in the file, if their boxes need it; else infinite."""
    sizes = np.full((len(images), 2), np.inf)
    for index, (row, path) in enumerate(zip(images, paths, strict=True)):
        size: list[Any] = [row.get("width"), row.get("height")]
        if all(map(_is_number, size)) and min(size) > 0:
            sizes[index] = size
        elif index in needed:
            try:
                sizes[index] = read_size(path)
            except DataError:
                continue  # named when it is used; boxes are clipped then, as all are
    return sizes[:, 0], sizes[:, 1]


def _by_picture(boxes: Boxes, picture_of: Array, pictures: int) -> list[Boxes]:
    """The boxes of each picture, in the order of the list."""
    order = np.argsort(picture_of, kind="stable")
    edges = np.searchsorted(picture_of[order], np.arange(pictures + 1)).tolist()
    in_order = boxes[order]
    return [in_order[start:end] for start, end in pairwise(edges)]
