"""From a PIL picture to the tensor that a classifier takes, for training and for evaluation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from dicenet.errors import ConfigError

#: Like all transforms here it can be pickled, as processes that are not forked need.
Transform = Callable[[Image.Image], Tensor]
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
_CROP_MODES = ("center", "squash")
AUGMENTATIONS = ("resized-crop", "shift", "none")
#: torchvision's policies of changes of colour and shape.
POLICIES: dict[str, Callable[..., Any]] = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
#: Longer pictures are cut around their centre first: a 300x1 row would otherwise grow to 76,800x256.
_MAX_ASPECT = 16


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input. Saved with the weights, so that predictions prepare theirs alike.

    Attributes:
        input_size: (height, width).
        in_chans: 3 for RGB, 1 for grey.
        mean, std: per channel, of values from 0 to 1.
        interpolation: timm's word: bilinear, bicubic or nearest.
        crop_pct: part of the resized picture that the central crop shows, per side.
        crop_mode: timm's word: ``center``, or ``squash`` to show all of the picture without keeping its aspect.
    """

    input_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.in_chans not in (1, 3):
            raise ConfigError(f"in_chans must be 1 (grey) or 3 (RGB) to read pictures, got {self.in_chans}")
        known = self.interpolation in _INTERPOLATIONS and self.crop_mode in _CROP_MODES
        if not known or not isinstance(self.crop_pct, float | int) or not 0 < self.crop_pct <= 1:
            raise ConfigError(
                f"preprocessing needs interpolation {' or '.join(_INTERPOLATIONS)}, crop_mode center or squash and "
                f"crop_pct above 0 and up to 1, got {self.interpolation}, {self.crop_mode}, {self.crop_pct}"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or not all(isinstance(value, float | int) for value in values):
                raise ConfigError(f"preprocessing needs one number of {name} per channel, got {values!r}")
            values = tuple(values)
            if len(values) != self.in_chans:  # a grey network takes the mean of the colours' statistics
                values = (sum(values) / len(values),) * self.in_chans
            object.__setattr__(self, name, values)

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> "Preprocessing":
        """From timm's pretrained configuration of a network."""
        in_chans, height, width = cfg["input_size"]
        keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
        return cls((height, width), in_chans, **{key: cfg[key] for key in keys})

    def as_config(self) -> dict[str, Any]:
        """For timm's pretrained configuration of a network."""
        cfg = asdict(self)
        return cfg | {"input_size": (cfg.pop("in_chans"), *self.input_size)}


def to_tensor(preprocessing: Preprocessing) -> list[Any]:
    """The last steps of all transforms: a picture of the input size to a normalised (in_chans, height, width)."""
    grey = [v2.Grayscale()] if preprocessing.in_chans == 1 else []
    return [
        *grey,
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
    ]


def resized_and_cropped(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The centre of a picture at the input size: resized until the input covers ``crop_pct`` of it, then cropped.

    ``squash`` resizes it to the input size and nothing else. For a square input the other mode is the usual resize of
    the shorter side to ``int(size / crop_pct)``.
    """
    height, width = preprocessing.input_size
    mode = InterpolationMode(preprocessing.interpolation)
    if preprocessing.crop_mode == "squash":
        return v2.functional.resize(picture, [height, width], mode, antialias=True)
    picture = _limit_aspect(picture)
    scaled_height, scaled_width = (math.floor(side / preprocessing.crop_pct) for side in (height, width))
    scale = max(scaled_height / picture.height, scaled_width / picture.width)
    # the side that decides gets its size exactly, the other is truncated as torchvision does
    size = (
        max(scaled_height, int(scale * picture.height + 1e-6)),
        max(scaled_width, int(scale * picture.width + 1e-6)),
    )
    if size != (picture.height, picture.width):
        picture = v2.functional.resize(picture, list(size), mode, antialias=True)
    return v2.functional.center_crop(picture, [height, width])


def _limit_aspect(picture: Image.Image) -> Image.Image:
    width = min(picture.width, picture.height * _MAX_ASPECT)
    height = min(picture.height, picture.width * _MAX_ASPECT)
    if (width, height) == picture.size:
        return picture
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """PIL RGB picture to (in_chans, height, width), without chance."""
    return v2.Compose([partial(resized_and_cropped, preprocessing=preprocessing), *to_tensor(preprocessing)])


@dataclass(frozen=True)
class Augmentation:
    """What training does to a picture by chance.

    Attributes:
        kind: ``resized-crop`` (random part of the picture, stretched), ``shift`` (moved by up to an eighth of
            the side, edges reflected: for small pictures) or ``none``.
        min_scale: smallest part of the area that a resized crop takes.
        hflip: probability of a mirrored picture.
        policy: changes of colour and shape, one of :data:`POLICIES`; None: none.
    """

    kind: str = "resized-crop"
    min_scale: float = 0.08
    hflip: float = 0.5
    policy: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in AUGMENTATIONS:
            raise ConfigError(f"augmentation {self.kind!r} is unknown: choose one of {', '.join(AUGMENTATIONS)}")
        if self.policy is not None and self.policy not in POLICIES:
            raise ConfigError(f"auto_augment {self.policy!r} is unknown: choose one of {', '.join(POLICIES)}")
        if not 0 < self.min_scale <= 1 or not 0 <= self.hflip <= 1:
            raise ConfigError(
                f"min_scale must be above 0 and up to 1, hflip from 0 to 1, got {self.min_scale} and {self.hflip}"
            )


def training_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """PIL RGB picture to (in_chans, height, width), augmented."""
    height, width = preprocessing.input_size
    steps: list[Any]
    if augmentation.kind == "resized-crop":
        mode = InterpolationMode(preprocessing.interpolation)
        steps = [v2.RandomResizedCrop([height, width], (augmentation.min_scale, 1.0), interpolation=mode)]
    else:
        steps = [partial(resized_and_cropped, preprocessing=preprocessing)]
        if augmentation.kind == "shift":
            padding = [width // 8, height // 8]
            steps.append(v2.RandomCrop([height, width], padding=padding, padding_mode="reflect"))
    if augmentation.hflip:
        steps.append(v2.RandomHorizontalFlip(augmentation.hflip))
    if augmentation.policy:
        steps.append(POLICIES[augmentation.policy](interpolation=InterpolationMode(preprocessing.interpolation)))
    return v2.Compose([*steps, *to_tensor(preprocessing)])
