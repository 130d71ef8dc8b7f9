"""Semantic segmentation: ESPNetv2's decoder on any feature pyramid of timm (paper, section 7.2)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from dicenet.classes import VOC
from dicenet.errors import ConfigError
from dicenet.layers import EfficientPyramidPooling, GlobalFusion, NormAct
from dicenet.models.network import ImgSize, initialise, pair
from dicenet.models.pyramid import PyramidNetwork, backbone_arguments, build_backbone, check_maps, pyramid_levels
from dicenet.models.registry import ROWS

#: Channels of the decoder's maps, from the smallest map on; the last map has one channel for each class.
PLANES = (64, 48, 32)
#: Most channels of a branch of pyramid pooling; half of the classes where these are few (the official rule).
MOST_CHANNELS = 16
#: The decoder starts from the map at this part of the picture's size, or the nearest larger one.
COARSEST = 16
MOST_LEVELS = len(PLANES) + 1
DEFAULT_IMG_SIZE = 384


def default_channels(num_classes: int) -> int:
    """Channels of a branch of the decoder's pyramid pooling, unless they are given: the official rule."""
    return max(1, min(num_classes // 2, MOST_CHANNELS))


class SegmentationDecoder(nn.Module):
    """From the maps of a pyramid to the logits, at the size of the largest map (official code; ESPNetv2, figure 4).

    Each map is pooled at several scales, enlarged to the next one, added to that, and normalised.

    Args:
        in_channels: of the maps, the largest map first; two maps at least.
        num_classes: channels of the result.
        channels: of each branch of the pyramid pooling.

    Shape: (N, C_i, H_i, W_i) for each map to (N, num_classes, H_0, W_0).
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int) -> None:
        super().__init__()
        deepest, *skipped = reversed(in_channels)
        planes = [*PLANES[: len(skipped)], num_classes]
        self.pools = nn.ModuleList(
            EfficientPyramidPooling(wide, channels, narrow, last=level == len(skipped))
            for level, (wide, narrow) in enumerate(pairwise([deepest, *planes]))
        )
        self.skips = nn.ModuleList(
            GlobalFusion(wide, narrow, direct=True) for wide, narrow in zip(skipped, planes, strict=False)
        )
        self.norm_acts = nn.ModuleList(NormAct(narrow) for narrow in planes[:-1])

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Decode the maps of a pyramid, the largest first."""
        deepest, *skipped = reversed(maps)
        first, *pools = self.pools
        x = first(deepest)
        for skip, norm_act, pool, larger in zip(self.skips, self.norm_acts, pools, skipped, strict=True):
            x = skip(larger) + F.interpolate(x, larger.shape[2:], mode="bilinear", align_corners=True)
            x = pool(norm_act(x))
        return x


class SegmentationNetwork(PyramidNetwork):
    """A backbone and a decoder; made by :func:`create_segmentation_model`.

    Shape: (N, in_chans, H, W) to logits (N, num_classes, H, W), for any H and W.

    Attributes:
        decoder: see :class:`SegmentationDecoder`.
        channels: of each branch of its pyramid pooling.

    The others are those of :class:`dicenet.models.pyramid.PyramidNetwork`.
    """

    def __init__(
        self,
        architecture: str,
        backbone: nn.Module,
        num_classes: int,
        img_size: ImgSize | None = None,
        channels: int | None = None,
        in_chans: int = 3,
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        if num_classes < 1:
            raise ConfigError(f"a segmentation network needs at least 1 class, got {num_classes}")
        super().__init__(architecture, backbone, num_classes, in_chans, backbone_args)
        self.channels = default_channels(num_classes) if channels is None else channels
        self.decoder = SegmentationDecoder(self.map_channels(), num_classes, self.channels)
        initialise(self.decoder, grouped=False)
        if img_size is not None:
            self.set_input_size(img_size)

    def head_part(self) -> nn.Module:
        """The decoder."""
        return self.decoder

    def head_args(self) -> dict[str, Any]:
        """The arguments that build the decoder."""
        return {"type": "segmentation", "num_classes": self.num_classes, "channels": self.channels}

    def get_classifier(self) -> nn.Conv2d:
        """The last 1x1 convolution."""
        return cast(EfficientPyramidPooling, self.decoder.pools[-1]).expand

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last 1x1 convolution by a fresh one for other classes; everything else stays."""
        old = self.get_classifier()
        new = nn.Conv2d(old.in_channels, num_classes, 1).to(old.weight)
        initialise(new, grouped=False)
        self.decoder.pools[-1].expand = new
        self.reset_names(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures, at their size."""
        logits = self.decoder(self.backbone(x))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)


def segmentation_backbone(name: str, **arguments: Any) -> nn.Module:
    """What gives the maps of a timm model's pyramid up to a sixteenth of the picture, at most four.

    Raises:
        ConfigError: the model has no such pyramid.
        WeightsError: its weights cannot be had.
    """
    levels = pyramid_levels(name, **arguments)
    chosen = sorted(index for reduction, index in levels.items() if reduction <= COARSEST)[-MOST_LEVELS:]
    if len(chosen) < 2:
        raise ConfigError(
            f"{name} has maps at 1/{', 1/'.join(map(str, levels))} of the picture: two different sizes of "
            f"1/{COARSEST} or larger are needed"
        )
    return build_backbone(name, chosen, **arguments)


def create_segmentation_model(
    backbone: str = "dicenet_100",
    num_classes: int | None = None,
    *,
    pretrained: bool | str = False,
    img_size: ImgSize | None = None,
    backbone_img_size: ImgSize | None = None,
    in_chans: int = 3,
    decoder_channels: int | None = None,
    **backbone_args: Any,
) -> SegmentationNetwork:
    """A segmentation network: the decoder of the paper's section 7.2 on the feature pyramid of any timm model.

    Args:
        backbone: name of a timm model that gives feature maps: ours, MobileNets, ResNets, ...
        num_classes: classes, with the background if there is one; 21, or those of the tag, if not given.
        pretrained: True starts the backbone from its ImageNet weights (timm's; for ours the official ones); a tag such
            as ``"edgenets_voc_384"`` loads an official segmentation network, for other classes all but its last layer.
        img_size: size that pictures should be resized to, one number or (height, width); the network takes any.
            384, or that of the tag.
        backbone_img_size: trained size of a backbone of ours, 224 if not given as in all official networks; maps of
            other sizes are scaled as they pass.
        in_chans: channels of the picture.
        decoder_channels: of each branch of the decoder's pyramid pooling; half of the classes, at most 16, if not
            given. Few classes may want more.
        backbone_args: further arguments of the backbone, such as ``unit``.

    Raises:
        ConfigError: no such backbone, or one without a pyramid.
        WeightsError: the weights cannot be fetched or do not fit.
    """
    if isinstance(pretrained, str):
        # late: loading builds networks, also of this kind
        from dicenet.models.loading import load

        given = {"backbone_img_size": backbone_img_size, "decoder_channels": decoder_channels, **backbone_args}
        if refused := [key for key, value in given.items() if value is not None]:
            raise ConfigError(f"{', '.join(refused)} cannot be chosen with pretrained={pretrained!r}: they are its own")
        net = load(f"{backbone}.{pretrained}", task="segment", num_classes=num_classes, in_chans=in_chans)
        assert isinstance(net, SegmentationNetwork)
        if img_size is not None:
            net.set_input_size(img_size)
        return net
    name, size = backbone.split(".")[0], DEFAULT_IMG_SIZE if img_size is None else img_size
    arguments = backbone_arguments(backbone, backbone_img_size, backbone_args)
    pyramid = segmentation_backbone(backbone, pretrained=pretrained, in_chans=in_chans, **arguments)
    if name not in ROWS:
        check_maps(pyramid, name, (in_chans, *pair(size)))
    classes = len(VOC) if num_classes is None else num_classes
    return SegmentationNetwork(name, pyramid, classes, size, decoder_channels, in_chans, backbone_args)
