"""DimFuse: merges the three branches of DimConv cheaply."""

from math import gcd

import torch.nn.functional as F
from torch import Tensor, nn

from dicenet.errors import ConfigError
from dicenet.layers.conv_norm_act import ConvNormAct, hooked, keeps_size
from dicenet.ops import join_branches, norm_prelu

BRANCHES = 3


class Excitation(nn.Module):
    """Weights between 0 and 1 for the output channels, from the channel means of a map (squeeze and excite).

    Shape: (N, C, H, W) to (N, out_channels, 1, 1). The hidden width is floor(C / 4).
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        if channels < 4:
            raise ConfigError(
                f"a DiCE unit needs at least 4 channels, got {channels}: its excitation has C / 4 of them"
            )
        self.squeeze = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.excite = nn.Conv2d(channels // 4, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Channel weights for x."""
        mean = F.adaptive_avg_pool2d(x, 1)
        return self.excite(self.squeeze(mean).relu()).sigmoid()


class DirectExcitation(nn.Module):
    """As :class:`Excitation`, with one layer instead of two. (N, C, H, W) to (N, out_channels, 1, 1)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.excite = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Channel weights for x."""
        return self.excite(F.adaptive_avg_pool2d(x, 1)).sigmoid()


class LocalFusion(ConvNormAct):
    """Joins the three branches of each channel: a 1x1 convolution with C groups, norm, PReLU (paper, section 3.2).

    Args:
        channels: C; the input has 3C (all depth, all height, all width planes).
        interleave: join plane c of each branch (Figure 3). Without it, each output joins three neighbouring
            planes of the concatenation, an ablation that the official code offers.

    Shape: (N, 3C, H, W) to (N, C, H, W).
    """

    def __init__(self, channels: int, interleave: bool = True) -> None:
        super().__init__(BRANCHES * channels, channels, 1, groups=channels)
        self.interleave = interleave

    def joins(self) -> bool:
        """Whether the result is a weighted sum of plane c of each branch, for every c."""
        return (
            self.interleave
            and keeps_size(self.conv, 1, self.conv.out_channels)
            and self.conv.in_channels == BRANCHES * self.conv.out_channels
            and type(self.act) is nn.PReLU
        )

    def forward(self, x: Tensor) -> Tensor:
        """Join the branches in x."""
        if self.joins() and not hooked(self.conv, self.norm, self.act):
            return norm_prelu(join_branches(x, self.conv.weight), self.norm, self.act.weight)
        return super().forward(F.channel_shuffle(x, BRANCHES) if self.interleave else x)


class GlobalFusion(nn.Module):
    """A 3x3 convolution of a map times channel weights from its means: DimFuse where there are no branches to join.

    Args:
        channels: of the input, at least 4.
        out_channels: of the result. Their greatest common divisor is the number of groups.
        direct: take the weights from the means with one layer; else with two and channels / 4 between, as the
            unit does. The official code does the first where DimFuse stands in place of a 1x1 convolution.

    Shape: (N, channels, H, W) to (N, out_channels, H, W).
    """

    def __init__(self, channels: int, out_channels: int, direct: bool = False) -> None:
        super().__init__()
        self.spatial = ConvNormAct(channels, out_channels, 3, groups=gcd(channels, out_channels))
        self.excitation = (DirectExcitation if direct else Excitation)(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Fuse x."""
        return self.spatial(x) * self.excitation(x)


class DimFuse(nn.Module):
    """Dimension-wise fusion (paper, section 3.2): local fusion, then global fusion of its result.

    Args:
        channels: C; the input has 3C (all depth, all height, all width planes).
        out_channels: channels of the result.
        interleave: see :class:`LocalFusion`.

    Shape: (N, 3C, H, W) to (N, out_channels, H, W).
    """

    def __init__(self, channels: int, out_channels: int, interleave: bool = True) -> None:
        super().__init__()
        self.local = LocalFusion(channels, interleave)
        self.spatial = ConvNormAct(channels, out_channels, 3, groups=gcd(channels, out_channels))
        self.excitation = Excitation(channels, out_channels)

    def joins(self) -> bool:
        """Whether local fusion is a weighted sum of plane c of each branch, for every c."""
        return type(self.local) is LocalFusion and self.local.joins()

    def forward(self, x: Tensor) -> Tensor:
        """Fuse x."""
        x = self.local(x)
        return self.spatial(x) * self.excitation(x)
