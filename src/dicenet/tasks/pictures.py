"""Pictures that predictions are asked for, and the names of what is drawn of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from dicenet.data.pictures import read_picture
from dicenet.errors import DataError


def readable(files: Sequence[Path], errors: dict[str, str]) -> list[tuple[Path, Image.Image]]:
    """The pictures among ``files``; for the others the reason is put into ``errors``."""
    pictures = []
    for file in files:
        try:
            pictures.append((file, read_picture(file)))
        except DataError as error:
            errors[str(file)] = str(error)
    return pictures


def in_batches(
    files: Sequence[Path], batch_size: int, errors: dict[str, str], console: Console
) -> Iterator[list[tuple[Path, Image.Image]]]:
    """The pictures among ``files``, some at a time, with a bar of progress; see :func:`readable`."""
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    for chosen in track(batches, "predicting", console=console, transient=True, disable=not console.is_terminal):
        yield readable(chosen, errors)


class PictureNames:
    """File names for what is drawn of pictures: the picture's own, numbered where two are called alike."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[str] = set()

    def new(self, file: Path, suffix: str = ".jpg") -> Path:
        """A name that was not given before."""
        stem = file.stem[:80]  # what is added must fit into a file name too
        name, number = f"{stem}{suffix}", 1
        while name.lower() in self.taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        self.taken.add(name.lower())
        return self.folder / name
