"""What the folders of parts are called, and how classes are named: the same for all tasks."""

from pathlib import Path

from dicenet.errors import DataError

#: Names that folders of the parts have in the field, the usual one first.
PART_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
#: A file that names class n in line n.
CLASSES_FILE = "classes.txt"


def read_names(path: Path) -> list[str]:
    """Names of classes, one in each line. Raises DataError if one is there twice, or it is no text."""
    return names_in(path.read_bytes(), str(path))


def names_in(content: bytes, where: str) -> list[str]:
    """Names of classes in the content of such a file, which messages call ``where``. Raises DataError as above."""
    try:
        names = content.decode("utf-8").replace("\r\n", "\n").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason}") from error
    if not all(name.strip() for name in names):
        raise DataError(f"{where} has an empty line: each line must name a class")
    if len(set(names)) != len(names):
        raise DataError(f"{where} names a class twice: each line must be another")
    return names
