"""From a picture and its mask to the tensors that a segmentation network takes, for training and for evaluation."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from dicenet.data.masks import IGNORE, Mask, PairTransform, resized_labels
from dicenet.data.transforms import Preprocessing, Transform, evaluation_transform, to_tensor
from dicenet.errors import ConfigError


@dataclass(frozen=True)
class MaskAugmentation:
    """What training does to a picture and its mask by chance; the defaults are the official ones for PASCAL VOC.

    Attributes:
        crop_size: (height, width) of the part that training sees.
        min_scale, max_scale: sides are scaled by a factor between these, evenly on a logarithmic scale.
        hflip: probability of a mirrored picture.
        color: strength of changes of brightness, contrast and saturation, from 0 to 1.
    """

    crop_size: tuple[int, int]
    min_scale: float = 0.5
    max_scale: float = 2.0
    hflip: float = 0.5
    color: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= self.max_scale:
            raise ConfigError(
                f"min_scale must be above 0 and not above max_scale, got {self.min_scale} and {self.max_scale}"
            )
        if not 0 <= self.hflip <= 1 or not 0 <= self.color <= 1:
            raise ConfigError(f"hflip and color must lie from 0 to 1, got {self.hflip} and {self.color}")
        if min(self.crop_size) < 1:
            raise ConfigError(f"crop_size must be at least 1 on both sides, got {self.crop_size}")


class RandomScale(v2.Transform):
    """Scales a picture (Lanczos) and its mask (nearest) by a factor drawn evenly on a logarithmic scale."""

    def __init__(self, min_scale: float, max_scale: float) -> None:
        super().__init__()
        self.exponents = math.log2(min_scale), math.log2(max_scale)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor."""
        height, width = v2.functional.get_size(flat_inputs[0])
        factor = 2 ** torch.empty(()).uniform_(*self.exponents).item()
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Scale one of the two."""
        if isinstance(
            inpt, tv_tensors.Mask
        ):  # torchvision takes the pixel at the corner, half a pixel off the picture's
            return tv_tensors.Mask(resized_labels(inpt.as_subclass(torch.Tensor), tuple(params["size"])))
        return v2.functional.resize(inpt, params["size"], InterpolationMode.LANCZOS, antialias=True)


def training_pair_transform(preprocessing: Preprocessing, augmentation: MaskAugmentation) -> PairTransform:
    """A picture and its mask, augmented: (in_chans, *crop_size) and (*crop_size).

    Where a scaled picture is smaller than the crop, black and void surround it.
    """
    color = (augmentation.color,) * 3
    spatial = v2.Compose(
        [
            v2.RandomHorizontalFlip(augmentation.hflip),
            RandomScale(augmentation.min_scale, augmentation.max_scale),
            v2.RandomCrop(augmentation.crop_size, pad_if_needed=True, fill={tv_tensors.Mask: IGNORE, "others": 0}),
        ]
    )
    last = v2.Compose([*([v2.ColorJitter(*color)] if augmentation.color else []), *to_tensor(preprocessing)])
    return partial(_augmented, spatial, last)


def _augmented(spatial: v2.Transform, last: Transform, picture: Image.Image, mask: Mask) -> tuple[Tensor, Tensor]:
    picture, target = spatial(picture, tv_tensors.Mask(torch.from_numpy(mask)))
    return last(picture), target.as_subclass(torch.Tensor).long()


def evaluation_pair_transform(preprocessing: Preprocessing) -> PairTransform:
    """A picture at the input size, (in_chans, *input_size), and its mask as large as the picture was."""
    return partial(_prepared, evaluation_transform(preprocessing))


def _prepared(prepare: Transform, picture: Image.Image, mask: Mask) -> tuple[Tensor, Tensor]:
    return prepare(picture), torch.from_numpy(np.ascontiguousarray(mask))
