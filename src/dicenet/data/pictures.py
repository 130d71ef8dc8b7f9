"""Decoding any picture into upright 8-bit RGB, or refusing it with the reason."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dicenet.errors import DataError

#: What counts as a picture in a folder. The content decides how a file is read, not this.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")

#: EXIF orientations in which width and height change places.
_TURNED = (5, 6, 7, 8)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB: 16-bit, 32-bit and float ranges are scaled, not clipped; palettes expanded; alpha is dropped."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        if picture.mode.startswith("I;16"):  # the others have no fixed range: the picture's own is taken
            low, high = 0.0, 65535.0
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        return Image.fromarray(((values - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8)).convert("RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def read_picture(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Decode a file, or its content, by content and not by suffix.

    Returns:
        An RGB picture, upright (the EXIF orientation is applied). Of animations the first frame; of pictures
        with transparency the colours as stored, alpha dropped.

    Raises:
        DataError: it cannot be decoded completely, is no picture, is empty, or is larger than 178 megapixels.
            The message starts with ``name`` (by default the path).
    """
    name = name or (str(source) if isinstance(source, str | Path) else "picture")
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    if not content:
        raise DataError(f"{name}: the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return _to_rgb(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:
        # raised by Pillow before memory is taken: a few bytes can declare a picture of any size
        raise DataError(f"{name}: declares more than 178 megapixels: refused") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: is not a picture in a known format") from error
    except Exception as error:  # decoders raise anything when they are fed with damaged files
        raise DataError(f"{name}: is damaged or cut off: {error}") from error


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture in a file, from its header. DataError if that is unreadable."""
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
            return picture.size[::-1] if turned else picture.size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # decoders raise anything when they are fed with damaged files
        raise DataError(f"{path}: is damaged or cut off: {error}") from error


def is_picture(path: Path) -> bool:
    """Whether a path looks like a picture: by suffix, and not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def data_folder(path: str) -> Path:
    """The folder of a data set. Raises DataError if it is none."""
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"data path {path} {'is a file' if root.exists() else 'does not exist'}: give a folder")
    return root


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are given, and all pictures below folders, in order of their names.

    Raises:
        DataError: a path does not exist, or there is no picture at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if is_picture(p) and p.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path} does not exist")
    if not found:
        raise DataError(f"no pictures in {', '.join(map(str, paths))}: looked for {' '.join(SUFFIXES)}")
    return list(dict.fromkeys(found))
