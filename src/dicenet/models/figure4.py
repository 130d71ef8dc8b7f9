"""What the networks of the paper's Figure 4 share: the stem's width, stages of a strided unit and 3, 7, 3 blocks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from dicenet.layers import StridedUnit
from dicenet.models.network import Stage

STEM_CHANNELS = 24
#: Blocks after the strided unit of each stage.
REPEATS = (3, 7, 3)

#: (in_channels, out_channels, feature_size) to a block.
Block = Callable[[int, int, tuple[int, int]], nn.Module]


def _stage(channels: int, repeats: int, block: Block, unit: str, first_layer: str) -> Stage:
    def build(in_channels: int, stride: int, feature_size: tuple[int, int]) -> list[nn.Module]:
        # the strided unit doubles its input's channels; the first block reaches the stage's
        widths = [2 * in_channels, *[channels] * repeats]
        first = StridedUnit(in_channels, feature_size, unit, first_layer)
        return [first, *(block(*pair, feature_size) for pair in pairwise(widths))]

    return Stage(channels, 2, build)


def stages(channels: Sequence[int], block: Block, unit: str = "dice", first_layer: str = "pointwise") -> list[Stage]:
    """The three stages.

    Args:
        channels: of each.
        block: what is repeated.
        unit: of the strided units, one of :data:`dicenet.layers.UNITS`.
        first_layer: of the strided units, one of :data:`dicenet.layers.FIRST_LAYERS`.
    """
    return [_stage(*pair, block, unit, first_layer) for pair in zip(channels, REPEATS, strict=True)]


def doubling(channels: int) -> tuple[int, int, int]:
    """Channels of the three stages, for those of the first."""
    return channels, 2 * channels, 4 * channels
