"""Labels of pictures in CSV files: a path and the names of the classes that the picture shows."""

import csv
import io
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dicenet.data.labels import LabelledPictures, target_of
from dicenet.data.parts import PART_FOLDERS, read_names
from dicenet.data.pictures import SUFFIXES, read_picture
from dicenet.data.samples import Sample
from dicenet.errors import DataError

#: Names of a list of a set without parts.
_WHOLE = ("all", "labels")
#: Stands between labels in a set whose names hold spaces.
_SEPARATOR = ";"


class Row(NamedTuple):
    """A picture of a list, the line that names it, and its labels as they are written."""

    line: int
    picture: Path
    labels: str


def lists_in(root: Path) -> dict[str, Path]:
    """The list of each part in a folder: ``train.csv``, ``val.csv``, ``test.csv``; else ``all.csv`` or ``labels.csv``.

    None at all if there is none.
    """
    lists = {
        part: root / f"{name}.csv"
        for part, names in PART_FOLDERS.items()
        for name in reversed(names)
        if (root / f"{name}.csv").is_file()
    }
    whole = [root / f"{name}.csv" for name in _WHOLE if (root / f"{name}.csv").is_file()]
    return lists or ({"all": whole[0]} if whole else {})


def read_list(file: Path) -> list[Row]:
    """The pictures of a list; paths are relative to its folder. Lines that are empty are passed over.

    The first line is a header if its path has no ending of a picture and names no file.

    Raises:
        DataError: it is no CSV file in UTF-8, a line has not two fields, or a picture is there twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no list in UTF-8: {error.reason}") from error
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        rows = [_row(fields, reader.line_num, file) for fields in reader if any(field.strip() for field in fields)]
    except csv.Error as error:
        raise DataError(f"{file} is no CSV file, see line {reader.line_num}: {error}") from error
    if rows and _is_header(rows[0].picture):
        del rows[0]
    if not rows:
        raise DataError(f"{file} lists no picture: each line needs a path and labels, such as 'a.jpg,cat dog'")
    lines: dict[Path, int] = {}
    for row in rows:
        if row.picture in lines:
            raise DataError(
                f"{file} has the picture {row.picture} in lines {lines[row.picture]} and {row.line}: give all its "
                "labels in one"
            )
        lines[row.picture] = row.line
    return rows


def _row(fields: list[str], line: int, file: Path) -> Row:
    if len(fields) != 2:
        raise DataError(
            f"{file} needs two fields in line {line}, got {len(fields)}: a path, and labels with spaces between them, "
            "such as 'a.jpg,cat dog' ('a.jpg,' without labels)"
        )
    path, labels = (field.strip() for field in fields)
    if not path:
        raise DataError(f"{file} has no path in line {line}: each line needs one, such as 'a.jpg,cat dog'")
    return Row(line, Path(os.path.normpath(file.parent / path)), labels)


def _is_header(picture: Path) -> bool:
    return picture.suffix.lower() not in SUFFIXES and not picture.exists()


def _split(labels: str, separator: str | None) -> list[str]:
    return [name for part in labels.split(separator) if (name := part.strip())]


def read_label_lists(root: Path) -> tuple[list[str], dict[str, LabelledPictures], dict[str, list[Row]]]:
    """Class names, parts and rows of a folder of lists.

    Labels are separated by spaces; or, in a set of which a list has any, by semicolons. Classes are those of
    ``classes.txt``; without it those of the first list there is of train, val and test, sorted.

    Raises:
        DataError: see :func:`read_list`; a label is no class, or there is no label at all. Missing pictures are told
            of the part that is asked for, see :func:`check_pictures`.
    """
    lists = lists_in(root)
    rows = {part: read_list(file) for part, file in lists.items()}
    separator = _SEPARATOR if any(_SEPARATOR in row.labels for found in rows.values() for row in found) else None
    listed = root / "classes.txt"
    first = next(iter(lists))
    if listed.exists():
        names, known_from = read_names(listed), str(listed)
    else:
        names = sorted({name for row in rows[first] for name in _split(row.labels, separator)})
        known_from = f"{lists[first]} (write all classes into {listed})"
    if not names:
        raise DataError(f"{lists[first]} has no label in any line: there is nothing to learn")
    number = {name: index for index, name in enumerate(names)}
    parts = {}
    for part, found in rows.items():
        samples = []
        for row in found:
            labels = _split(row.labels, separator)
            if unknown := [name for name in labels if name not in number]:
                raise DataError(
                    f"{lists[part]} has the label {unknown[0]!r} in line {row.line}: it is not in {known_from}"
                )
            target = target_of([number[name] for name in labels], len(names))
            samples.append(Sample(str(row.picture), partial(read_picture, row.picture), target))
        parts[part] = LabelledPictures(samples, names)
    return names, parts, rows


def check_pictures(file: Path, rows: list[Row]) -> None:
    """Raise DataError if a picture of a list is not there."""
    for row in rows:
        if not row.picture.exists():
            raise DataError(f"picture {row.picture} is missing: {file} names it in line {row.line}")
