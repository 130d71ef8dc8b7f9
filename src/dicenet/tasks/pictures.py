"""Pictures that predictions are asked for, and the names of what is drawn of them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

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
