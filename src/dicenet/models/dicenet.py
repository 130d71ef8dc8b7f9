"""DiCENet, the network of the paper (Table 4), at eleven widths, as timm models ``dicenet_010`` to ``dicenet_300``.

The exact structure is that of the official code (EdgeNets), which the paper leaves out: a strided unit doubles
its input's channels, so a level reaches its width in its first block, and no norm or activation stands between
the two convolutions of the classifier.
"""

from typing import NamedTuple

import torch
from timm.models import generate_default_cfgs

from dicenet.layers import ShuffleBlock
from dicenet.models import figure4
from dicenet.models.network import (
    Head,
    ImgSize,
    Network,
    official_configurations,
    register,
)

__all__ = ["NETWORKS", "WIDTHS", "DiCENet", "Width"]


class Width(NamedTuple):
    """One row of the width table. Multiply-adds and parameters: 224x224, 1000 classes, official counter."""

    scale: float
    stem_channels: int
    stage_channels: tuple[int, int, int]
    head_channels: int
    drop_rate: float
    macs: float  # millions
    parameters: int
    name_of_its_own: str = ""

    @property
    def name(self) -> str:
        """Name of the timm model: the width times 100, three digits."""
        return self.name_of_its_own or f"dicenet_{round(self.scale * 100):03d}"


#: The official table. It comments out 0.1 and 3.0, and no weights are published for 0.1, 2.4 and 3.0.
WIDTHS = (
    Width(0.10, 8, (16, 32, 64), 512, 0.1, 6.49, 548_984),
    Width(0.20, 16, (32, 64, 128), 1024, 0.1, 14.90, 1_130_704),
    Width(0.50, 24, (48, 96, 192), 1024, 0.1, 24.71, 1_214_120),
    Width(0.75, 24, (86, 172, 344), 1024, 0.1, 46.83, 1_495_676),
    Width(1.00, 24, (116, 232, 464), 1024, 0.1, 70.71, 1_805_604),
    Width(1.25, 24, (144, 288, 576), 1024, 0.2, 98.11, 2_162_888),
    Width(1.50, 24, (176, 352, 704), 1024, 0.2, 135.48, 2_652_200),
    Width(1.75, 24, (210, 420, 840), 1024, 0.2, 182.24, 3_264_932),
    Width(2.00, 24, (244, 488, 976), 1024, 0.2, 236.29, 3_979_044),
    Width(2.40, 24, (278, 556, 1112), 1280, 0.2, 297.94, 5_113_628),
    Width(3.00, 48, (384, 768, 1536), 2048, 0.2, 553.83, 9_363_600),
)
#: A width that the official table does not have, chosen by us: the medium DiCE network of the paper's Table 1, beside
#: ShuffleNetV2 (122 M there). The small one is dicenet_075, the large one dicenet_240.
OUR_WIDTHS = (Width(166 / 116, 24, (166, 332, 664), 1024, 0.2, 123.11, 2_488_276, "shufflenetv2_dice_122"),)
NETWORKS = (*WIDTHS, *OUR_WIDTHS)

#: Groups of the first convolution of the classifier.
HEAD_GROUPS = 4


class DiCENet(Network):
    """DiCENet (paper, section 4 and Table 4). Usually built by ``timm.create_model("dicenet_100", ...)``.

    Args:
        row: of :data:`NETWORKS`.
        drop_rate: dropout before the classifier; None takes the official rate of the width.
        num_classes: as the others, see :class:`dicenet.models.network.Network`.

    Shape: (N, in_chans, H, W) to (N, num_classes). H and W may differ from the trained size (dynamic scaling).
    """

    grouped_fan_out = False  # as the official code

    def __init__(
        self,
        row: Width,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: ImgSize = 224,
        stem: str = "standard",
        drop_rate: float | None = None,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            row,
            row.stem_channels,
            stem_pool=True,
            stages=figure4.stages(row.stage_channels, ShuffleBlock),
            head=Head(row.head_channels, HEAD_GROUPS),
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            stem=stem,
            drop_rate=row.drop_rate if drop_rate is None else drop_rate,
            global_pool=global_pool,
            min_crop=0.2 if row.scale <= 1 else 0.08,
            device=device,
            dtype=dtype,
        )
        self.width = row


default_cfgs = generate_default_cfgs(official_configurations(NETWORKS))
register(DiCENet, NETWORKS, globals())
