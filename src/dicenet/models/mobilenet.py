"""MobileNet with an exchangeable unit, in two bodies (paper, section 5.1, Table 1 and Figure 4).

``v1`` is MobileNet's own body: units in a chain, thirteen of them, every second one with stride 2 at the start. The
separable rows of Table 1 are published MobileNets of this form. ``figure4`` is that of Figure 4: the stem with pooling
and the strided units that all networks of that figure share, and 3, 7, 3 units.
"""

from functools import partial
from typing import NamedTuple

import torch
from timm.models import generate_default_cfgs
from torch import nn

from dicenet.errors import ConfigError
from dicenet.layers import unit_layers
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

__all__ = ["NETWORKS", "MobileNet", "MobileNetRow"]


class MobileNetRow(NamedTuple):
    """One row of the table. ``macs``: millions, at ``img_size``, 1000 classes, counted.

    ``channels``: of the stem for the v1 body (32 is width 1.0), of the first stage for Figure 4's form.
    """

    name: str
    body: str
    unit: str
    channels: int
    img_size: int
    macs: float


#: Names hold the multiply-adds that the paper's Table 1 gives. The separable rows with the v1 body are published
#: MobileNets at widths 0.25 and 0.75, the middle one at 160 pixels. All other widths are ours: the paper has none.
NETWORKS = (
    MobileNetRow("mobilenet_sep_041", "v1", "separable", 8, 224, 41.03),
    MobileNetRow("mobilenet_sep_162", "v1", "separable", 24, 160, 166.40),
    MobileNetRow("mobilenet_sep_317", "v1", "separable", 24, 224, 325.40),
    MobileNetRow("mobilenet_dice_029", "v1", "dice", 10, 224, 29.58),
    MobileNetRow("mobilenet_dice_167", "v1", "dice", 56, 224, 169.39),
    MobileNetRow("mobilenet_dice_277", "v1", "dice", 90, 224, 276.67),
    MobileNetRow("mobilenet_figure4_sep_041", "figure4", "separable", 52, 224, 42.00),
    MobileNetRow("mobilenet_figure4_sep_162", "figure4", "separable", 118, 224, 162.36),
    MobileNetRow("mobilenet_figure4_sep_317", "figure4", "separable", 170, 224, 319.73),
    MobileNetRow("mobilenet_figure4_dice_029", "figure4", "dice", 64, 224, 29.19),
    MobileNetRow("mobilenet_figure4_dice_167", "figure4", "dice", 292, 224, 167.27),
    MobileNetRow("mobilenet_figure4_dice_277", "figure4", "dice", 444, 224, 279.23),
)

#: Width (in stem channels), units and stride of each stage of the v1 body.
V1_STAGES = ((2, 1, 1), (4, 2, 2), (8, 2, 2), (16, 6, 2), (32, 2, 2))


def _v1_stage(channels: int, repeats: int, stride: int, unit: str) -> Stage:
    def build(in_channels: int, stride: int, feature_size: tuple[int, int]) -> list[nn.Module]:
        blocks = [nn.Sequential(*unit_layers(unit, in_channels, channels, feature_size, stride))]
        for _ in range(repeats - 1):
            blocks.append(nn.Sequential(*unit_layers(unit, channels, channels, feature_size)))
        return list(blocks)

    return Stage(channels, stride, build)


def _block(unit: str, in_channels: int, out_channels: int, feature_size: tuple[int, int]) -> nn.Module:
    return nn.Sequential(*unit_layers(unit, in_channels, out_channels, feature_size))


class MobileNet(Network):
    """MobileNet with an exchangeable unit. Usually built by ``timm.create_model("mobilenet_dice_167", ...)``.

    Args:
        row: of :data:`NETWORKS`.
        unit: one of :data:`dicenet.layers.UNITS`, in place of the row's.
        channels: in place of the row's.
        img_size: in place of the row's.
        drop_rate: dropout before the classifier; None: 0.1 up to 100 M multiply-adds, else 0.2, DiCENet's rule.
        num_classes: as the others, see :class:`dicenet.models.network.Network`.

    Shape: (N, in_chans, H, W) to (N, num_classes).
    """

    def __init__(
        self,
        row: MobileNetRow,
        unit: str | None = None,
        channels: int | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: ImgSize | None = None,
        stem: str = "standard",
        drop_rate: float | None = None,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        unit, channels = unit or row.unit, check_channels(row.channels if channels is None else channels, 4)
        if row.body == "v1":
            stages = [_v1_stage(wide * channels, count, stride, unit) for wide, count, stride in V1_STAGES]
        elif row.body == "figure4":
            stages = figure4.stages(figure4.doubling(channels), partial(_block, unit), unit)
        else:
            raise ConfigError(f"body {row.body!r} is unknown: choose v1 or figure4")
        super().__init__(
            row,
            channels if row.body == "v1" else figure4.STEM_CHANNELS,
            stem_pool=row.body == "figure4",
            stages=stages,
            head=Head(),
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=row.img_size if img_size is None else img_size,
            stem=stem,
            drop_rate=drop_rate_for(row) if drop_rate is None else drop_rate,
            global_pool=global_pool,
            device=device,
            dtype=dtype,
        )
        self.choices = {"unit": unit, "channels": channels}


default_cfgs = generate_default_cfgs({row.name: configuration((row.img_size, row.img_size)) for row in NETWORKS})
register(MobileNet, NETWORKS, globals())
