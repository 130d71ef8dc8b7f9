"""Pictures that show several classes at once: what is known of each, and parts of data sets of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from dicenet.data.boxes import CLIPPED, Array, BoxedPictures
from dicenet.data.masks import MaskedPictures, MaskedSample
from dicenet.data.samples import LoaderSettings, Sample, SampleList, held_out_indices
from dicenet.data.transforms import Transform
from dicenet.errors import DataError

#: Sizes of objects by their area in pixels, as COCO has them: below 32^2, below 96^2, from there on.
SIZES = ("small", "medium", "large")
_LIMITS = (32**2, 96**2)
#: What masks call the pixels that show nothing.
BACKGROUND = "background"


def target_of(labels: Sequence[int] | Array, classes: int, areas: Array | None = None) -> Array:
    """What a picture shows.

    Args:
        labels: (n,) numbers of the classes of its objects.
        classes: C.
        areas: (n,) of the objects, in pixels; None where only the classes are known.

    Returns:
        (4, C) of 8 bits: which classes there are; and which as a small, medium and large object.
    """
    target = np.zeros((1 + len(SIZES), classes), np.uint8)
    target[0, labels] = 1
    if areas is not None:
        target[1 + np.digitize(areas, _LIMITS), labels] = 1
    return target


class LabelledPictures(SampleList):
    """One part of a data set for multi-label classification.

    The targets of its samples are those of :func:`target_of`. ``left_out`` counts objects that could not be used, by
    reason.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        class_names: Sequence[str],
        transform: Transform | None = None,
        left_out: Counter[str] | None = None,
    ) -> None:
        super().__init__(samples, class_names, transform)
        self.left_out = left_out or Counter()

    def pictures_per_class(self) -> Array:
        """(C,) in how many pictures each class is."""
        none = np.zeros(len(self.class_names), np.int64)
        return sum((sample.target[0].astype(np.int64) for sample in self.samples), none)

    def has_labels(self) -> bool:
        """Whether any of its pictures shows a class."""
        return any(sample.target[0].any() for sample in self.samples)

    def loader(self, transform: Transform, train: bool, settings: LoaderSettings) -> Any:
        """Batches, as of a :class:`SampleList`. Raises DataError if there is no picture."""
        if not self.samples:
            raise DataError("there is no picture with labels: nothing can be learned from or judged by")
        return super().loader(transform, train, settings)


def from_boxes(part: BoxedPictures) -> LabelledPictures:
    """Classes and sizes of objects with boxes: difficult ones and crowds count too, as in the official code."""
    classes = len(part.class_names)
    samples = [
        Sample(sample.name, sample.read, target_of(sample.boxes.labels, classes, sample.boxes.area))
        for sample in part.samples
    ]
    left_out = part.left_out()
    left_out.pop(CLIPPED, None)  # their classes are used
    return LabelledPictures(samples, part.class_names, left_out=left_out)


def from_masks(part: MaskedPictures, samples: Iterable[MaskedSample], void: Sequence[int]) -> LabelledPictures:
    """Classes that masks hold. A mask that cannot be read makes a picture that cannot be.

    Args:
        part: of a data set for segmentation.
        samples: those of the part, in its order; its masks are read while they are gone through.
        void: numbers of classes that are none, such as the background.
    """
    names = [name for index, name in enumerate(part.class_names) if index not in void]
    kept = [index for index in range(len(part.class_names)) if index not in void]
    place = {index: number for number, index in enumerate(kept)}
    found = []
    for sample in samples:
        try:
            numbers = np.unique(sample.read_mask())
        except DataError as error:
            found.append(Sample(sample.name, partial(_refuse, str(error)), target_of([], len(names))))
            continue
        labels = [place[number] for number in numbers.tolist() if number in place]  # void is in none
        found.append(Sample(sample.name, sample.read, target_of(labels, len(names))))
    return LabelledPictures(found, names)


def _refuse(reason: str) -> Image.Image:
    raise DataError(reason)


def hold_out(part: LabelledPictures, fraction: float, seed: int) -> tuple[LabelledPictures, LabelledPictures]:
    """Two parts of one, split by chance.

    Raises:
        ConfigError: the fraction is none.
        DataError: there is one picture only, or one of the parts shows no class.
    """
    kept, held_out = held_out_indices(len(part), fraction, seed)
    train, val = (
        LabelledPictures([part.samples[index] for index in indices], part.class_names) for indices in (kept, held_out)
    )
    for found, purpose in ((train, "to learn from"), (val, "to judge by")):
        if not found.has_labels():
            raise DataError(
                f"{len(val)} of {len(part)} pictures are held out, and there is no label {purpose}: give another "
                "--val-fraction or --seed"
            )
    return train, val
