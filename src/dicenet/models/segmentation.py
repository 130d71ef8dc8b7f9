"""Semantic segmentation: ESPNetv2's decoder on any feature pyramid of timm (paper, section 7.2)."""

import difflib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from dicenet.classes import VOC
from dicenet.errors import ConfigError, WeightsError
from dicenet.layers import EfficientPyramidPooling, GlobalFusion, NormAct
from dicenet.models.network import ImgSize, Network, configuration, initialise, pair
from dicenet.models.registry import ROWS

#: Channels of the decoder's maps, from the smallest map on; the last map has one channel for each class.
PLANES = (64, 48, 32)
#: Most channels of a branch of pyramid pooling; half of the classes where these are few (the official rule).
MOST_CHANNELS = 16
#: The decoder starts from the map at this part of the picture's size, or the nearest larger one.
COARSEST = 16
MOST_LEVELS = len(PLANES) + 1
DEFAULT_IMG_SIZE = 384
#: What timm's models raise when they cannot be built as asked.
_UNBUILDABLE = (RuntimeError, AttributeError, AssertionError, TypeError, NotImplementedError)


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


class SegmentationNetwork(nn.Module):
    """A backbone and a decoder; made by :func:`create_segmentation_model`.

    Shape: (N, in_chans, H, W) to logits (N, num_classes, H, W), for any H and W.

    Attributes:
        architecture: name of the backbone's timm model.
        backbone: gives the maps of the pyramid, the largest first.
        backbone_args: arguments that it was made with, beside its name and channels.
        decoder: see :class:`SegmentationDecoder`.
        in_chans: channels of the picture.
        input_size: (height, width) that pictures should be resized to; None if the weights do not say.
        pretrained_cfg: as timm's: preprocessing, and class names (``label_names``) of trained networks.
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
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"a segmentation network needs at least 1 class, got {num_classes}")
        self.architecture = architecture
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.channels = default_channels(num_classes) if channels is None else channels
        self.input_size: tuple[int, int] | None = None
        self.pruned = False
        self.backbone = backbone
        self.backbone_args = dict(backbone_args or {})
        self.decoder = SegmentationDecoder(self._pyramid().channels(), num_classes, self.channels)
        initialise(self.decoder, grouped=False)
        cfg: Any = backbone.pretrained_cfg
        self.pretrained_cfg: dict[str, Any] = {
            **configuration(),
            **{key: cfg[key] for key in ("mean", "std", "interpolation") if key in cfg},
            "interpolation": "bilinear",
            "num_classes": num_classes,
            "crop_pct": 1.0,
            "crop_mode": "squash",  # the aspect is not kept, as in the official code
        }
        if img_size is not None:
            self.set_input_size(img_size)

    def _pyramid(self) -> Any:
        return self.backbone.feature_info

    @property
    def trained_size(self) -> tuple[int, int] | None:
        """(height, width) that the backbone's height and width kernels are made for; None where it has none."""
        return getattr(self.backbone_network(), "trained_size", None)

    def backbone_network(self) -> Network | None:
        """The backbone as a network of this package; None for others."""
        model = getattr(self.backbone, "model", None)
        return model if isinstance(model, Network) else None

    def model_args(self) -> dict[str, Any]:
        """The arguments that build the backbone, beside its name: what a file must say of it."""
        network = self.backbone_network()
        if network is not None:
            return network.model_args()
        for key, value in self.backbone_args.items():
            if not isinstance(value, str | int | float | None):
                raise ConfigError(
                    f"{key}={value!r} of {self.architecture} cannot be written to a file: give it by name"
                )
        return {**self.backbone_args, "in_chans": self.in_chans}

    def head_args(self) -> dict[str, Any]:
        """The arguments that build the decoder."""
        return {"type": "segmentation", "num_classes": self.num_classes, "channels": self.channels}

    def set_input_size(self, img_size: ImgSize) -> None:
        """Change the size that pictures should be resized to. The network itself takes any."""
        self.input_size = pair(img_size)
        self.pretrained_cfg = {**self.pretrained_cfg, "input_size": (self.in_chans, *self.input_size)}

    def get_classifier(self) -> nn.Conv2d:
        """The last 1x1 convolution."""
        return cast(EfficientPyramidPooling, self.decoder.pools[-1]).expand

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last 1x1 convolution by a fresh one for other classes; everything else stays."""
        old = self.get_classifier()
        new = nn.Conv2d(old.in_channels, num_classes, 1).to(old.weight)
        initialise(new, grouped=False)
        self.decoder.pools[-1].expand = new
        self.num_classes = num_classes
        cfg = {key: value for key, value in self.pretrained_cfg.items() if key != "label_names"}
        self.pretrained_cfg = {**cfg, "num_classes": num_classes}

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures, at their size."""
        logits = self.decoder(self.backbone(x))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)


