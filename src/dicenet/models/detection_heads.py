"""SSD heads on maps of a backbone: from maps to the scores and codes of all priors (paper, section 7.1).

The forms that the paper's Table 6 was counted with, and one that small objects are found better with (:data:`HEADS`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from dicenet.layers import ConvNormAct, EfficientPyramidPooling

#: Aspect ratios of the priors beside 1.
_FEW, _MANY = (2.0,), (2.0, 3.0)


class Predictors(nn.Module):
    """A convolution for the scores and one for the boxes of each map's priors, joined over the maps.

    Args:
        channels: of the maps.
        per_position: priors at each position of each map.
        num_scores: classes, with the background.
        make: a convolution from channels to outputs.

    Shape: maps (N, C_i, H_i, W_i) to scores (N, priors, num_scores) and codes (N, priors, 4): map by map, row by row.
    """

    def __init__(
        self,
        channels: Sequence[int],
        per_position: Sequence[int],
        num_scores: int,
        make: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        pairs = list(zip(channels, per_position, strict=True))
        self.num_scores = num_scores
        self.scores = nn.ModuleList(make(wide, count * num_scores) for wide, count in pairs)
        self.boxes = nn.ModuleList(make(wide, count * 4) for wide, count in pairs)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores and codes of all priors."""
        scores = [_rows(conv(x), self.num_scores) for conv, x in zip(self.scores, maps, strict=True)]
        boxes = [_rows(conv(x), 4) for conv, x in zip(self.boxes, maps, strict=True)]
        return torch.cat(scores, 1), torch.cat(boxes, 1)


def _rows(x: Tensor, size: int) -> Tensor:
    """(N, priors * size, H, W) to (N, H * W * priors, size)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, size)


def _pointwise(channels: int, outputs: int) -> nn.Module:
    return nn.Conv2d(channels, outputs, 1)


def _separable(channels: int, outputs: int) -> nn.Module:
    return nn.Sequential(ConvNormAct(channels, channels, 3, groups=channels), nn.Conv2d(channels, outputs, 1))


class SSDHead(nn.Module):
    """From a backbone's maps to scores and codes: its maps, which the priors lie on, and the predictors on them."""

    predictors: Predictors

    def maps(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The maps that are predicted from, the largest first."""
        raise NotImplementedError

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores (N, priors, classes with the background) and codes (N, priors, 4)."""
        return self.predictors(self.maps(pyramid))


# -- espnet


class GlobalMap(nn.Sequential):
    """The mean of a map, through a 1x1 convolution and a ReLU: the 1x1 map of the largest priors."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.ReLU())


def _halving(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        ConvNormAct(in_channels, in_channels, 3, 2, groups=in_channels), ConvNormAct(in_channels, out_channels, 1)
    )


class ESPNetHead(SSDHead):
    """ESPNetv2's detector, on any backbone (official code; the paper's Table 6 on ``dicenet_200``).

    Three maps of the backbone and three more; from the second smallest on each is joined, larger by larger, with what
    lies below it, through pyramid pooling.

    Args:
        channels: of the backbone's maps at an eighth, a sixteenth and a thirty-second of the picture.
        per_position: priors at each position of the six maps.
        num_scores: classes, with the background.
    """

    EXTRAS = (512, 256, 128)
    #: Scales of the pyramid pooling, for the smallest map that is joined first.
    SCALES = ((2.0, 1.0), (2.0, 1.0, 0.5), (2.0, 1.0, 0.5, 0.25), (2.0, 1.0, 0.5, 0.25))
    #: Part of a map's channels that a branch of its pyramid pooling has.
    PROJECTED = 5

    def __init__(self, channels: Sequence[int], per_position: Sequence[int], num_scores: int) -> None:
        super().__init__()
        sixth, seventh, eighth = self.EXTRAS
        self.extras = nn.ModuleList(
            (_halving(channels[-1], sixth), _halving(sixth, seventh), GlobalMap(seventh, eighth))
        )
        skipped = [sixth, *reversed(channels)]
        self.fusions = nn.ModuleList(
            EfficientPyramidPooling(below + skip, skip // self.PROJECTED, skip, scales)
            for below, skip, scales in zip([seventh, *skipped], skipped, self.SCALES, strict=False)
        )
        self.predictors = Predictors([*channels, *self.EXTRAS], per_position, num_scores, _pointwise)

    def maps(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The maps that are predicted from, the largest first."""
        maps = list(pyramid)
        for layer in self.extras:
            maps.append(layer(maps[-1]))
        *larger, below, smallest = maps
        joined = [below, smallest]
        for fusion, skip in zip(self.fusions, reversed(larger), strict=True):
            below = F.interpolate(below, skip.shape[2:], mode="bilinear", align_corners=True)
            below = fusion(torch.cat((below, skip), 1))
            joined.insert(0, below)
        return joined


