"""The units that networks can be built with (paper, section 6, Table 2): an encoding, then a fusion, each exchangeable.

The encoding filters a map along its dimensions, the fusion mixes the channels:

==================  ====================================  =============================================
name                encoding                              fusion
==================  ====================================  =============================================
``separable``       depth-wise 3x3                        1x1 convolution
``dw_se``           depth-wise 3x3                        squeeze and excite
``dw_pw_se``        depth-wise 3x3                        1x1 convolution, squeeze and excite
``dw_dimfuse``      depth-wise 3x3                        DimFuse (global fusion: there are no branches)
``dimconv_pw``      DimConv                               1x1 convolution of the 3C planes
``dimconv_se``      DimConv                               local fusion, squeeze and excite
``dimconv_pw_se``   DimConv                               1x1 of the 3C planes, squeeze and excite
``dice``            DimConv                               DimFuse: the DiCE unit
==================  ====================================  =============================================

What the paper leaves open is decided so: every convolution has a norm and a PReLU, whatever the unit, so that units
differ in nothing else. A 1x1 convolution behind DimConv reads all 3C planes: section 3.2 counts it so (3 D^2 H W).
Where only squeeze and excite fuses and the channels change, a 1x1 convolution with as many groups as possible changes
them.
"""

from collections.abc import Callable
from math import gcd
from typing import NamedTuple

from torch import Tensor, nn

from dicenet.errors import ConfigError
from dicenet.layers.conv_norm_act import ConvNormAct, NormAct
from dicenet.layers.dice_unit import DiCEUnit
from dicenet.layers.dim_conv import DimConv
from dicenet.layers.dim_fuse import BRANCHES, Excitation, GlobalFusion, LocalFusion

Size = tuple[int, int]


class SqueezeExcite(nn.Module):
    """A map times channel weights from its means (C to C / 4 to C). (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excitation = Excitation(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of x."""
        return x * self.excitation(x)


def _depth_wise(channels: int, stride: int) -> list[nn.Module]:
    return [ConvNormAct(channels, channels, 3, stride, groups=channels)]


def _pooled(stride: int) -> list[nn.Module]:
    """What halves a map in front of DimConv, which has no stride: the average pooling of the official strided unit."""
    return [nn.AvgPool2d(3, stride=stride, padding=1)] if stride > 1 else []


def _dim_conv(channels: int, feature_size: Size, stride: int) -> list[nn.Module]:
    return [*_pooled(stride), DimConv(channels, feature_size), NormAct(BRANCHES * channels)]


def _excited(in_channels: int, out_channels: int) -> list[nn.Module]:
    groups = gcd(in_channels, out_channels)
    match = [] if in_channels == out_channels else [ConvNormAct(in_channels, out_channels, 1, groups=groups)]
    return [*match, SqueezeExcite(out_channels)]


def _dice(channels: int, out_channels: int, feature_size: Size, stride: int) -> list[nn.Module]:
    return [*_pooled(stride), DiCEUnit(channels, out_channels, feature_size)]


class Unit(NamedTuple):
    """One of :data:`UNITS`.

    Attributes:
        text: what it is called in the paper's tables.
        short: what names of networks call it.
        mixes: whether its fusion is a 1x1 convolution.
        layers: (in_channels, out_channels, feature_size, stride) to its layers in order.
    """

    text: str
    short: str
    mixes: bool
    layers: Callable[[int, int, Size, int], list[nn.Module]]


#: The encodings and fusions of Table 2.
UNITS = {
    "separable": Unit(
        "DWise + point-wise", "sep", True, lambda i, o, size, s: [*_depth_wise(i, s), ConvNormAct(i, o, 1)]
    ),
    "dw_se": Unit("DWise + SE", "dwse", False, lambda i, o, size, s: [*_depth_wise(i, s), *_excited(i, o)]),
    "dw_pw_se": Unit(
        "DWise + point-wise + SE",
        "dwpwse",
        True,
        lambda i, o, size, s: [*_depth_wise(i, s), ConvNormAct(i, o, 1), SqueezeExcite(o)],
    ),
    "dw_dimfuse": Unit(
        "DWise + DimFuse", "dwdf", False, lambda i, o, size, s: [*_depth_wise(i, s), GlobalFusion(i, o)]
    ),
    "dimconv_pw": Unit(
        "DimConv + point-wise",
        "dcpw",
        True,
        lambda i, o, size, s: [*_dim_conv(i, size, s), ConvNormAct(BRANCHES * i, o, 1)],
    ),
    "dimconv_se": Unit(
        "DimConv + SE",
        "dcse",
        False,
        lambda i, o, size, s: [*_dim_conv(i, size, s), LocalFusion(i), *_excited(i, o)],
    ),
    "dimconv_pw_se": Unit(
        "DimConv + point-wise + SE",
        "dcpwse",
        True,
        lambda i, o, size, s: [*_dim_conv(i, size, s), ConvNormAct(BRANCHES * i, o, 1), SqueezeExcite(o)],
    ),
    "dice": Unit("DimConv + DimFuse (DiCE)", "dice", False, _dice),
}

#: What may stand in front of a unit (Table 3): (in_channels, out_channels) to the layer.
FIRST_LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "pointwise": lambda i, o: ConvNormAct(i, o, 1),
    "dimfuse": lambda i, o: GlobalFusion(i, o, direct=True),
}


def find_unit(name: str) -> Unit:
    """A unit by its name. Raises ConfigError, naming all, for others."""
    if name not in UNITS:
        raise ConfigError(f"unit {name!r} is unknown: choose one of {', '.join(UNITS)}")
    return UNITS[name]


def unit_layers(name: str, in_channels: int, out_channels: int, feature_size: Size, stride: int = 1) -> list[nn.Module]:
    """The layers of a unit, in order.

    Args:
        name: one of :data:`UNITS`.
        in_channels: at least 4.
        out_channels: channels of the result.
        feature_size: (H, W) of the result, for which DimConv's kernels are made.
        stride: 1 or 2. A depth-wise convolution takes it, DimConv gets a map that was averaged (3x3, stride 2).

    Raises:
        ConfigError: no unit of that name, or too few channels.
    """
    return find_unit(name).layers(in_channels, out_channels, feature_size, stride)


def first_layer(name: str, in_channels: int, out_channels: int) -> nn.Module:
    """The layer in front of a unit: one of :data:`FIRST_LAYERS`. Raises ConfigError for others."""
    if name not in FIRST_LAYERS:
        raise ConfigError(f"first_layer {name!r} is unknown: choose one of {', '.join(FIRST_LAYERS)}")
    return FIRST_LAYERS[name](in_channels, out_channels)
