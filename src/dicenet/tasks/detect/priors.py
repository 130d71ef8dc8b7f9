"""How well priors fit the boxes of a data set, and sizes that fit better."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import box_iou

from dicenet.data.boxes import BoxedPictures
from dicenet.data.pictures import read_size
from dicenet.data.samples import evenly_spread
from dicenet.errors import DataError
from dicenet.models.detection import DetectionNetwork
from dicenet.models.priors import LARGEST, PriorSettings, corners

#: A box is covered if a prior overlaps it this much.
COVERING_IOU = 0.5
#: Share of the boxes of a class below which other sizes are proposed.
ENOUGH = 0.9
#: Pictures whose boxes are looked at, at most.
_LOOKED_AT = 500
#: Boxes of each class that proposals are made for, at most.
_OF_A_CLASS = 100
#: Bounds of the smallest scale, before scales are moved; by what they are moved, and how often.
_LEAST, _MOST = 0.01, 0.35
_FACTORS, _ROUNDS = (0.8, 0.9, 1.1, 1.25), 3


def relative_boxes(part: BoxedPictures) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) that training sees, as parts of their pictures, and their labels (n,); of 500 pictures at most."""
    boxes, labels = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)]
    for index in evenly_spread(len(part), _LOOKED_AT):
        sample = part.samples[index]
        try:
            width, height = read_size(Path(sample.name))
        except DataError:
            continue  # named when it is used
        found = part.training_boxes(sample.boxes)
        boxes.append(torch.from_numpy(found.boxes) / torch.tensor([width, height, width, height]))
        labels.append(torch.from_numpy(found.labels))
    return torch.cat(boxes).clamp(0, 1), torch.cat(labels)


def coverage(boxes: Tensor, labels: Tensor, priors: Tensor, classes: int) -> list[float | None]:
    """Share of the boxes of each class that a prior overlaps with at least 0.5 (IoU); None for classes without boxes.

    Args:
        boxes: (n, 4) corners as parts of the picture.
        labels: (n,).
        priors: (priors, 4) centre and size.
        classes: number of classes.
    """
    edges = corners(priors)
    best = [box_iou(some, edges).amax(1) for some in boxes.split(100)]
    covered = (torch.cat(best) >= COVERING_IOU) if best and len(boxes) else torch.zeros(0, dtype=torch.bool)
    return [
        covered[labels == label].float().mean().item() if (labels == label).any() else None for label in range(classes)
    ]


def lowest(shares: Sequence[float | None]) -> float:
    """The lowest of known shares; 1 if none is."""
    return min((share for share in shares if share is not None), default=1.0)


def proposed_settings(net: DetectionNetwork, boxes: Tensor, labels: Tensor) -> PriorSettings:
    """Settings like the network's, with scales that cover more boxes on average over the classes.

    From the official scales, and from ones that grow by equal factors, each is moved in turn as long as that helps;
    where nothing helps the official ones stay. The lowest share counts where the averages are equal only: a class that
    no scales suit, as small objects on coarse maps, would otherwise spoil the others.
    """
    boxes, labels = _some_of_each(boxes, labels)
    steps = len(net.prior_settings.ratios)
    small = min((_sides(boxes[labels == label]).quantile(0.1).item() for label in labels.unique()), default=_LEAST)
    first = min(max(small, _LEAST), _MOST)
    assert net.input_size is not None
    official = replace(net.prior_settings, scales=None)
    starts = (
        [first * (LARGEST / first) ** (step / steps) for step in range(steps + 1)],
        official.sides(min(net.input_size)),
    )

    def value(scales: Sequence[float]) -> tuple[float, float]:
        priors = net.priors_of(replace(net.prior_settings, scales=tuple(scales)))
        known = [share for share in coverage(boxes, labels, priors, net.num_classes) if share is not None]
        return round(sum(known), 3), min(known, default=1.0)

    scales = max((_moved(start, value) for start in starts), key=value)
    return replace(net.prior_settings, scales=tuple(round(scale, 4) for scale in scales))


def _moved(scales: list[float], value: Callable[[Sequence[float]], tuple[float, float]]) -> list[float]:
    """Scales of a higher value, each moved in turn."""
    best, steps = value(scales), range(len(scales))
    for step, factor in [(step, factor) for _ in range(_ROUNDS) for step in steps for factor in _FACTORS]:
        moved = [*scales[:step], scales[step] * factor, *scales[step + 1 :]]
        ascending = all(one < other for one, other in itertools.pairwise(moved))
        if ascending and moved[-1] <= LARGEST and (found := value(moved)) > best:
            scales, best = moved, found
    return scales


def _sides(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()


def _some_of_each(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """At most 100 boxes of each class, evenly spread."""
    chosen = [
        (labels == label).nonzero()[:, 0][evenly_spread(int((labels == label).sum()), _OF_A_CLASS)]
        for label in labels.unique()
    ]
    index = torch.cat(chosen) if chosen else labels
    return boxes[index], labels[index]
