"""Feature pyramids of any timm model, and what every network on one has in common."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from dicenet.errors import ConfigError, WeightsError, nearest
from dicenet.models.network import ImgSize, Network, configuration, pair
from dicenet.models.registry import ROWS

#: What timm's models raise when they cannot be built as asked.
_UNBUILDABLE = (RuntimeError, AttributeError, AssertionError, TypeError, NotImplementedError)


def check_backbone(name: str) -> str:
    """The name of a timm model (ours are), unchanged. Raises ConfigError for others: nothing is ever downloaded."""
    if not timm.is_model(name):
        near = nearest(name.split(".")[0], timm.list_models(), most=5)
        raise ConfigError(f"backbone {name!r} is no timm model{near} (timm.list_models() lists all)")
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:  # of its tag
        raise ConfigError(
            f"backbone {name!r} names weights that timm does not have: for official segmentation networks give them as "
            "the weights, else see timm.list_pretrained()"
        ) from error
    return name


def pyramid_levels(name: str, **arguments: Any) -> dict[int, int]:
    """Where a timm model has maps: the last level of each part of the picture's side (2: half, ...).

    Raises:
        ConfigError: there is no such model, or it has no pyramid.
    """
    check_backbone(name)
    arguments = {key: value for key, value in arguments.items() if key not in ("pretrained", "cache_dir")}
    try:
        with torch.device("meta"):
            info = timm.create_model(name, features_only=True, **arguments).feature_info
        reductions = info.reduction()
    except _UNBUILDABLE as error:
        raise ConfigError(f"{name} gives no feature maps of several sizes: {_reason(error)}") from error
    # of equally large maps the last is the richest
    return dict(zip(reductions, info.out_indices, strict=True))


def _reason(error: Exception) -> str:
    return str(error) or f"timm raises {type(error).__name__}"


def build_backbone(name: str, levels: Sequence[int], **arguments: Any) -> nn.Module:
    """What gives the maps of a timm model at some of its levels.

    Raises:
        ConfigError: it cannot be built.
        WeightsError: its weights cannot be had.
    """
    return build_model(name, features_only=True, out_indices=tuple(levels), **arguments)


def build_model(name: str, **arguments: Any) -> nn.Module:
    """A timm model. Errors as of :func:`build_backbone`."""
    try:
        return timm.create_model(name, **arguments)
    except (OSError, *_UNBUILDABLE) as error:
        if arguments.get("pretrained"):
            raise WeightsError(f"the weights of {name} cannot be fetched or do not fit: {error}") from error
        raise ConfigError(f"{name} cannot be built here: {_reason(error)}") from error


@torch.no_grad()
def check_maps(pyramid: nn.Module, name: str, picture: tuple[int, ...]) -> None:
    """Raise ConfigError if a foreign pyramid does not take pictures of a size, or gives its maps in another order.

    Args:
        pyramid: gives the maps.
        name: of the timm model.
        picture: (channels, height, width).
    """
    training = pyramid.training
    try:
        maps = pyramid.eval()(torch.zeros(1, *picture))
    except Exception as error:  # models raise anything
        size = "x".join(map(str, picture[1:]))
        raise ConfigError(
            f"{name} takes no pictures of {size}: give another size or backbone ({_reason(error)})"
        ) from error
    finally:
        pyramid.train(training)
    channels = cast(Any, pyramid.feature_info).channels()
    if [x.shape[1] for x in maps] != channels:
        raise ConfigError(f"{name} gives maps with the channels last, which its head does not take")


def backbone_arguments(backbone: str, backbone_img_size: ImgSize | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a backbone: those given, and for ours its trained size, 224 if not given (every published count).

    Raises:
        ConfigError: for one that means nothing, or that the head must choose.
    """
    ours = backbone.split(".")[0] in ROWS
    if backbone_img_size is not None and not ours:
        raise ConfigError(f"backbone_img_size means nothing for {backbone}: it has no height and width kernels")
    if chosen := {"features_only", "out_indices"} & given.keys():
        raise ConfigError(f"{', '.join(sorted(chosen))} cannot be chosen: the head says which maps it needs")
    return {**given, **({"img_size": backbone_img_size or 224} if ours else {})}


class PyramidNetwork(nn.Module):
    """A backbone that gives maps of several sizes; a head on them is what subclasses add.

    Attributes:
        architecture: name of the backbone's timm model.
        backbone: gives the maps of the pyramid, the largest first.
        backbone_args: arguments that it was made with, beside its name and channels.
        in_chans: channels of the picture.
        num_classes: of the head.
        input_size: (height, width) that pictures should be resized to; None if the weights do not say.
        pretrained_cfg: as timm's: preprocessing, and class names (``label_names``) of trained networks.
    """

    num_classes: int

    def __init__(
        self,
        architecture: str,
        backbone: nn.Module,
        num_classes: int,
        in_chans: int = 3,
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.input_size: tuple[int, int] | None = None
        self.pruned = False
        self.backbone = backbone
        self.backbone_args = dict(backbone_args or {})
        cfg: Any = backbone.pretrained_cfg
        self.pretrained_cfg: dict[str, Any] = {
            **configuration(),
            **{key: cfg[key] for key in ("mean", "std") if key in cfg},
            "interpolation": "bilinear",
            "num_classes": num_classes,
            "crop_pct": 1.0,
            "crop_mode": "squash",  # the aspect is not kept, as in the official code
        }

    def map_channels(self) -> list[int]:
        """Channels of the backbone's maps."""
        return cast(Any, self.backbone.feature_info).channels()

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

    def head_part(self) -> nn.Module:
        """What stands on the backbone."""
        raise NotImplementedError

    def head_args(self) -> dict[str, Any]:
        """The arguments that build the head, with its ``type``."""
        raise NotImplementedError

    def set_input_size(self, img_size: ImgSize) -> None:
        """Change the size that pictures should be resized to."""
        self.input_size = pair(img_size)
        self.pretrained_cfg = {**self.pretrained_cfg, "input_size": (self.in_chans, *self.input_size)}

    def reset_names(self, num_classes: int) -> None:
        """Forget the names of the classes, of which there are other ones now."""
        self.num_classes = num_classes
        cfg = {key: value for key, value in self.pretrained_cfg.items() if key != "label_names"}
        self.pretrained_cfg = {**cfg, "num_classes": num_classes}

    def forward(self, x: Tensor) -> Any:
        """What the head says of pictures."""
        raise NotImplementedError
