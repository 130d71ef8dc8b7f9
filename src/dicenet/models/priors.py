"""Prior boxes: what the boxes of a detector are coded relative to (SSD, Liu et al. 2016; official code)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert

from dicenet.errors import ConfigError

#: Smallest and largest side of the official priors, as parts of the picture's side.
SMALLEST, LARGEST = 0.1, 1.05
#: Centres are coded in tenths of a prior's side, sides in fifths of a factor e: SSD's variances 0.1 and 0.2.
CODER = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))


@dataclass(frozen=True)
class PriorSettings:
    """Sizes and shapes of the priors.

    Attributes:
        ratios: for each map, the largest first, the aspect ratios beside 1; each gives a wide and a tall prior.
        scales: smallest side of the priors of each map, and one more for the largest of the last map, as parts of the
            picture's side, ascending. The official ones if None: evenly from 0.1 to 1.05, in whole pixels.
    """

    ratios: tuple[tuple[float, ...], ...]
    scales: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if any(ratio <= 1 for ratios in self.ratios for ratio in ratios):
            raise ConfigError(f"ratios of priors must be above 1 (each gives a wide and a tall one), got {self.ratios}")
        if self.scales is None:
            return
        wanted = len(self.ratios) + 1
        ascending = all(small < large for small, large in zip(self.scales, self.scales[1:], strict=False))
        if len(self.scales) != wanted or not ascending or self.scales[0] <= 0:
            raise ConfigError(
                f"scales of priors (--priors) must be {wanted} ascending parts of the picture's side above 0, got "
                f"{', '.join(f'{scale:g}' for scale in self.scales)}"
            )

    def per_position(self) -> list[int]:
        """Priors at each position of each map: two squares, and two for each ratio."""
        return [2 + 2 * len(ratios) for ratios in self.ratios]

    def sides(self, side: int) -> list[float]:
        """Smallest sides of the priors of each map, and the largest of the last, as parts of a picture's side."""
        if self.scales is not None:
            return list(self.scales)
        first, last, steps = math.ceil(SMALLEST * side), math.ceil(LARGEST * side), len(self.ratios)
        return [int(first + (last - first) * step / steps) / side for step in range(steps + 1)]

    def shapes(self, side: int) -> list[list[tuple[float, float]]]:
        """(width, height) of the priors at each position of each map, as parts of the picture's side."""
        sides = self.sides(side)
        shapes = []
        for ratios, small, large in zip(self.ratios, sides, sides[1:], strict=False):
            of_map = [(small, small), (math.sqrt(small * large),) * 2]
            for root in map(math.sqrt, ratios):
                of_map += [(small * root, small / root), (small / root, small * root)]
            shapes.append(of_map)
        return shapes


def _stride(side: int, level: int, cells: int) -> float:
    """Pixels from one position of a map to the next: exact up to 1/64, then the picture is shared out evenly."""
    return 2.0 ** (3 + level) if level < 4 else side / cells


def _centres(side: int, level: int, cells: int) -> Tensor:
    return (torch.arange(cells, dtype=torch.float64) + 0.5) * _stride(side, level, cells) / side


def prior_boxes(
    settings: PriorSettings, img_size: tuple[int, int], map_sizes: Sequence[tuple[int, int]], first_level: int = 0
) -> Tensor:
    """All priors of a detector, in the order of its results.

    Args:
        settings: sizes and shapes.
        img_size: (height, width) of the pictures; sizes of priors are parts of the shorter side.
        map_sizes: (height, width) of the maps, the largest first.
        first_level: 0 if the first map has an eighth of the picture's size, 1 for a sixteenth.

    Returns:
        (priors, 4), centre x, centre y, width, height as parts of the picture, cut to 0..1: map by map, row by row.
    """
    height, width = img_size
    side = min(img_size)
    boxes = []
    for number, (shapes, (rows, columns)) in enumerate(zip(settings.shapes(side), map_sizes, strict=True)):
        level = number + first_level
        y, x = torch.meshgrid(_centres(height, level, rows), _centres(width, level, columns), indexing="ij")
        centres = torch.stack((x, y), -1).reshape(-1, 1, 2).expand(-1, len(shapes), 2)
        sizes = torch.tensor(shapes, dtype=torch.float64) * torch.tensor([side / width, side / height])
        boxes.append(torch.cat((centres, sizes.expand(len(centres), -1, 2)), -1).reshape(-1, 4))
    return torch.cat(boxes).clamp(0, 1).float()


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) from centre and size to the corners x1, y1, x2, y2."""
    return box_convert(boxes, "cxcywh", "xyxy")


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """What a network should answer for boxes.

    Args:
        boxes: (n, 4) corners.
        priors: (n, 4) centre and size, one for each box.
    """
    return CODER.encode_single(boxes, corners(priors))


def decode(codes: Tensor, priors: Tensor) -> Tensor:
    """Corners (n, 4) of the boxes that a network's answers (n, 4) mean; the reverse of :func:`encode`."""
    return CODER.decode_single(codes, corners(priors))
