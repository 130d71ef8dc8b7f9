"""VGG as the original SSD takes it (Liu et al. 2016, section 3), from timm's networks."""

from typing import Any

from torch import Tensor, nn

from dicenet.errors import ConfigError
from dicenet.models.pyramid import build_model


class VGGPyramid(nn.Module):
    """Two maps of a VGG: before its fourth and before its fifth pooling, at 1/8 and 1/16 of the picture's sides.

    Args:
        model: a VGG of timm.

    Shape: (N, in_chans, H, W) to (N, 512, ceil(H / 8), ceil(W / 8)) and (N, 512, ...) of half the size.
    """

    widths = (512, 512)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pretrained_cfg = model.pretrained_cfg
        layers = list(model.features)
        pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        layers[pools[2]].ceil_mode = True  # from 75 pixels to 38, as the original
        self.lower = nn.Sequential(*layers[: pools[3]])
        self.upper = nn.Sequential(*layers[pools[3] : pools[4]])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps, the largest first."""
        lower = self.lower(x)
        return [lower, self.upper(lower)]


def vgg_pyramid(name: str, **arguments: Any) -> VGGPyramid:
    """The maps of a timm VGG.

    Raises:
        ConfigError: it is none, or cannot be built.
        WeightsError: its weights cannot be had.
    """
    if not name.startswith("vgg"):
        raise ConfigError(f"the original SSD's head stands on VGG (vgg16), not on {name}: give another head")
    return VGGPyramid(build_model(name, **arguments))
