"""DimConv as a layer: the kernels, and dynamic scaling for maps of any size."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dicenet.errors import ConfigError
from dicenet.ops import dim_conv


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Resize (N, C, H, W) to (N, C, height, width) as dynamic scaling does (paper, section 3.3).

    A side that grows is interpolated bilinearly with aligned corners, one that shrinks is averaged adaptively.
    """
    if x.shape[-2] < height or x.shape[-1] < width:
        grown = max(x.shape[-2], height), max(x.shape[-1], width)
        x = F.interpolate(x, grown, mode="bilinear", align_corners=True)
    if x.shape[-2] > height or x.shape[-1] > width:
        x = F.adaptive_avg_pool2d(x, (height, width))
    return x


class DimConv(nn.Module):
    """Dimension-wise convolution with its kernels (paper, section 3.1 and Figure 3).

    The height and width kernels belong to rows and columns, so the layer is made for one map size. A map of
    another size is scaled along the dimension of the branch, convolved, and scaled back (dynamic scaling,
    section 3.3); the depth branch is never scaled.

    Args:
        channels: C.
        feature_size: (H, W) that the height and width kernels are made for.
        kernel_size: k, odd.
        dilation: of the depth, height and width kernels.

    Shape: (N, C, H', W') to (N, 3C, H', W'), order depth, height, width; any H', W' of at least 1.
    """

    def __init__(
        self,
        channels: int,
        feature_size: tuple[int, int],
        kernel_size: int = 3,
        dilation: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, got {kernel_size}: an even one would change the map's size")
        if not isinstance(feature_size, Sequence) or len(feature_size) != 2 or len(dilation) != 3:
            raise ConfigError(
                f"feature_size is (height, width) and dilation has 3 numbers, got {feature_size}, {dilation}"
            )
        if min(channels, *feature_size) < 1:
            raise ConfigError(f"channels {channels} and feature_size {tuple(feature_size)} must be at least 1")
        self.channels = channels
        self.dilation = (dilation[0], dilation[1], dilation[2])
        height, width = feature_size
        self.weight_depth = nn.Parameter(torch.empty(channels, 1, kernel_size, kernel_size))
        self.weight_height = nn.Parameter(torch.empty(height, 1, kernel_size, kernel_size))
        self.weight_width = nn.Parameter(torch.empty(width, 1, kernel_size, kernel_size))
        self.reset_parameters()

    @property
    def feature_size(self) -> tuple[int, int]:
        """(H, W) that the kernels are made for."""
        return self.weight_height.shape[0], self.weight_width.shape[0]

    def reset_parameters(self) -> None:
        """Draw the kernels as the official code does: Kaiming normal, fan-out over all planes."""
        for weight in (self.weight_depth, self.weight_height, self.weight_width):
            nn.init.kaiming_normal_(weight, mode="fan_out")

    def rebase(self, feature_size: tuple[int, int]) -> None:
        """Resize the height and width kernels along their positions to another map size, in place.

        Afterwards maps of that size need no scaling. The result is close to, not equal to, dynamic scaling.
        """
        for name, count in zip(("weight_height", "weight_width"), feature_size, strict=True):
            weight: Tensor = getattr(self, name).data
            positions = weight.flatten(1).t()[None, :, :, None]  # (1, k*k, count, 1)
            resized = resize(positions, count, 1)[0, :, :, 0].t().reshape(count, *weight.shape[1:])
            setattr(
                self,
                name,
                nn.Parameter(resized.contiguous(), requires_grad=getattr(self, name).requires_grad),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Filter x along its three dimensions."""
        height, width = x.shape[-2:]
        trained_height, trained_width = self.feature_size
        if height == trained_height and width == trained_width:
            return dim_conv(x, self.weight_depth, self.weight_height, self.weight_width, self.dilation)
        by_depth = dim_conv(x, self.weight_depth, None, None, self.dilation)
        by_height = dim_conv(resize(x, trained_height, width), None, self.weight_height, None, self.dilation)
        by_width = dim_conv(resize(x, height, trained_width), None, None, self.weight_width, self.dilation)
        return torch.cat([by_depth, resize(by_height, height, width), resize(by_width, height, width)], dim=1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        stored = tuple(
            len(state_dict.get(prefix + name, getattr(self, name))) for name in ("weight_height", "weight_width")
        )
        if stored != self.feature_size:
            error_messages: list[str] = args[-1]
            error_messages.append(
                f"{prefix.rstrip('.')} holds height and width kernels trained for a map of {stored}, this network's "
                f"are for {self.feature_size}: build it with the img_size of the weights, then call "
                "set_input_size() (scales the maps) or rebase() (resizes the kernels)."
            )

    def extra_repr(self) -> str:
        """Sizes for print(module)."""
        kernel_size = self.weight_depth.shape[-1]
        return f"{self.channels}, feature_size={self.feature_size}, kernel_size={kernel_size}, dilation={self.dilation}"
