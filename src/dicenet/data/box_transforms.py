"""From a picture and its boxes to the tensors that a detection network takes, for training and for evaluation."""

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from dicenet.data.boxes import Boxes, BoxTransform
from dicenet.data.transforms import Preprocessing, Transform, evaluation_transform, to_tensor
from dicenet.errors import ConfigError

_MOST_HUE = 0.5
#: Smallest side of a crop, as a part of the picture's.
_SMALLEST_CROP = 0.3
#: Pictures are held as large as one of the input's aspect would be, or as one this many times as long.
_LONGEST = 4
#: Pictures with a shorter side are not cropped: the crop could have no pixel.
_SMALLEST_TO_CROP = math.ceil(1 / _SMALLEST_CROP)


@dataclass(frozen=True)
class BoxAugmentation:
    """What training does to a picture and its boxes by chance; the defaults are those of SSD, as in the official code.

    Attributes:
        photometric: probability of each change of colours: of brightness, contrast, saturation, hue, order of channels.
        brightness, contrast, saturation: strengths, from 0 to 1: factors lie between 1 - strength and 1 + strength.
        hue: strength, from 0 to 0.5 (half of the circle of hues).
        zoom_out: largest factor of the canvas of mean colour that a picture is placed on; 1 for none.
        zoom_out_p: probability of that.
        iou_crop: whether parts are cut out that hold objects.
        hflip, vflip: probability of a picture mirrored left to right, and upside down.
    """

    photometric: float = 0.5
    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.05
    zoom_out: float = 4.0
    zoom_out_p: float = 0.5
    iou_crop: bool = True
    hflip: float = 0.5
    vflip: float = 0.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name not in ("zoom_out", "iou_crop")):
            most = _MOST_HUE if name == "hue" else 1
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must lie from 0 to {most}, got {getattr(self, name)}")
        if not 1 <= self.zoom_out < math.inf:
            raise ConfigError(f"zoom_out must be at least 1, got {self.zoom_out}")


class ShrinkLarge(v2.Transform):
    """Makes pictures smaller, aspect kept, as far as their smallest crop still fills the input.

    Zooming out of a photograph of 24 megapixels would otherwise take a gigabyte. Of long pictures, such as panoramas,
    crops may come out smaller.
    """

    def __init__(self, input_size: tuple[int, int], interpolation: InterpolationMode) -> None:
        super().__init__()
        self.limits = [math.ceil(side / _SMALLEST_CROP) for side in input_size]
        self.interpolation = interpolation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The new (height, width)."""
        sides = v2.functional.get_size(flat_inputs[0])
        filled = max(limit / side for limit, side in zip(self.limits, sides, strict=True))
        factor = min(1.0, filled, math.sqrt(_LONGEST * math.prod(self.limits) / math.prod(sides)))
        return {"size": [max(1, round(side * factor)) for side in sides]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize the picture or the boxes."""
        return v2.functional.resize(inpt, params["size"], self.interpolation, antialias=True)


class IoUCrop(v2.RandomIoUCrop):
    """SSD's random crop around objects; pictures without any, or a few pixels small, are left as they are."""

    def __init__(self) -> None:
        super().__init__(min_scale=_SMALLEST_CROP)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the crop."""
        (boxes,) = (found for found in flat_inputs if isinstance(found, tv_tensors.BoundingBoxes))
        if not len(boxes) or min(boxes.canvas_size) < _SMALLEST_TO_CROP:
            return {}
        return super().make_params(flat_inputs)


def _other_columns(sample: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(value for name, value in sample.items() if name not in ("image", "boxes"))


def _colors(augmentation: BoxAugmentation) -> list[Any]:
    if not augmentation.photometric:
        return []
    factors = (
        (1 - strength, 1 + strength)
        for strength in (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    )
    return [v2.RandomPhotometricDistort(*factors, (-augmentation.hue, augmentation.hue), p=augmentation.photometric)]


def _zoom_out(augmentation: BoxAugmentation, preprocessing: Preprocessing) -> list[Any]:
    if augmentation.zoom_out == 1 or not augmentation.zoom_out_p:
        return []
    mean = preprocessing.mean if preprocessing.in_chans == 3 else preprocessing.mean * 3
    fill = [round(255 * value) for value in mean]
    return [v2.RandomZoomOut(fill, (1.0, augmentation.zoom_out), augmentation.zoom_out_p)]


def training_box_transform(preprocessing: Preprocessing, augmentation: BoxAugmentation) -> BoxTransform:
    """A picture and its boxes, augmented: (in_chans, *input_size), and boxes in pixels of that.

    Boxes whose centre is cut off are left out, as are those that are narrower than a pixel.
    """
    mode = InterpolationMode(preprocessing.interpolation)
    spatial = v2.Compose(
        [
            ShrinkLarge(preprocessing.input_size, mode),
            *_colors(augmentation),
            *_zoom_out(augmentation, preprocessing),
            *([IoUCrop()] if augmentation.iou_crop else []),
            v2.ClampBoundingBoxes(),  # rounding can put an edge outside, which would cost the box
            v2.SanitizeBoundingBoxes(labels_getter=_other_columns),
            v2.RandomHorizontalFlip(augmentation.hflip),
            *([v2.RandomVerticalFlip(augmentation.vflip)] if augmentation.vflip else []),
            v2.Resize(list(preprocessing.input_size), mode, antialias=True),
            v2.ClampBoundingBoxes(),
        ]
    )
    return partial(_augmented, spatial, v2.Compose(to_tensor(preprocessing)))


def _augmented(
    spatial: v2.Transform, last: Transform, picture: Image.Image, boxes: Boxes
) -> tuple[Tensor, dict[str, Tensor]]:
    columns = boxes.tensors()
    corners = tv_tensors.BoundingBoxes(columns.pop("boxes"), format="XYXY", canvas_size=(picture.height, picture.width))
    sample = spatial({"image": picture, "boxes": corners, **columns})
    image = last(sample.pop("image"))
    return image, {name: column.as_subclass(torch.Tensor) for name, column in sample.items()}


def evaluation_box_transform(preprocessing: Preprocessing) -> BoxTransform:
    """All of a picture at the input size, (in_chans, *input_size), aspect not kept; boxes in pixels as they were."""
    return partial(_prepared, evaluation_transform(replace(preprocessing, crop_mode="squash")))


def _prepared(prepare: Transform, picture: Image.Image, boxes: Boxes) -> tuple[Tensor, dict[str, Tensor]]:
    return prepare(picture), boxes.tensors()