# -- lite


class Unpadded(ConvNormAct):
    """A depth-wise 3x3 convolution with stride 2 and without padding: one position from 3x3 or 4x4.

    Smaller maps are padded to 3x3, so that small pictures have a last map too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, 2, groups=channels)
        self.conv.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Halve x."""
        height, width = x.shape[2:]
        if min(height, width) < 3:
            x = F.pad(x, (0, max(0, 3 - width), 0, max(0, 3 - height)))
        return super().forward(x)


def _halving_depthwise(channels: int, last: bool) -> nn.Module:
    return Unpadded(channels) if last else ConvNormAct(channels, channels, 3, 2, groups=channels)


def _bottleneck(in_channels: int, out_channels: int, last: bool = False) -> nn.Module:
    half = out_channels // 2
    middle = _halving_depthwise(half, last)
    return nn.Sequential(ConvNormAct(in_channels, half, 1), middle, ConvNormAct(half, out_channels, 1))


class LiteHead(SSDHead):
    """A light SSD head of separable predictors: with it ``dicenet_240``, the network that the paper's text names, comes
    within 5 % of Table 6. The structure is ours: the paper does not give one.

    Args: as for :class:`ESPNetHead`.
    """

    TOP, GROUPS, EXTRAS = 1280, 4, (256, 128, 128)

    def __init__(self, channels: Sequence[int], per_position: Sequence[int], num_scores: int) -> None:
        super().__init__()
        *larger, deepest = channels
        # as the first layer of DiCENet's classifier, with a norm
        self.top = ConvNormAct(deepest, self.TOP, 1, groups=math.gcd(self.GROUPS, deepest))
        first, second, third = self.EXTRAS
        self.extras = nn.ModuleList(
            (_bottleneck(self.TOP, first), _bottleneck(first, second), _bottleneck(second, third, last=True))
        )
        self.predictors = Predictors([*larger, self.TOP, *self.EXTRAS], per_position, num_scores, _separable)

    def maps(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The maps that are predicted from, the largest first."""
        *larger, deepest = pyramid
        maps = [*larger, self.top(deepest)]
        for layer in self.extras:
            maps.append(layer(maps[-1]))
        return maps


# -- fpnlite


class FPNLiteHead(SSDHead):
    """Separable predictors of one width on a feature pyramid with a way down (Lin et al. 2017).

    Each map of the backbone is joined with those below it, so that small objects are judged with what surrounds them.

    Args: as for :class:`ESPNetHead`.
    """

    WIDTH, FURTHER = 128, 3

    def __init__(self, channels: Sequence[int], per_position: Sequence[int], num_scores: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvNormAct(wide, self.WIDTH, 1) for wide in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(ConvNormAct(self.WIDTH, self.WIDTH, 3, groups=self.WIDTH), self._pointwise())
            for _ in channels[:-1]
        )
        self.extras = nn.ModuleList(
            nn.Sequential(_halving_depthwise(self.WIDTH, last=step == self.FURTHER - 1), self._pointwise())
            for step in range(self.FURTHER)
        )
        maps = len(channels) + self.FURTHER
        self.predictors = Predictors([self.WIDTH] * maps, per_position, num_scores, _separable)

    def _pointwise(self) -> nn.Module:
        return ConvNormAct(self.WIDTH, self.WIDTH, 1)

    def maps(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The maps that are predicted from, the largest first."""
        *larger, below = [layer(x) for layer, x in zip(self.lateral, pyramid, strict=True)]
        maps = [below]
        for x, layer in zip(reversed(larger), reversed(self.smooth), strict=True):
            below = layer(x + F.interpolate(below, x.shape[2:], mode="nearest"))
            maps.insert(0, below)
        for layer in self.extras:
            maps.append(layer(maps[-1]))
        return maps


# -- ssdlite

_conv = partial(
    Conv2dNormActivation, norm_layer=partial(nn.BatchNorm2d, eps=0.001, momentum=0.03), activation_layer=nn.ReLU6
)


class SSDLiteHead(SSDHead):
    """The head of SSDLite (MobileNetV2, Sandler et al. 2018; forms as torchvision's), on two maps of the backbone.

    Args:
        channels: of the backbone's maps at a sixteenth and a thirty-second of the picture.
        per_position: priors at each position of the six maps.
        num_scores: classes, with the background.
        top: channels that the last map is expanded to before, as the backbone's classifier does; None: it is not.
    """

    EXTRAS = (512, 256, 256, 128)

    def __init__(
        self, channels: Sequence[int], per_position: Sequence[int], num_scores: int, top: int | None = None
    ) -> None:
        super().__init__()
        larger, deepest = channels
        self.top = nn.Identity() if top is None else _conv(deepest, top, 1)
        wide = [top or deepest, *self.EXTRAS]
        self.extras = nn.ModuleList(self._extra(*pair) for pair in zip(wide, self.EXTRAS, strict=False))
        self.predictors = Predictors([larger, *wide], per_position, num_scores, self._predictor)

    @staticmethod
    def _extra(in_channels: int, out_channels: int) -> nn.Module:
        half = out_channels // 2
        return nn.Sequential(
            _conv(in_channels, half, 1), _conv(half, half, 3, stride=2, groups=half), _conv(half, out_channels, 1)
        )

    @staticmethod
    def _predictor(channels: int, outputs: int) -> nn.Module:
        return nn.Sequential(_conv(channels, channels, 3, groups=channels), nn.Conv2d(channels, outputs, 1))

    def maps(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The maps that are predicted from, the largest first."""
        larger, deepest = pyramid
        maps = [larger, self.top(deepest)]
        for layer in self.extras:
            maps.append(layer(maps[-1]))
        return maps


# -- the original


class OriginalHead(SSDHead):
    """The original SSD's, on VGG (Liu et al. 2016, section 3; layers as torchvision's).

    The first map is normalised and scaled, the second goes through layers 6 and 7, dilated; further maps follow, and a
    3x3 convolution predicts from each.

    Args:
        channels: of VGG's maps at an eighth and a sixteenth of the picture.
        per_position: priors at each position of the maps: six, or seven for pictures of 512x512.
        num_scores: classes, with the background.
    """

    #: Middle and outer channels of the further maps, and kernel, stride and padding of their second convolution.
    EXTRAS = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0), (128, 256, 4, 1, 0))
    WIDE, SCALE = 1024, 20.0

    def __init__(self, channels: Sequence[int], per_position: Sequence[int], num_scores: int) -> None:
        super().__init__()
        first, second = channels
        self.scale = nn.Parameter(torch.full((first,), self.SCALE))
        self.top = nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(second, self.WIDE, 3, padding=6, dilation=6),
            nn.ReLU(),
            nn.Conv2d(self.WIDE, self.WIDE, 1),
            nn.ReLU(),
        )
        further = self.EXTRAS[: len(per_position) - 2]
        wide = [self.WIDE, *(outer for _, outer, *_ in further)]
        self.extras = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inner, middle, 1), nn.ReLU(), nn.Conv2d(middle, outer, kernel, stride, padding), nn.ReLU()
            )
            for inner, (middle, outer, kernel, stride, padding) in zip(wide, further, strict=False)
        )
        make = partial(nn.Conv2d, kernel_size=3, padding=1)
        self.predictors = Predictors([first, *wide], per_position, num_scores, make)

    def maps(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The maps that are predicted from, the largest first."""
        first, second = pyramid
        maps = [self.scale[:, None, None] * F.normalize(first), self.top(second)]
        for layer in self.extras:
            maps.append(layer(maps[-1]))
        return maps


class HeadForm(NamedTuple):
    """A kind of head: what it is built by, the maps that it takes, and its priors' aspect ratios.

    Attributes:
        build: from channels, priors at each position, and scores.
        reductions: parts of the picture's side that the backbone's maps have.
        ratios: aspect ratios of the priors of each map.
        img_size: of pictures, unless another is given.
        of_vgg: whether it stands on VGG alone.
    """

    build: Callable[..., SSDHead]
    reductions: tuple[int, ...]
    ratios: tuple[tuple[float, ...], ...]
    img_size: int = 300
    of_vgg: bool = False

    @property
    def first_level(self) -> int:
        """0 if the largest map has an eighth of the picture's size, 1 for a sixteenth."""
        return self.reductions[0].bit_length() - 4


HEADS = {
    "espnet": HeadForm(ESPNetHead, (8, 16, 32), (_MANY,) * 6),
    "lite": HeadForm(LiteHead, (8, 16, 32), (_FEW, _MANY, _MANY, _MANY, _FEW, _FEW)),
    "fpnlite": HeadForm(FPNLiteHead, (8, 16, 32), (_FEW, _MANY, _MANY, _MANY, _FEW, _FEW)),
    "ssdlite": HeadForm(SSDLiteHead, (16, 32), (_MANY,) * 6),
    "ssd300": HeadForm(OriginalHead, (8, 16), (_FEW, _MANY, _MANY, _MANY, _FEW, _FEW), of_vgg=True),
    "ssd512": HeadForm(OriginalHead, (8, 16), (_FEW, _MANY, _MANY, _MANY, _MANY, _FEW, _FEW), 512, of_vgg=True),
}
