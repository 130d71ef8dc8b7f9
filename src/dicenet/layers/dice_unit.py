"""The DiCE unit: DimConv followed by DimFuse."""

import torch
from torch import Tensor, nn

from dicenet.layers.conv_norm_act import ConvNormAct, NormAct, hooked, keeps_size
from dicenet.layers.dim_conv import DimConv
from dicenet.layers.dim_fuse import BRANCHES, DimFuse, Excitation
from dicenet.ops.dim_conv import uses_cpp
from dicenet.ops.unit import UnitParts, dice_unit

#: The fused operators take maps of at least one widest vector.
FUSED_CHANNELS = 16


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

    def parts(self) -> UnitParts:
        """Everything that the unit computes with."""
        fuse = self.dim_fuse
        return UnitParts(
            self.dim_conv.weight_depth,
            self.dim_conv.weight_height,
            self.dim_conv.weight_width,
            self.norm_act.norm,
            self.norm_act.act.weight,
            fuse.local.conv.weight,
            fuse.local.norm,
            fuse.local.act.weight,
            fuse.spatial.conv.weight,
            fuse.spatial.norm,
            fuse.spatial.act.weight,
            fuse.excitation.squeeze.weight,
            fuse.excitation.excite.weight,
        )

    def is_plain(self) -> bool:
        """Whether the fused operators know this unit: 3x3 without dilation, interleaved, as many outputs as inputs.

        False too where somebody has replaced or changed one of its modules.
        """
        fuse, pairs = self.dim_fuse, (self.norm_act, self.dim_fuse.local, self.dim_fuse.spatial)
        kinds = ((self.dim_conv, DimConv), (fuse, DimFuse), (fuse.spatial, ConvNormAct), (fuse.excitation, Excitation))
        return (
            all(type(module) is kind for module, kind in kinds)
            and self.dim_conv.weight_depth.shape[-1] == 3
            and self.dim_conv.dilation == (1, 1, 1)
            and fuse.joins()
            and keeps_size(fuse.spatial.conv, 3, self.dim_conv.channels)
            and fuse.spatial.conv.out_channels == self.dim_conv.channels
            and all(keeps_size(conv, 1, 1) for conv in (fuse.excitation.squeeze, fuse.excitation.excite))
            and all(type(p.norm) is nn.BatchNorm2d and p.norm.running_mean is not None for p in pairs)
            and all(type(p.act) is nn.PReLU for p in pairs)
        )

    def _fuses(self, x: Tensor) -> bool:
        return (
            not self.training
            and not torch.is_grad_enabled()
            and x.dim() == 4
            and tuple(x.shape[2:]) == self.dim_conv.feature_size
            and x.shape[1] == self.dim_conv.channels >= FUSED_CHANNELS
            and uses_cpp(x, *(p for p in self.parameters()))
            and self.is_plain()
            and not hooked(*(module for module in self.modules() if module is not self))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Filter and fuse x."""
        if self._fuses(x):
            return dice_unit(x, self.parts())
        return self.dim_fuse(self.norm_act(self.dim_conv(x)))
