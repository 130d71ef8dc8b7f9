"""The DiCE unit: DimConv followed by DimFuse."""

from torch import Tensor, nn

from dicenet.layers.conv_norm_act import NormAct
from dicenet.layers.dim_conv import DimConv
from dicenet.layers.dim_fuse import BRANCHES, DimFuse


class DiCEUnit(nn.Module):
    """Dimension-wise convolution, batch norm and PReLU, dimension-wise fusion (paper, section 3). No residual.

    Args:
        in_channels: C, at least 4.
        out_channels: channels of the result.
        feature_size: (H, W) that the height and width kernels are made for; other sizes are scaled.
        kernel_size: of the three dimension-wise convolutions, odd. The spatial fusion is always 3x3.
        dilation: of the depth, height and width kernels.
        interleave: see :class:`DimFuse`.

    Shape: (N, in_channels, H', W') to (N, out_channels, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        feature_size: tuple[int, int],
        kernel_size: int = 3,
        dilation: tuple[int, int, int] = (1, 1, 1),
        interleave: bool = True,
    ) -> None:
        super().__init__()
        self.dim_conv = DimConv(in_channels, feature_size, kernel_size, dilation)
        self.norm_act = NormAct(BRANCHES * in_channels)
        self.dim_fuse = DimFuse(in_channels, out_channels, interleave)

    def forward(self, x: Tensor) -> Tensor:
        """Filter and fuse x."""
        return self.dim_fuse(self.norm_act(self.dim_conv(x)))
