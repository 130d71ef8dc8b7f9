"""Dimension-wise convolution in plain PyTorch operators: the definition that every faster form is tested against.

All functions differentiate and export by themselves, take any odd kernel size, any dilation and rectangular
maps, and keep the size of the map (zero padding on every edge, the channel edge included). A convolution along
one dimension shares nothing between the planes of that dimension: each plane has a k x k kernel of its own
(paper, section 3.1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _plane_conv(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Depth-wise convolution of (N, P, A, B) with one k x k kernel per plane P, size kept."""
    padding = (weight.shape[-1] - 1) // 2 * dilation
    return F.conv2d(x, weight, padding=padding, dilation=dilation, groups=weight.shape[0])


def depth_conv(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Convolve each of the C planes over (H, W). x (N, C, H, W), weight (C, 1, k, k)."""
    return _plane_conv(x, weight, dilation)


def height_conv(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Convolve each of the H planes over (C, W). x (N, C, H, W), weight (H, 1, k, k), last axes (C, W)."""
    return _plane_conv(x.transpose(1, 2), weight, dilation).transpose(1, 2)


def width_conv(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Convolve each of the W planes over (H, C). x (N, C, H, W), weight (W, 1, k, k), last axes (H, C)."""
    return _plane_conv(x.permute(0, 3, 2, 1), weight, dilation).permute(0, 3, 2, 1)


def dim_conv(
    x: Tensor,
    weight_depth: Tensor | None,
    weight_height: Tensor | None,
    weight_width: Tensor | None,
    dilation: tuple[int, int, int] = (1, 1, 1),
) -> Tensor:
    """Concatenate the depth, height and width branches: (N, C, H, W) to (N, 3C, H, W). See ``dicenet.ops.dim_conv``."""
    convolutions = (depth_conv, height_conv, width_conv)
    weights = (weight_depth, weight_height, weight_width)
    branches = [
        convolution(x, weight, step)
        for convolution, weight, step in zip(convolutions, weights, dilation, strict=True)
        if weight is not None
    ]
    return torch.cat(branches, dim=1) if len(branches) > 1 else branches[0]
