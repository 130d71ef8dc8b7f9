"""Pictures in one folder per class: torchvision's ImageFolder layout."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dicenet.data.pictures import is_picture, read_picture
from dicenet.data.samples import Sample, SampleList
from dicenet.errors import DataError


def class_folders(path: Path) -> list[Path]:
    """Folders that can be classes: not hidden, in order of their names."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def is_image_folder(path: Path) -> bool:
    """Whether a folder holds class folders of which one at least has a picture."""
    return path.is_dir() and any(any(is_picture(p) for p in folder.rglob("*")) for folder in class_folders(path))


def read_image_folder(path: Path, class_names: Sequence[str] | None = None) -> SampleList:
    """All pictures of the class folders in ``path``.

    Classes are the folder names in order, or ``class_names`` (of another part), of which some may be missing.

    Raises:
        DataError: a class folder has no picture, or is none of ``class_names``.
    """
    folders = class_folders(path)
    names = list(class_names or map(_text, folders))
    samples = []
    for folder in folders:
        if _text(folder) not in names:
            raise DataError(f"class folder {folder} is none of the classes of the other parts: {', '.join(names[:10])}")
        target = names.index(_text(folder))
        files = sorted(p for p in folder.rglob("*") if is_picture(p) and p.is_file())
        if not files:
            raise DataError(f"class folder {folder} has no pictures: add some or remove the folder")
        samples += [Sample(str(file), partial(read_picture, file), target) for file in files]
    return SampleList(samples, names)


def _text(folder: Path) -> str:
    """The name of a folder as text, bytes that are none escaped."""
    return folder.name.encode("utf-8", "backslashreplace").decode()
