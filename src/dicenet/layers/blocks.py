"""The blocks of the paper's Figure 4, with an exchangeable unit: what networks repeat."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dicenet.layers.conv_norm_act import ConvNormAct
from dicenet.layers.units import Size, find_unit, first_layer, unit_layers


class StridedUnit(nn.Module):
    """Halves the map and doubles the channels: a depth-wise branch beside a pooled branch with the unit, shuffled.

    The official code's strided unit; it opens every stage of the networks in Figure 4's form. Where the unit's fusion
    is a 1x1 convolution, no second one follows it.

    Args:
        channels: C of the input.
        feature_size: (H, W) of the output, for which the unit's kernels are made.
        unit: one of :data:`dicenet.layers.units.UNITS`.
        first: what stands in place of each 1x1 convolution outside the unit: one of ``FIRST_LAYERS``.

    Shape: (N, C, H', W') to (N, 2C, ceil(H' / 2), ceil(W' / 2)).
    """

    def __init__(self, channels: int, feature_size: Size, unit: str = "dice", first: str = "pointwise") -> None:
        super().__init__()
        self.left = nn.Sequential(
            ConvNormAct(channels, channels, 3, stride=2, groups=channels),
            first_layer(first, channels, channels),
        )
        self.right = nn.Sequential(
            nn.AvgPool2d(3, stride=2, padding=1),
            *unit_layers(unit, channels, channels, feature_size),
            *([] if find_unit(unit).mixes else [first_layer(first, channels, channels)]),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Reduce x."""
        return F.channel_shuffle(torch.cat([self.left(x), self.right(x)], dim=1), 2)


class ShuffleBlock(nn.Module):
    """Split, transform, shuffle: half of the channels pass, the rest goes through a 1x1 convolution and the unit.

    Args:
        in_channels: of the input; the first ``round(in_channels / 2)`` pass unchanged.
        out_channels: of the result, even.
        feature_size: (H, W) that the unit's kernels are made for.
        unit: one of :data:`dicenet.layers.units.UNITS`.
        first: what stands in front of the unit: one of ``FIRST_LAYERS``.

    Shape: (N, in_channels, H', W') to (N, out_channels, H', W').
    """

    def __init__(
        self, in_channels: int, out_channels: int, feature_size: Size, unit: str = "dice", first: str = "pointwise"
    ) -> None:
        super().__init__()
        self.kept = round(0.5 * in_channels)
        computed = out_channels - self.kept
        self.transform = nn.Sequential(
            first_layer(first, in_channels - self.kept, computed),
            *unit_layers(unit, computed, computed, feature_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform x."""
        kept, rest = x.tensor_split([self.kept], dim=1)
        return F.channel_shuffle(torch.cat([kept, self.transform(rest)], dim=1), 2)


class StridedShuffleBlock(nn.Module):
    """ShuffleNetV2's own strided block: both branches have a 1x1 convolution, so the channels are free.

    Args:
        in_channels: of the input.
        out_channels: of the result, even.
        feature_size: (H, W) of the output, for which the unit's kernels are made.
        unit: of the right branch.
        first: what stands in place of each 1x1 convolution outside the unit: one of ``FIRST_LAYERS``.

    Shape: (N, in_channels, H', W') to (N, out_channels, ceil(H' / 2), ceil(W' / 2)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        feature_size: Size,
        unit: str = "separable",
        first: str = "pointwise",
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.left = nn.Sequential(
            ConvNormAct(in_channels, in_channels, 3, stride=2, groups=in_channels),
            first_layer(first, in_channels, half),
        )
        self.right = nn.Sequential(
            first_layer(first, in_channels, half), *unit_layers(unit, half, half, feature_size, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Reduce x."""
        return F.channel_shuffle(torch.cat([self.left(x), self.right(x)], dim=1), 2)


class BottleneckBlock(nn.Module):
    """ResNet's bottleneck: a 1x1 convolution to a quarter of the channels, the unit back to all, and the input added.

    The unit stands for the 3x3 and the last 1x1 convolution (paper, footnote 2: the 3x3 is depth-wise). Nothing follows
    the addition.

    Args:
        in_channels: of the input; where they differ from the output's, a 1x1 convolution is the shortcut.
        out_channels: of the result, a multiple of 4.
        feature_size: (H, W) that the unit's kernels are made for.
        unit: one of :data:`dicenet.layers.units.UNITS`.
        first: what stands in front of the unit: one of ``FIRST_LAYERS``. The shortcut stays a 1x1 convolution.

    Shape: (N, in_channels, H', W') to (N, out_channels, H', W').
    """

    def __init__(
        self, in_channels: int, out_channels: int, feature_size: Size, unit: str = "dice", first: str = "pointwise"
    ) -> None:
        super().__init__()
        inner = out_channels // 4
        self.transform = nn.Sequential(
            first_layer(first, in_channels, inner), *unit_layers(unit, inner, out_channels, feature_size)
        )
        self.shortcut = nn.Identity() if in_channels == out_channels else ConvNormAct(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x."""
        return self.transform(x) + self.shortcut(x)
