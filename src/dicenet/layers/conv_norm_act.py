"""Convolution, batch norm and PReLU: the only two compositions that a DiCE network is made of."""

from torch import Tensor, nn

from dicenet.ops import dim_conv, norm_prelu
from dicenet.ops.dim_conv import uses_cpp


def hooked(*modules: nn.Module) -> bool:
    """Whether anybody listens to one of these modules: what is fused does not call them."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


def keeps_size(conv: nn.Module, kernel_size: int, groups: int) -> bool:
    """Whether a convolution still is what the networks here are made of: no bias, and the map keeps its size.

    People replace modules and change their attributes (a dilation, a bias from folding): what is fused reads the
    weight only, and must see that.
    """
    pad = (kernel_size - 1) // 2
    return (
        type(conv) is nn.Conv2d  # not a subclass, which may do anything
        and conv.bias is None
        and conv.kernel_size == (kernel_size, kernel_size)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (pad, pad)
        and conv.padding_mode == "zeros"
        and conv.groups == groups
    )


class NormAct(nn.Module):
    """Batch norm, then a PReLU with one slope per channel. (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate x."""
        if type(self.act) is not nn.PReLU or hooked(self.norm, self.act):
            return self.act(self.norm(x))
        return norm_prelu(x, self.norm, self.act.weight)


class ConvNormAct(NormAct):
    """Convolution without bias (padding keeps the size at stride 1), batch norm, PReLU.

    (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(out_channels)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, (kernel_size - 1) // 2, groups=groups, bias=False
        )

    def _is_depth_branch(self) -> bool:
        conv = self.conv
        return keeps_size(conv, 3, conv.in_channels) and conv.in_channels == conv.out_channels > 1

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise and activate x."""
        # a depth branch alone is a depth-wise convolution, and faster than torch's, above all on small maps
        if self._is_depth_branch() and x.numel() > 0 and uses_cpp(x, self.conv.weight) and not hooked(self.conv):
            return super().forward(dim_conv(x, self.conv.weight, None, None))
        return super().forward(self.conv(x))
