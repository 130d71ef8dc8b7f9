"""ESPNetv2's parts: the EESP unit (depth-wise convolutions of growing dilation) and its down-sampling block."""

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dicenet.errors import ConfigError
from dicenet.layers.conv_norm_act import ConvNormAct, NormAct

#: Branches of a unit, and groups of its 1x1 convolutions.
BRANCHES = 4
#: Channels of the branch that the picture takes.
PICTURE_BRANCH = 3


def dilations(receptive_limit: int) -> tuple[int, ...]:
    """Dilation of each branch: nominal kernels of 3, 5, 7, 9, those above the limit replaced by 3, in order."""
    nominal = (3 + 2 * branch for branch in range(BRANCHES))
    return tuple(sorted((size - 1) // 2 if size <= receptive_limit else 1 for size in nominal))


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm. (N, in_channels, H, W) to (N, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise x."""
        return self.norm(self.conv(x))


class EESP(nn.Module):
    """Extremely efficient spatial pyramid of dilated depth-wise convolutions (ESPNetv2, Mehta et al., section 3.1).

    Args:
        in_channels: a multiple of 4.
        out_channels: a multiple of 4.
        stride: 1 or 2, of the depth-wise convolutions.
        receptive_limit: largest nominal kernel size, see :func:`dilations`.
        reduces: leave out the residual and the last PReLU, as the down-sampling block needs it.

    Shape: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, receptive_limit: int, reduces: bool = False
    ) -> None:
        super().__init__()
        if in_channels % BRANCHES or out_channels % BRANCHES:
            raise ConfigError(f"an EESP unit needs multiples of 4 channels, got {in_channels} and {out_channels}")
        channels = out_channels // BRANCHES
        self.project = ConvNormAct(in_channels, channels, 1, groups=BRANCHES)
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride, dilation, dilation, channels, bias=False)
            for dilation in dilations(receptive_limit)
        )
        self.norm_act = NormAct(out_channels)
        self.expand = ConvNorm(out_channels, out_channels, 1, BRANCHES)
        self.residual = not reduces and stride == 1 and in_channels == out_channels
        self.act = nn.Identity() if reduces else nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Filter x."""
        projected = self.project(x)
        # each branch adds the smaller ones to its own: else large dilations leave a grid
        fused = accumulate(branch(projected) for branch in self.branches)
        y = self.expand(self.norm_act(torch.cat(list(fused), dim=1)))
        return self.act(y + x if self.residual else y)


class DownSampler(nn.Module):
    """Halves the map: its average beside an EESP unit, and the picture itself added, much reduced (ESPNetv2).

    Args:
        in_channels: of the map.
        out_channels: of the result, larger.
        stride: 2, or 1 to keep the map's size (the stem for small pictures).
        receptive_limit: see :class:`EESP`.
        picture_channels: channels of the picture, 0 where none is added.

    Shape: (N, in_channels, H, W), and the picture averaged to the result's size, to
    (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, receptive_limit: int, picture_channels: int
    ) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride, padding=1)
        self.eesp = EESP(in_channels, out_channels - in_channels, stride, receptive_limit, reduces=True)
        self.reinforce = (
            nn.Sequential(ConvNormAct(picture_channels, PICTURE_BRANCH, 3), ConvNorm(PICTURE_BRANCH, out_channels, 1))
            if picture_channels
            else None
        )
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor, picture: Tensor | None = None) -> Tensor:
        """Reduce x."""
        y = torch.cat([self.pool(x), self.eesp(x)], dim=1)
        if self.reinforce is not None and picture is not None:
            y = y + self.reinforce(picture)
        return self.act(y)


def halved(picture: Tensor) -> Tensor:
    """A picture at half its size, as ESPNetv2 reduces it: (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
    return F.avg_pool2d(picture, 3, 2, 1)
