"""VGG as the original SSD takes it (Liu et al. 2016, section 3), from timm's networks and torchvision's layers."""

from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG

from dicenet.errors import ConfigError, WeightsError


class VGGPyramid(nn.Module):
    """All maps that SSD predicts from: of VGG, of its dilated layers 6 and 7, and of four or five further ones.

    Args:
        model: a VGG of timm.
        large: for pictures of 512x512, with a further map, in place of 300x300.

    Shape: (N, in_chans, H, W) to six maps, or seven, the largest first: 1/8 of the sides, 1/16, ...
    """

    def __init__(self, model: Any, large: bool) -> None:
        super().__init__()
        self.pretrained_cfg = model.pretrained_cfg
        self.layers = SSDFeatureExtractorVGG(model.features, large)
        self.widths = [512, 1024, 512, *[256] * (4 if large else 3)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps, the largest first."""
        return list(self.layers(x).values())


def vgg_pyramid(name: str, large: bool, **arguments: Any) -> VGGPyramid:
    """The maps of a timm VGG.

    Raises:
        ConfigError: it is none.
        WeightsError: its weights cannot be had.
    """
    if not name.startswith("vgg"):
        raise ConfigError(f"the original SSD's head stands on VGG (vgg16), not on {name}: give another head")
    try:
        return VGGPyramid(timm.create_model(name, **arguments), large)
    except (OSError, RuntimeError) as error:
        if arguments.get("pretrained"):
            raise WeightsError(f"the weights of {name} cannot be fetched or do not fit: {error}") from error
        raise ConfigError(f"{name} cannot be built here: {error}") from error
