"""Efficient pyramid pooling: what ESPNetv2's and DiCENet's decoders see a map at several scales with."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dicenet.errors import ConfigError
from dicenet.layers.conv_norm_act import ConvNormAct, NormAct

SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
#: No branch sees a map smaller than this, unless its scale is 1.
SMALLEST_BRANCH = 5


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """(height, width) of a branch: sides times ``scale``, rounded up, at least :data:`SMALLEST_BRANCH`."""
    height, width = (max(SMALLEST_BRANCH, math.ceil(side * scale)) for side in size)
    return height, width


class EfficientPyramidPooling(nn.Module):
    """A map projected to few channels, filtered depth-wise at several scales, joined, and expanded again.

    The decoder's part in the official code, which the paper takes over from ESPNetv2 (section 7.2). Scales above 1
    enlarge the map bilinearly with aligned corners and average the result back; scales below do the reverse.

    Args:
        in_channels: of the map.
        channels: of each branch.
        out_channels: of the result.
        scales: of the branches, in descending order.
        last: end with a plain 1x1 convolution with bias (logits); else a norm and PReLU follow it.

    Shape: (N, in_channels, H, W) to (N, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        scales: Sequence[float] = SCALES,
        last: bool = False,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ConfigError(f"pyramid pooling needs at least 1 channel a branch, got {channels}")
        self.scales = tuple(scales)
        self.project = ConvNormAct(in_channels, channels, 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False) for _ in scales
        )
        self.norm_act = NormAct(len(self.scales) * channels)
        self.merge = ConvNormAct(len(self.scales) * channels, channels, 3, groups=channels)
        self.expand = nn.Conv2d(channels, out_channels, 1, bias=last)
        self.out = nn.Identity() if last else NormAct(out_channels)

    def _branch(self, conv: nn.Module, scale: float, x: Tensor) -> Tensor:
        if scale == 1:
            return conv(x)
        (height, width), own = x.shape[2:], scaled_size(x.shape[2:], scale)
        if scale > 1:
            enlarged = F.interpolate(x, own, mode="bilinear", align_corners=True)
            return F.adaptive_avg_pool2d(conv(enlarged), (height, width))
        return F.interpolate(conv(F.adaptive_avg_pool2d(x, own)), (height, width), mode="bilinear", align_corners=True)

    def forward(self, x: Tensor) -> Tensor:
        """Pool x."""
        x = self.project(x)
        pairs = zip(self.branches, self.scales, strict=True)
        x = self.norm_act(torch.cat([self._branch(conv, scale, x) for conv, scale in pairs], dim=1))
        x = self.merge(F.channel_shuffle(x, len(self.scales)))
        return self.out(self.expand(x))
