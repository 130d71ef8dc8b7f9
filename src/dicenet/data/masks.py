"""Pictures with a mask that gives each pixel's class: reading, checking, batching."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from dicenet.data.samples import LoaderSettings, batches, held_out_indices, joined
from dicenet.errors import ConfigError, DataError

#: Class of the pixels that neither training nor judging looks at; as in VOC's and Cityscapes' masks.
IGNORE = 255
_UNKNOWN = 254
MOST_CLASSES = _UNKNOWN
_CODES = 256
#: Pillow's modes of one channel of whole numbers.
_MASK_MODES = ("P", "L", "1", "I", "I;16", "I;16L", "I;16B", "I;16N")

Mask = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class MaskCoding:
    """What the numbers in masks mean.

    Attributes:
        num_classes: classes 0 to num_classes - 1.
        ignored: numbers that mean void; 255 always does.
        ids: class of each number (255: void) where they are not the classes themselves.
    """

    num_classes: int
    ignored: tuple[int, ...] = ()
    ids: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= MOST_CLASSES:
            raise ConfigError(f"masks can tell 1 to {MOST_CLASSES} classes apart, got {self.num_classes}")

    def table(self) -> Mask:
        """Class of each number from 0 to 255."""
        table = np.full(_CODES, _UNKNOWN, np.uint8)
        pairs = self.ids if self.ids is not None else tuple((index, index) for index in range(self.num_classes))
        for number, index in pairs:
            table[number] = index
        for number in (*self.ignored, IGNORE):
            if 0 <= number < _CODES:
                table[number] = IGNORE
        return table


def open_mask(path: Path) -> Any:
    """The numbers of a mask file, (H, W).

    Raises:
        DataError: it cannot be read.
        ConfigError: it has colours in place of numbers.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in _MASK_MODES:
                raise ConfigError(
                    f"mask {path} has colours ({picture.mode}): masks need one channel of class numbers, as grey or "
                    "palette PNGs have it"
                )
            return np.asarray(picture)
    except UnidentifiedImageError as error:
        raise DataError(f"mask {path} is not a picture in a known format") from error
    except ConfigError:
        raise
    except OSError as error:
        raise DataError(f"mask {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # decoders raise anything when they are fed with damaged files
        raise DataError(f"mask {path} is damaged or cut off: {error}") from error


def decode(numbers: Any, coding: MaskCoding, path: Path) -> Mask:
    """Classes of a mask's numbers. Raises ConfigError, naming them, for numbers that are no classes."""
    known = np.clip(numbers, 0, _CODES - 1).astype(np.uint8)
    mask = coding.table()[known]
    outside = known != numbers
    mask[outside] = np.where(np.isin(numbers[outside], coding.ignored), IGNORE, _UNKNOWN)
    wrong = mask == _UNKNOWN
    if wrong.any():
        found = np.unique(np.asarray(numbers)[wrong])
        shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise ConfigError(
            f"mask {path} holds {shown}, the classes are 0 to {coding.num_classes - 1} and {IGNORE} is void: "
            "give --ignore-id for another void number, or list all classes in classes.txt"
        )
    return mask


def read_mask(path: Path, coding: MaskCoding) -> Mask:
    """Classes of a mask file, (H, W), :data:`IGNORE` where it is void."""
    return decode(open_mask(path), coding, path)


def resized_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """A map of classes (H, W), at another size: each pixel takes the class nearest to its centre, as in Pillow."""
    return F.interpolate(labels[None, None].to(torch.uint8), size, mode="nearest-exact")[0, 0]


class MaskedSample(NamedTuple):
    """A picture and its mask. Both are decoded when they are asked for; see :func:`read_mask` for errors."""

    name: str
    read: Callable[[], Image.Image]
    read_mask: Callable[[], Mask]


#: A picture and its mask to the tensors of a batch: (C, H, W) and, for training, (H, W).
PairTransform = Callable[[Image.Image, Mask], tuple[Tensor, Tensor]]


class MaskedPictures(Dataset[dict[str, Any]]):
    """One part of a data set for segmentation."""

    def __init__(
        self, samples: Sequence[MaskedSample], class_names: Sequence[str], transform: PairTransform | None = None
    ) -> None:
        self.samples = samples
        self.class_names = class_names
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        try:
            picture, mask = sample.read(), sample.read_mask()
        except DataError as error:
            return {"name": sample.name, "error": str(error)}
        check_same_size(sample.name, picture, mask)
        assert self.transform is not None
        image, target = self.transform(picture, mask)
        return {"name": sample.name, "image": image, "target": target}

    def loader(self, transform: PairTransform, train: bool, settings: LoaderSettings) -> "DataLoader[Any]":
        """Batches: for training shuffled, of equally large targets; else in order, each target at its own size."""
        data = MaskedPictures(self.samples, self.class_names, transform)
        return batches(data, train, settings, collate_training if train else collate_evaluation)


def check_same_size(name: str, picture: Image.Image, mask: Mask) -> None:
    """Raise ConfigError if a picture and its mask do not lie on each other."""
    if picture.size == mask.shape[::-1]:
        return
    turned = " (the picture is turned upright as its EXIF data says: so must its mask be)"
    raise ConfigError(
        f"{name} is {picture.width}x{picture.height}, its mask {mask.shape[1]}x{mask.shape[0]}: they must have the "
        f"same size{turned if picture.size == mask.shape else ''}"
    )


def collate_training(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: image (N, C, H, W), target (N, H, W), name, and ``errors`` of what could not be read."""
    return joined(items, default_collate)


def collate_evaluation(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same with ``target`` as a list: each is as large as its picture was."""
    return joined(items, list)


def hold_out(part: MaskedPictures, fraction: float, seed: int) -> tuple[MaskedPictures, MaskedPictures]:
    """Two parts of one, split by chance. Raises ConfigError for a fraction that is none, or fewer than 2 pictures."""
    kept, held_out = held_out_indices(len(part), fraction, seed)
    train, val = ([part.samples[index] for index in indices] for indices in (kept, held_out))
    return MaskedPictures(train, part.class_names), MaskedPictures(val, part.class_names)
