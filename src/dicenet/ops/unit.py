"""The parts of a DiCE unit that more than one module takes part in."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dicenet.ops.dim_conv import uses_cpp


def join_branches(x: Tensor, weight: Tensor) -> Tensor:
    """Local fusion (paper, section 3.2): y = w0 depth + w1 height + w2 width, channel by channel.

    Args:
        x: (N, 3C, H, W): all depth, all height, all width planes.
        weight: (C, 3, 1, 1), of the 1x1 convolution with C groups that this equals after interleaving x.

    Returns:
        (N, C, H, W).
    """
    channels = weight.shape[0]
    if not uses_cpp(x, weight):
        return F.conv2d(F.channel_shuffle(x, 3), weight, groups=channels)
    return torch.ops.dicenet.join_branches(x, weight)


class UnitParts(NamedTuple):
    """The modules and kernels of a DiCE unit, in the order of computation."""

    weight_depth: Tensor
    weight_height: Tensor
    weight_width: Tensor
    norm: nn.BatchNorm2d
    slope: Tensor
    join: Tensor
    joined_norm: nn.BatchNorm2d
    joined_slope: Tensor
    spatial: Tensor
    spatial_norm: nn.BatchNorm2d
    spatial_slope: Tensor
    squeeze: Tensor
    excite: Tensor


def norm_arguments(norm: nn.BatchNorm2d) -> tuple[Tensor | None, ...]:
    """What the C++ operators take of a batch norm in evaluation: weight, bias, mean, var."""
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def dice_unit(x: Tensor, parts: UnitParts) -> Tensor:
    """A whole DiCE unit for inference, (N, C, H, W) to the same shape, in two operators that fold the norms.

    Its kernels fit the map, are 3x3 without dilation, and it has as many outputs as inputs, at least 16.
    """
    ops = torch.ops.dicenet
    table = ops.fold_local(
        parts.weight_depth,
        *norm_arguments(parts.norm),
        parts.slope,
        parts.norm.eps,
        parts.join,
        *norm_arguments(parts.joined_norm),
        parts.joined_slope,
        parts.joined_norm.eps,
    )
    local, means = ops.dice_local(x, table, parts.weight_height, parts.weight_width)
    spatial = ops.fold_spatial(
        parts.spatial, *norm_arguments(parts.spatial_norm), parts.spatial_slope, parts.spatial_norm.eps
    )
    return ops.dice_spatial(local, means, spatial, parts.squeeze, parts.excite)
