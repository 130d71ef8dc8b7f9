"""ResNet with an exchangeable unit in Figure 4's form (paper, section 5.1; Tables 1 to 3): 3, 7, 3 bottlenecks.

The 3x3 convolution of a bottleneck is depth-wise (paper, footnote 2), so the unit stands for it and the 1x1 convolution
behind it. Stem, pooling and strided units are those of all networks of that figure. The head, a 1x1 convolution to 1280
channels before the pooling, is ours: of the structures that were counted it is the one that fits all three tables.
"""

from functools import partial
from typing import NamedTuple

import torch
from timm.models import generate_default_cfgs

from dicenet.layers import BottleneckBlock
from dicenet.models import figure4
from dicenet.models.network import (
    Head,
    ImgSize,
    Network,
    check_channels,
    configuration,
    drop_rate_for,
    register,
)

__all__ = ["NETWORKS", "ResNet", "ResNetRow"]


class ResNetRow(NamedTuple):
    """One row of the table. ``channels``: of the first stage. ``macs``: millions, 224x224, 1000 classes, counted."""

    name: str
    unit: str
    channels: int
    macs: float
    first_layer: str = "pointwise"


#: Names hold the multiply-adds that the paper's Table 1 gives; the widths are ours: the paper has none.
NETWORKS = (
    ResNetRow("resnet_sep_059", "separable", 68, 58.42),
    ResNetRow("resnet_sep_142", "separable", 128, 144.23),
    ResNetRow("resnet_sep_302", "separable", 200, 301.21),
    ResNetRow("resnet_dice_052", "dice", 68, 53.35),
    ResNetRow("resnet_dice_122", "dice", 132, 119.57),
    ResNetRow("resnet_dice_300", "dice", 244, 297.45),
)

HEAD_CHANNELS = 1280


class ResNet(Network):
    """ResNet with an exchangeable unit. Usually built by ``timm.create_model("resnet_dice_122", ...)``.

    Args:
        row: of :data:`NETWORKS`.
        unit: one of :data:`dicenet.layers.UNITS`, in place of the row's.
        channels: of the first stage, a multiple of 4, in place of the row's.
        first_layer: one of :data:`dicenet.layers.FIRST_LAYERS`: what stands in place of each 1x1 convolution of the
            stages outside units and shortcuts (Table 3).
        drop_rate: dropout before the classifier; None: 0.1 up to 100 M multiply-adds, else 0.2, DiCENet's rule.
        num_classes: as the others, see :class:`dicenet.models.network.Network`.

    Shape: (N, in_chans, H, W) to (N, num_classes).
    """

    def __init__(
        self,
        row: ResNetRow,
        unit: str | None = None,
        channels: int | None = None,
        first_layer: str | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: ImgSize = 224,
        stem: str = "standard",
        drop_rate: float | None = None,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        unit, first_layer = unit or row.unit, first_layer or row.first_layer
        channels = check_channels(row.channels if channels is None else channels, 16, multiple=4)
        super().__init__(
            row,
            figure4.STEM_CHANNELS,
            stem_pool=True,
            stages=figure4.stages(
                figure4.doubling(channels),
                partial(BottleneckBlock, unit=unit, first=first_layer),
                unit,
                first_layer,
            ),
            head=Head(HEAD_CHANNELS),
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            stem=stem,
            drop_rate=drop_rate_for(row) if drop_rate is None else drop_rate,
            global_pool=global_pool,
            device=device,
            dtype=dtype,
        )
        self.choices = {"unit": unit, "channels": channels, "first_layer": first_layer}


default_cfgs = generate_default_cfgs({row.name: configuration() for row in NETWORKS})
register(ResNet, NETWORKS, globals())
