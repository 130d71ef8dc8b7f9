"""ShuffleNetV2 with an exchangeable unit (paper, section 5.1; Tables 1 to 3), in two layouts.

``v2`` is ShuffleNetV2's own layout, as torchvision has it; with the separable unit the networks of Table 1 are those of
the ShuffleNetV2 paper. ``figure4`` is that of Figure 4: the strided units of DiCENet and 3, 7, 3 blocks, with a 1x1
convolution to 1280 channels before the pooling, which is ours: of the structures that were counted it is the one that
fits Tables 2 and 3.
"""

from functools import partial
from typing import NamedTuple

import torch
from timm.models import generate_default_cfgs
from torch import nn

from dicenet.errors import ConfigError
from dicenet.layers import ShuffleBlock, StridedShuffleBlock
from dicenet.models import figure4
from dicenet.models.network import (
    Head,
    ImgSize,
    Network,
    Stage,
    check_channels,
    configuration,
    drop_rate_for,
    register,
)

__all__ = ["NETWORKS", "ShuffleNetV2", "ShuffleNetV2Row"]


class ShuffleNetV2Row(NamedTuple):
    """One row of the table. ``channels``: of the first stage. ``macs``: millions, 224x224, 1000 classes, counted."""

    name: str
    layout: str
    unit: str
    channels: int
    macs: float
    first_layer: str = "pointwise"


#: Names hold the multiply-adds that the paper's Table 1 gives. Its DiCE networks are dicenet_075,
#: shufflenetv2_dice_122 (in the table of DiCENets) and dicenet_240.
NETWORKS = (
    ShuffleNetV2Row("shufflenetv2_sep_041", "v2", "separable", 48, 40.48),
    ShuffleNetV2Row("shufflenetv2_sep_146", "v2", "separable", 116, 144.91),
    ShuffleNetV2Row("shufflenetv2_sep_292", "v2", "separable", 176, 295.76),
)

HEAD_CHANNELS = {"v2": 1024, "figure4": 1280}


def _v2_stage(channels: int, repeats: int, unit: str, first_layer: str) -> Stage:
    def build(in_channels: int, stride: int, feature_size: tuple[int, int]) -> list[nn.Module]:
        blocks = [ShuffleBlock(channels, channels, feature_size, unit, first_layer) for _ in range(repeats)]
        return [StridedShuffleBlock(in_channels, channels, feature_size, unit, first_layer), *blocks]

    return Stage(channels, 2, build)


class ShuffleNetV2(Network):
    """ShuffleNetV2 with an exchangeable unit. Usually built by ``timm.create_model("shufflenetv2_sep_146", ...)``.

    Args:
        row: of :data:`NETWORKS`.
        unit: one of :data:`dicenet.layers.UNITS`, in place of the row's.
        channels: of the first stage, even, in place of the row's.
        first_layer: one of :data:`dicenet.layers.FIRST_LAYERS`: what stands in place of each 1x1 convolution of the
            stages outside the units (Table 3).
        layout: ``"v2"`` or ``"figure4"``, in place of the row's.
        drop_rate: dropout before the classifier; None: 0.1 up to 100 M multiply-adds, else 0.2, DiCENet's rule.
        num_classes: as the others, see :class:`dicenet.models.network.Network`.

    Shape: (N, in_chans, H, W) to (N, num_classes).
    """

    def __init__(
        self,
        row: ShuffleNetV2Row,
        unit: str | None = None,
        channels: int | None = None,
        first_layer: str | None = None,
        layout: str | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: ImgSize = 224,
        stem: str = "standard",
        drop_rate: float | None = None,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        unit, first_layer, layout = unit or row.unit, first_layer or row.first_layer, layout or row.layout
        if layout not in HEAD_CHANNELS:
            raise ConfigError(f"layout {layout!r} is unknown: choose one of {', '.join(HEAD_CHANNELS)}")
        # in Figure 4's form, the first block of a stage passes on half of the strided unit's channels, 24
        channels = check_channels(row.channels if channels is None else channels, 32, multiple=2)
        widths = figure4.doubling(channels)
        if layout == "v2":
            stages = [_v2_stage(*pair, unit, first_layer) for pair in zip(widths, figure4.REPEATS, strict=True)]
        else:
            block = partial(ShuffleBlock, unit=unit, first=first_layer)
            stages = figure4.stages(widths, block, unit, first_layer)
        super().__init__(
            row,
            figure4.STEM_CHANNELS,
            stem_pool=True,
            stages=stages,
            head=Head(HEAD_CHANNELS[layout]),
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            stem=stem,
            drop_rate=drop_rate_for(row) if drop_rate is None else drop_rate,
            global_pool=global_pool,
            device=device,
            dtype=dtype,
        )
        self.choices = {"unit": unit, "channels": channels, "first_layer": first_layer, "layout": layout}


default_cfgs = generate_default_cfgs({row.name: configuration() for row in NETWORKS})
register(ShuffleNetV2, NETWORKS, globals())