def check_backbone(name: str) -> str:
    """The name of a timm model (ours are), unchanged. Raises ConfigError for others: nothing is ever downloaded."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0].lower(), timm.list_models(), n=5, cutoff=0.3)
        raise ConfigError(f"backbone {name!r} is no timm model: the nearest are {', '.join(near)}")
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:  # of its tag
        raise ConfigError(
            f"backbone {name!r} names weights that timm does not have: for official segmentation networks give them as "
            "the weights, else see timm.list_pretrained()"
        ) from error
    return name


def _reason(error: Exception) -> str:
    return str(error) or f"timm raises {type(error).__name__}"


def build_backbone(name: str, **arguments: Any) -> nn.Module:
    """What gives the maps of a timm model's pyramid up to a sixteenth of the picture, at most four.

    Raises:
        ConfigError: the model has no such pyramid.
    """
    check_backbone(name)
    try:
        with torch.device("meta"):
            info = timm.create_model(name, features_only=True, **_without_weights(arguments)).feature_info
        reductions = info.reduction()
    except _UNBUILDABLE as error:
        raise ConfigError(f"{name} gives no feature maps of several sizes: {_reason(error)}") from error
    # of equally large maps the last is the richest
    pairs = zip(info.out_indices, reductions, strict=True)
    levels = {reduction: index for index, reduction in pairs if reduction <= COARSEST}
    chosen = sorted(levels.values())[-MOST_LEVELS:]
    if len(chosen) < 2:
        raise ConfigError(
            f"{name} has maps at 1/{', 1/'.join(map(str, reductions))} of the picture: two different sizes of "
            f"1/{COARSEST} or larger are needed"
        )
    try:
        return timm.create_model(name, features_only=True, out_indices=tuple(chosen), **arguments)
    except (OSError, *_UNBUILDABLE) as error:
        if arguments.get("pretrained"):
            raise WeightsError(f"the weights of {name} cannot be fetched or do not fit: {error}") from error
        raise ConfigError(f"{name} cannot be built here: {_reason(error)}") from error


@torch.no_grad()
def _check_maps(pyramid: nn.Module, name: str, picture: tuple[int, ...]) -> None:
    """Raise ConfigError if a foreign pyramid does not take pictures of a size, or gives its maps in another order."""
    training = pyramid.training
    try:
        maps = pyramid.eval()(torch.zeros(1, *picture))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        size = "x".join(map(str, picture[1:]))
        raise ConfigError(f"{name} takes no pictures of {size}: give another img_size or backbone ({error})") from error
    finally:
        pyramid.train(training)
    channels = cast(Any, pyramid.feature_info).channels()
    if [x.shape[1] for x in maps] != channels:
        raise ConfigError(f"{name} gives maps with the channels last, which the decoder does not take")


def _without_weights(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in ("pretrained", "cache_dir")}


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
    name = backbone.split(".")[0]
    sizes = {"img_size": 224 if backbone_img_size is None else backbone_img_size} if name in ROWS else {}
    if backbone_img_size is not None and not sizes:
        raise ConfigError(f"backbone_img_size means nothing for {backbone}: it has no height and width kernels")
    if chosen := {"features_only", "out_indices"} & backbone_args.keys():
        raise ConfigError(f"{', '.join(sorted(chosen))} cannot be chosen: the decoder says which maps it needs")
    pyramid = build_backbone(backbone, pretrained=pretrained, in_chans=in_chans, **sizes, **backbone_args)
    if not sizes:
        _check_maps(pyramid, name, (in_chans, *pair(img_size or DEFAULT_IMG_SIZE)))
    classes = len(VOC) if num_classes is None else num_classes
    return SegmentationNetwork(
        name, pyramid, classes, img_size or DEFAULT_IMG_SIZE, decoder_channels, in_chans, backbone_args
    )
