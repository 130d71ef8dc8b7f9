"""ESPNetv2 (Mehta et al., CVPR 2019) at five widths, as timm models ``espnetv2_050`` to ``espnetv2_200``.

The network that DiCENet is compared with in the paper's sections 7.2 and 7.3, and whose decoder and detector it takes
over. The structure is that of the official code (EdgeNets), without two parts that are in its checkpoints and compute
nothing: the picture's branch of the last level (which detectors do use), and a PReLU in each down-sampling block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.models import checkpoint_seq, generate_default_cfgs
from torch import Tensor, nn

from dicenet.layers import EESP, ConvNormAct, DownSampler
from dicenet.layers.eesp import BRANCHES, halved
from dicenet.models.network import Head, ImgSize, Network, Stage, official_configurations, register

__all__ = ["NETWORKS", "ESPNetv2", "ESPNetv2Row"]


class ESPNetv2Row(NamedTuple):
    """One row of the width table. Multiply-adds and parameters: 224x224, 1000 classes, as built here."""

    scale: float
    stem_channels: int
    first_channels: int  # of the first stage; each further one has twice as many
    head_channels: int
    macs: float  # millions
    parameters: int

    @property
    def name(self) -> str:
        """Name of the timm model: the width times 100, three digits."""
        return f"espnetv2_{round(self.scale * 100):03d}"


NETWORKS = (
    ESPNetv2Row(0.50, 16, 32, 1024, 29.40, 1_239_722),
    ESPNetv2Row(1.00, 32, 64, 1024, 86.74, 1_666_942),
    ESPNetv2Row(1.25, 32, 80, 1024, 124.42, 1_961_542),
    ESPNetv2Row(1.50, 32, 96, 1024, 169.63, 2_310_190),
    ESPNetv2Row(2.00, 32, 128, 1280, 286.09, 3_491_934),
)

#: EESP units of each stage behind its down-sampling block; receptive limits of the block and of the units.
REPEATS = (0, 3, 7, 3)
LIMITS = ((13, 0), (11, 9), (9, 7), (7, 5))
DROP_RATE = 0.2


def _stage(
    channels: int, repeats: int, limits: tuple[int, int], picture_channels: int, end: list[Callable[[], nn.Module]]
) -> Stage:
    def build(in_channels: int, stride: int, feature_size: tuple[int, int]) -> list[nn.Module]:
        first = DownSampler(in_channels, channels, stride, limits[0], picture_channels)
        return [first, *(EESP(channels, channels, 1, limits[1]) for _ in range(repeats)), *(make() for make in end)]

    return Stage(channels, 2, build)


class ESPNetv2(Network):
    """ESPNetv2. Usually built by ``timm.create_model("espnetv2_100", ...)``.

    Args:
        row: of :data:`NETWORKS`.
        drop_rate: dropout before the classifier.
        picture_to_last: add the picture to the last level too, as the official detectors do, but not the classifiers.
        num_classes: as the others, see :class:`dicenet.models.network.Network`.

    Shape: (N, in_chans, H, W) to (N, num_classes).
    """

    grouped_fan_out = False  # as the official code

    def __init__(
        self,
        row: ESPNetv2Row,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: ImgSize = 224,
        stem: str = "standard",
        drop_rate: float | None = None,
        global_pool: str = "avg",
        picture_to_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        widths = [row.first_channels * 2**level for level in range(4)]
        last, end = widths[-1], row.head_channels
        ends: list[list[Callable[[], nn.Module]]] = [[], [], [], []]
        ends[-1] = [
            lambda: ConvNormAct(last, last, 3, groups=last),
            lambda: ConvNormAct(last, end, 1, groups=BRANCHES),
        ]
        pictures = (in_chans, in_chans, in_chans, in_chans if picture_to_last else 0)
        stages = [_stage(*of_stage) for of_stage in zip(widths, REPEATS, LIMITS, pictures, ends, strict=True)]
        stages[-1] = stages[-1]._replace(channels=end)
        super().__init__(
            row,
            row.stem_channels,
            stem_pool=False,
            stages=stages,
            head=Head(),
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            stem=stem,
            drop_rate=DROP_RATE if drop_rate is None else drop_rate,
            global_pool=global_pool,
            min_crop=0.2 if row.scale <= 1 else 0.08,
            device=device,
            dtype=dtype,
        )
        self.choices = {"picture_to_last": True} if picture_to_last else {}

    def picture_convolutions(self) -> tuple[str, ...]:
        """The stem's, and those of the picture's branches."""
        branches = (f"stages.{index}.0.reinforce.0.conv.weight" for index in range(len(self.stages)))
        return (*super().picture_convolutions(), *(name for name in branches if name in self.state_dict()))

    def _run_level(self, name: str, level: nn.Module, x: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        number = [known for known, _ in self._levels()].index(name)
        if self._strides[number] == 2:
            picture = halved(picture)
        if not name.startswith("stages."):
            return super()._run_level(name, level, x, picture)
        first, *rest = level.children()
        x = first(x, picture)
        if self._checkpoints():
            return checkpoint_seq(rest, x), picture
        for block in rest:
            x = block(x)
        return x, picture


def _configurations() -> dict[str, dict[str, Any]]:
    convolutions = ("stem.conv", *(f"stages.{index}.0.reinforce.0.conv" for index in range(3)))
    return official_configurations(NETWORKS, first_conv=convolutions)


default_cfgs = generate_default_cfgs(_configurations())
register(ESPNetv2, NETWORKS, globals())
