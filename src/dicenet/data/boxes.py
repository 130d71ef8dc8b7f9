"""Pictures with boxes around the objects that they show: checking, batching."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dicenet.data.samples import LoaderSettings, batches, held_out_indices, joined
from dicenet.errors import DataError

#: What is counted where it is left out or changed.
WITHOUT_AREA = "boxes without area"
OUTSIDE = "boxes outside the picture"
CLIPPED = "boxes clipped to the picture"
OTHER_SIZE = "annotations that give another size than the picture has: boxes are taken as they are"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Boxes:
    """The n objects of a picture.

    Attributes:
        boxes: (n, 4) float32, left, top, right, bottom in pixels of the upright picture, counted from 0.
        labels: (n,) int64, class index from 0; there is no background class.
        difficult: (n,) bool, objects that VOC's evaluation does not count.
        crowd: (n,) bool, boxes around groups, which COCO's evaluation does not count.
        area: (n,) float32, in pixels of the picture as annotated: of the outline where there is one, else of the box.
    """

    boxes: Array
    labels: Array
    difficult: Array
    crowd: Array
    area: Array

    @classmethod
    def of(cls, boxes: Any, labels: Any, difficult: Any = None, crowd: Any = None, area: Any = None) -> "Boxes":
        """From anything that numpy takes. Without the others: not difficult, no crowds, the area of the box."""
        corners = np.asarray(boxes, np.float32).reshape(-1, 4)
        if area is None:
            area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        return cls(
            corners,
            np.asarray(labels, np.int64),
            np.zeros(len(corners), bool) if difficult is None else np.asarray(difficult, bool),
            np.zeros(len(corners), bool) if crowd is None else np.asarray(crowd, bool),
            np.asarray(area, np.float32),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: Any) -> "Boxes":
        """Those that a slice or a mask (n,) chooses."""
        columns = (self.boxes, self.labels, self.difficult, self.crowd, self.area)
        return Boxes(*(column[chosen] for column in columns))

    def tensors(self) -> dict[str, Tensor]:
        """The same as tensors, by name of the attribute; they share no memory with it."""
        columns = {"boxes": self.boxes, "labels": self.labels, "difficult": self.difficult, "crowd": self.crowd}
        return {name: torch.tensor(column) for name, column in (columns | {"area": self.area}).items()}


def faults(boxes: Boxes, width: Any, height: Any) -> tuple[Boxes, dict[str, Array]]:
    """Boxes clipped to their pictures, and masks (n,) of what is wrong with them, by reason.

    Args:
        boxes: of one picture, or of many.
        width, height: size of the picture, or (n,) of the picture of each box; infinite where it is not known.
    """
    limit = np.stack(np.broadcast_arrays(width, height, width, height), axis=-1)
    clipped = np.clip(boxes.boxes, 0, limit).astype(np.float32)
    without_area = ~_has_area(boxes.boxes)
    outside = ~without_area & ~_has_area(clipped)
    cut = ~without_area & ~outside & (clipped != boxes.boxes).any(axis=1)
    return replace(boxes, boxes=clipped), {WITHOUT_AREA: without_area, OUTSIDE: outside, CLIPPED: cut}


def _has_area(corners: Array) -> Array:
    return (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])


def usable(wrong: Mapping[str, Array]) -> Array:
    """Mask (n,) of the boxes that can be kept, from the result of :func:`faults`."""
    return ~(wrong[WITHOUT_AREA] | wrong[OUTSIDE])


def within(boxes: Boxes, width: float, height: float) -> tuple[Boxes, Counter[str]]:
    """Boxes of one picture clipped to it, those with no area in it left out; and how many there were, by reason."""
    clipped, wrong = faults(boxes, width, height)
    return clipped[usable(wrong)], counted(wrong)


def counted(wrong: Mapping[str, Array]) -> Counter[str]:
    """How many boxes there are of each reason, from the result of :func:`faults`."""
    return Counter({reason: int(mask.sum()) for reason, mask in wrong.items() if mask.any()})


class BoxedSample(NamedTuple):
    """A picture and its boxes. ``read`` decodes it and raises DataError if it cannot.

    ``faults`` holds a reason for each box that was left out or clipped when the set was opened.
    """

    name: str
    read: Callable[[], Image.Image]
    boxes: Boxes
    faults: tuple[str, ...] = ()


#: A picture and its boxes to (C, H, W) and the tensors of :meth:`Boxes.tensors`.
BoxTransform = Callable[[Image.Image, Boxes], tuple[Tensor, dict[str, Tensor]]]


class BoxedPictures(Dataset[dict[str, Any]]):
    """One part of a data set for detection.

    Attributes:
        samples: pictures with their boxes, all of them.
        class_names: in order of the class indices.
        transform: makes tensors of a sample.
        difficult: whether training sees difficult boxes. It never sees crowds.
    """

    def __init__(
        self,
        samples: Sequence[BoxedSample],
        class_names: Sequence[str],
        transform: BoxTransform | None = None,
        *,
        difficult: bool = False,
        _train: bool = False,
    ) -> None:
        self.samples = samples
        self.class_names = class_names
        self.transform = transform
        self.difficult = difficult
        self._train = _train

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        try:
            picture = sample.read()
        except DataError as error:
            return {"name": sample.name, "error": str(error)}
        # annotations may give another size than the picture has
        boxes, _ = within(sample.boxes, *picture.size)
        assert self.transform is not None
        image, target = self.transform(picture, self.training_boxes(boxes) if self._train else boxes)
        target["size"] = torch.tensor([picture.height, picture.width])
        return {"name": sample.name, "image": image, "target": target}

    def training_boxes(self, boxes: Boxes) -> Boxes:
        """Those that training sees: no crowds, and difficult ones only if this part says so."""
        return boxes[~boxes.crowd & (self.difficult | ~boxes.difficult)]

    def left_out(self) -> Counter[str]:
        """How many boxes were left out or clipped when the set was opened, by reason."""
        return Counter(reason for sample in self.samples for reason in sample.faults)

    def only(self, samples: Sequence[BoxedSample]) -> "BoxedPictures":
        """Some of its pictures."""
        return BoxedPictures(samples, self.class_names, self.transform, difficult=self.difficult)

    def without_empty(self) -> "BoxedPictures":
        """The pictures in which training sees a box."""
        return self.only([sample for sample in self.samples if len(self.training_boxes(sample.boxes))])

    def can_be_judged_by(self) -> bool:
        """Whether there is an object that is not a crowd: scores mean something then."""
        return any((~sample.boxes.crowd).any() for sample in self.samples)

    def loader(self, transform: BoxTransform, train: bool, settings: LoaderSettings) -> "DataLoader[Any]":
        """Batches, see :func:`collate_boxes`: for training shuffled; else in order, each picture in one process only.

        Raises:
            DataError: there is no picture.
        """
        if not self.samples:
            raise DataError("there is no picture with boxes: nothing can be learned from or judged by")
        data = BoxedPictures(self.samples, self.class_names, transform, difficult=self.difficult, _train=train)
        return batches(data, train, settings, collate_boxes)


def collate_boxes(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of pictures with boxes; one without any readable picture has ``errors`` only.

    Returns:
        ``image`` (N, C, H, W); ``name``; ``errors``, name to reason, of what could not be read; and ``target``, a list
        of the tensors of each picture: ``boxes`` (n, 4), ``labels``, ``difficult``, ``crowd``, ``area`` (n,) as in
        :class:`Boxes`, and ``size``, its (height, width) before it was transformed. For training boxes
        are in pixels of ``image``, for evaluation in pixels of the picture as it was.
    """
    return joined(items, list)


def hold_out(part: BoxedPictures, fraction: float, seed: int) -> tuple[BoxedPictures, BoxedPictures]:
    """Two parts of one, split by chance.

    Raises:
        ConfigError: the fraction is none.
        DataError: there is one picture only, or one of the parts has no box.
    """
    kept, held_out = held_out_indices(len(part), fraction, seed)
    train, val = (part.only([part.samples[index] for index in indices]) for indices in (kept, held_out))
    for found, purpose in ((len(train.without_empty()), "to learn from"), (val.can_be_judged_by(), "to judge by")):
        if not found:
            raise DataError(
                f"{len(val)} of {len(part)} pictures are held out, and there is no box {purpose}: give another "
                "--val-fraction or --seed"
            )
    return train, val
