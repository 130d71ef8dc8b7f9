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


class DimFuse(nn.Module):
    """Dimension-wise fusion (paper, section 3.2).

    Local fusion joins the three branches of each channel (1x1 convolution with C groups); global fusion is a
    3x3 spatial convolution of the result times channel weights from its means.

    Args:
        channels: C; the input has 3C (all depth, all height, all width planes).
        out_channels: channels of the result.
        interleave: join plane c of each branch (Figure 3). Without it, each output joins three neighbouring
            planes of the concatenation, an ablation that the official code offers.

    Shape: (N, 3C, H, W) to (N, out_channels, H, W).
    """

    def __init__(self, channels: int, out_channels: int, interleave: bool = True) -> None:
        super().__init__()
        self.interleave = interleave
        self.local = ConvNormAct(BRANCHES * channels, channels, 1, groups=channels)
        self.spatial = ConvNormAct(channels, out_channels, 3, groups=gcd(channels, out_channels))
        self.excitation = Excitation(channels, out_channels)

    def joins(self) -> bool:
        """Whether local fusion is a weighted sum of plane c of each branch, for every c."""
        local = self.local
        return (
            self.interleave
            and type(local) is ConvNormAct
            and keeps_size(local.conv, 1, local.conv.out_channels)
            and local.conv.in_channels == BRANCHES * local.conv.out_channels
            and type(local.act) is nn.PReLU
        )

    def forward(self, x: Tensor) -> Tensor:
        """Fuse x."""
        if self.joins() and not hooked(*self.local.modules()):
            x = norm_prelu(join_branches(x, self.local.conv.weight), self.local.norm, self.local.act.weight)
        else:
            x = self.local(F.channel_shuffle(x, BRANCHES) if self.interleave else x)
        return self.spatial(x) * self.excitation(x)
