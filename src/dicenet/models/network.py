"""What all networks here share: a stem, stages, a head; two sizes; and timm's contract.

A family (one file each) says what its stages are made of and registers its rows with timm.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models import register_model as register_with_timm
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from dicenet.errors import ConfigError
from dicenet.layers import ConvNormAct, DimConv
from dicenet.models.fitting import load_weights
from dicenet.weights import catalogue
from dicenet.weights.formats import recognise

MIN_IMG_SIZE = 32
STEMS = ("standard", "small")
ImgSize = int | tuple[int, int]


def pair(img_size: ImgSize | Sequence[int], name: str = "img_size") -> tuple[int, int]:
    """(height, width) of a size given as one number or two; at least 32 each. Errors call it ``name``."""
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise ConfigError(f"{name} must be a whole number or (height, width), got {img_size!r}")
    height, width = size
    if min(height, width) < MIN_IMG_SIZE:
        raise ConfigError(f"{name} must be at least {MIN_IMG_SIZE} on both sides, got {height}x{width}")
    return height, width


def _pool(global_pool: str) -> SelectAdaptivePool2d:
    try:
        return SelectAdaptivePool2d(pool_type=global_pool)
    except AssertionError as error:
        raise ConfigError(f"global_pool {global_pool!r} is none of timm's pooling types: {error}") from error


def _divided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def initialise(network: nn.Module, grouped: bool) -> None:
    """Kaiming normal (fan-out) for convolutions, biases zero.

    Args:
        network: or a part of one.
        grouped: count a grouped convolution's fan-out by group, as timm does; the official code counts all outputs.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if grouped:
                with torch.no_grad():
                    module.weight *= module.groups**0.5
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Stage(NamedTuple):
    """One stage of a network.

    Attributes:
        channels: of its result.
        stride: of its first block, 1 or 2.
        build: (in_channels, stride, feature_size of the result) to its blocks in order.
    """

    channels: int
    stride: int
    build: Callable[[int, int, tuple[int, int]], list[nn.Module]]


class Head(NamedTuple):
    """What lies between the last map and the classifier, a 1x1 convolution.

    Attributes:
        channels: of the pre-logits; 0: those of the last map, there is no further layer.
        groups: of a convolution of the pooled map, without norm and activation (DiCENet's own); 0: a 1x1 convolution
            with norm and PReLU before the pooling (ShuffleNetV2's).
    """

    channels: int = 0
    groups: int = 0


class Row(Protocol):
    """One line of a family's table; what all families have in it."""

    @property
    def name(self) -> str:
        """Name of the timm model."""

    @property
    def macs(self) -> float:
        """Multiply-adds in millions at the network's own size, 1000 classes."""


class Network(nn.Module):
    """A convolutional network of stages; see the families for their arguments.

    Args:
        row: line of the family's table.
        stem_channels: of the first convolution, 3x3.
        stem_pool: whether a 3x3 max pooling follows it.
        stages: from the largest map to the smallest.
        head: what follows the last map.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the picture.
        img_size: one number or (height, width), at least 32 each: sets the trained and the input size.
        stem: ``"standard"`` (stride 32 in all) or ``"small"`` for small pictures (8 in all: the first convolution
            has stride 1, and what halves the map next does not).
        drop_rate: dropout before the classifier.
        global_pool: any of timm's pooling types; ``""`` pools nothing, the result is then a map of logits.
        min_crop: smallest part of a picture that training should take for it, unless it is told otherwise.

    Shape: (N, in_chans, H, W) to (N, num_classes). H and W may differ from the trained size (dynamic scaling).

    Attributes:
        architecture: name of the timm model.
        trained_size: (height, width) that the height and width kernels are made for.
        input_size: (height, width) that data should be resized to.
        pretrained_cfg: timm's configuration: preprocessing, class names (``label_names``), names of layers.
    """

    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]
    #: Whether a grouped convolution starts with weights for the outputs of its group, as in timm. Else a chain of units
    #: has no signal left at its end until norms know what comes.
    grouped_fan_out = True

    def __init__(
        self,
        row: Row,
        stem_channels: int,
        stem_pool: bool,
        stages: Sequence[Stage],
        head: Head,
        num_classes: int,
        in_chans: int,
        img_size: ImgSize,
        stem: str,
        drop_rate: float,
        global_pool: str,
        min_crop: float = 0.08,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ConfigError(f"stem {stem!r} is unknown: choose one of {', '.join(STEMS)}")
        self.architecture = row.name
        self.choices: dict[str, Any] = {}  # further arguments of the family, in place of the row's
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.stem_type = stem
        self.trained_size = self.input_size = pair(img_size)
        self.drop_rate = drop_rate
        self.min_crop = min_crop
        self.grad_checkpointing = False
        self.pruned = False

        small = stem == "small"
        self.stem = ConvNormAct(in_chans, stem_channels, 3, stride=1 if small else 2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool and not small else nn.Identity()
        strides = [stage.stride for stage in stages]
        if small and not stem_pool:
            strides[strides.index(2)] = 1
        self._strides = (1 if small else 2, 2 if stem_pool and not small else 1, *strides)
        built = []
        channels = stem_channels
        for stage, stride, size in zip(stages, strides, self._stage_sizes(self.trained_size), strict=True):
            built.append(nn.Sequential(*stage.build(channels, stride, size)))
            channels = stage.channels
        self.stages = nn.Sequential(*built)

        self.num_features = channels
        self.global_pool = _pool(global_pool)
        self._head = head
        self.head_hidden_size = self._hidden_size()
        self.conv_head: nn.Module = self._new_conv_head()
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.classifier = self._new_classifier()
        initialise(self, self.grouped_fan_out)
        self.feature_info = self._feature_info(stem_channels, [stage.channels for stage in stages])
        self.pretrained_cfg = self.default_cfg = configuration() | {"num_classes": num_classes}  # timm replaces it
        self._record_input_size()
        self.to(device=device, dtype=dtype)

    # -- construction

    def model_args(self) -> dict[str, Any]:
        """The arguments that build a network like this one, beside its name: what a file must say of it."""
        return {
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "img_size": list(self.trained_size),
            "stem": self.stem_type,
            "drop_rate": self.drop_rate,
            "global_pool": self.global_pool.pool_type,
            **self.choices,
        }

    def _stage_sizes(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Map sizes of the stages for a picture size: every stride rounds up."""
        size, sizes = img_size, []
        for stride in self._strides:
            size = _divided(size, stride)
            sizes.append(size)
        return sizes[2:]

    def _hidden_size(self) -> int:
        channels, groups = self._head
        return channels if groups else (channels or self.num_features) * self.global_pool.feat_mult()

    def _new_conv_head(self) -> nn.Module:
        channels, groups = self._head
        if not channels:
            return nn.Identity()
        if groups:
            pooled = self.num_features * self.global_pool.feat_mult()
            return nn.Conv2d(pooled, channels, 1, groups=groups, bias=False)
        return ConvNormAct(self.num_features, channels, 1)

    def _new_classifier(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        return nn.Conv2d(self.head_hidden_size, self.num_classes, 1)

    def _feature_info(self, stem_channels: int, stage_channels: Sequence[int]) -> list[dict[str, Any]]:
        """The last map of each stride: stem, pooled stem, stages."""
        names = ["stem", "pool", *(f"stages.{index}" for index in range(len(stage_channels)))]
        channels = [stem_channels, stem_channels, *stage_channels]
        info: dict[int, dict[str, Any]] = {}
        reduction = 1
        for name, count, stride in zip(names, channels, self._strides, strict=True):
            reduction *= stride
            if name != "pool" or stride > 1:
                info[reduction] = {"num_chs": count, "reduction": reduction, "module": name}
        return list(info.values())

    # -- sizes

    def set_input_size(self, img_size: ImgSize) -> None:
        """Change the size that data should be resized to; the kernels stay, maps are scaled to them as they pass.

        Raises ConfigError for sides below 32.
        """
        self.input_size = pair(img_size)
        self._record_input_size()

    def _record_input_size(self) -> None:
        """Keep timm's configuration, from which its tools take the size of data, in step."""
        self.pretrained_cfg = self.default_cfg = {
            **self.pretrained_cfg,
            "input_size": (self.in_chans, *self.input_size),
        }

    def rebase(self, img_size: ImgSize) -> None:
        """Resize the height and width kernels to a new trained size, in place, and make it the input size too.

        Afterwards pictures of that size need no scaling at run time, which is faster. The outputs change
        (kernels are interpolated instead of maps): evaluate again, and fine-tune if accuracy matters. The
        kernels become new parameters: build the optimiser afterwards. Raises ConfigError for sides below 32.
        """
        size = pair(img_size)
        for stage, feature_size in zip(self.stages, self._stage_sizes(size), strict=False):  # pruned ones are gone
            for module in stage.modules():
                if isinstance(module, DimConv):
                    module.rebase(feature_size)
        self.trained_size = size
        self.set_input_size(size)

    # -- timm's contract

    def get_classifier(self) -> nn.Module:
        """The last 1x1 convolution."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last 1x1 convolution by a fresh one; 0 classes removes it.

        A pooling that gives another number of channels (``catavgmax``) replaces a ``conv_head`` that follows it too.
        """
        self.num_classes = num_classes
        like = next(self.stem.parameters())
        if global_pool is not None:
            features = self.global_pool.feat_mult()
            self.global_pool = _pool(global_pool)
            self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
            if not self.pruned:
                self.head_hidden_size = self._hidden_size()
                if self._head.groups and self.global_pool.feat_mult() != features:
                    self.conv_head = self._new_conv_head().to(like)
                    initialise(self.conv_head, self.grouped_fan_out)
        self.classifier = self._new_classifier().to(like)
        initialise(self.classifier, self.grouped_fan_out)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: recompute the stages in the backward pass."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates."""
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)", None),
                (r"^conv_head", (99999,)),
            ],
        }

    def picture_convolutions(self) -> tuple[str, ...]:
        """Names of the weights that read the picture: they are adapted to other numbers of channels."""
        return ("stem.conv.weight",)

    def no_weight_decay(self) -> set[str]:
        """Names of the PReLU slopes, which decay would pull towards ReLU."""
        return {name for name, _ in self.named_parameters() if name.endswith("act.weight")}

    def load_pretrained(self, path: str) -> None:
        """Load any checkpoint of this network; timm calls it for ``pretrained=True``. See ``load_weights``."""
        load_weights(self, path)

    # -- computation

    def _checkpoints(self) -> bool:
        """Whether stages are computed again in the backward pass."""
        return self.grad_checkpointing and self.training and not torch.compiler.is_exporting()

    def _run_level(self, name: str, level: nn.Module, x: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        """The map behind a level (stem, pool or stage), and the picture for the levels that follow."""
        if name.startswith("stages.") and self._checkpoints():
            return checkpoint_seq(level, x), picture
        return level(x), picture

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map: (N, C4, H / 32, W / 32), or H / 8, W / 8 with the small stem; sizes rounded up."""
        picture = x
        for name, module in self._levels():
            x, picture = self._run_level(name, module, x, picture)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the levels in ``feature_info``, and the last map unless ``intermediates_only``.

        Args:
            x: the pictures.
            indices: all levels if None, the last n if a number, else those named.
            norm: no effect: no norm follows the last level.
            stop_early: do not compute levels behind the last one asked for.
            output_fmt: only NCHW.
            intermediates_only: return the list alone.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt must be NCHW, got {output_fmt}")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        number = {info["module"]: index for index, info in enumerate(self.feature_info)}
        intermediates = []
        picture = x
        for name, module in self._levels():
            x, picture = self._run_level(name, module, x, picture)
            index = number.get(name)
            if index in taken:
                intermediates.append(x)
            if stop_early and index == last:
                break
        return intermediates if intermediates_only else (x, intermediates)

    def _levels(self) -> list[tuple[str, nn.Module]]:
        """What a picture passes before the head, by name."""
        stages = [(f"stages.{index}", stage) for index, stage in enumerate(self.stages)]
        return [("stem", self.stem), ("pool", self.pool), *stages]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last level in ``indices`` (and the head); returns the levels as a list."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        shortened = last < len(self.feature_info) - 1
        name = self.feature_info[last]["module"]
        self.stages = self.stages[: int(name.removeprefix("stages.")) + 1 if name.startswith("stages.") else 0]
        if shortened:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.conv_head = nn.Identity()
            self.classifier = nn.Identity()
            self.num_classes = 0
            self.head_hidden_size = self.num_features
            self.pruned = True
        return taken

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From the last map to the logits: pooling and ``conv_head`` (the pre-logits), dropout, classifier."""
        x = self.conv_head(self.global_pool(x)) if self._head.groups else self.global_pool(self.conv_head(x))
        if pre_logits:
            return self.flatten(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return self.flatten(self.classifier(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures, (N, in_chans, H, W) to (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def configuration(input_size: tuple[int, int] = (224, 224), **more: Any) -> dict[str, Any]:
    """timm's pretrained configuration of a network; ``more`` says where weights come from."""
    return {
        "num_classes": 1000,
        "input_size": (3, *input_size),
        "min_input_size": (3, MIN_IMG_SIZE, MIN_IMG_SIZE),
        "pool_size": _divided(input_size, 32),
        "first_conv": "stem.conv",
        "classifier": "classifier",
        "paper_name": "DiCENet: Dimension-wise Convolutions for Efficient Networks",
        "paper_ids": "arXiv:1906.03516",
        **catalogue.PREPROCESSING,
        **more,
    }


#: Keys of a timm configuration that name a source of weights.
SOURCES = ("url", "file", "state_dict", "hf_hub_id", "source")


def given_configuration(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a call says of where weights come from, timm's two arguments put together."""
    given: Any = kwargs.get("pretrained_cfg")
    if given is None or isinstance(given, str):
        given = {}
    return (given if isinstance(given, dict) else given.to_dict()) | (kwargs.get("pretrained_cfg_overlay") or {})


def names_weights(kwargs: Mapping[str, Any]) -> bool:
    """Whether a call says where weights come from."""
    given = given_configuration(kwargs)
    return any(given.get(key) for key in SOURCES)


def _through_our_reader(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """timm's overlay for the user's own weights: ``custom_load`` makes timm call ``load_pretrained`` above."""
    given = given_configuration(kwargs)
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    if given.get("state_dict"):
        state = given["state_dict"]
        if "stem.conv.weight" not in state:
            state = recognise(state).state
        if "classifier.weight" in state:
            overlay.setdefault("num_classes", len(state["classifier.weight"]))
        return overlay | {"state_dict": state}
    return {"custom_load": True, **overlay, "file": given["file"]} if given.get("file") else overlay


def official_configurations(rows: Iterable[Row], **more: Any) -> dict[str, dict[str, Any]]:
    """timm's pretrained configurations of a family, with the official ImageNet weights where there are any.

    ``more`` replaces entries of :func:`configuration`.
    """
    cfgs = {}
    for row in rows:
        entry = catalogue.find(f"{row.name}.{catalogue.IN1K_TAG}")
        if entry is None:
            cfgs[row.name] = configuration(**more)
        else:
            source: dict[str, Any] = {"url": entry.url, "license": entry.licence, "origin_url": catalogue.ORIGIN}
            cfgs[entry.name] = configuration(**source, description=entry.metric, **more)
    return cfgs


def _official_file(row: Row, kwargs: Mapping[str, Any]) -> str:
    """The verified official checkpoint that a call means.

    timm cannot check a git blob SHA-1, the only hash published for the official files: we fetch and verify, then hand
    timm the file.
    """
    if not any(entry.architecture == row.name for entry in catalogue.entries()):
        raise ConfigError(f"no weights are published for {row.name}: leave out pretrained=True")
    cfg = kwargs.get("pretrained_cfg")
    tag = cfg if isinstance(cfg, str) else given_configuration(kwargs).get("tag") or catalogue.IN1K_TAG
    folder = Path(kwargs["cache_dir"]) if kwargs.get("cache_dir") else None
    return str(catalogue.fetch(f"{row.name}.{tag}", folder=folder))


def create(family: type[Network], row: Row, pretrained: bool = False, **kwargs: Any) -> Any:
    """Build a network, or what gives its feature maps, as timm does for its own.

    Raises:
        ConfigError: weights are asked for that nobody has published; the user's own, in timm's way, are taken.
        WeightsError: official weights cannot be fetched, or have another hash.
    """
    if pretrained:
        if not names_weights(kwargs):
            overlay = {**(kwargs.get("pretrained_cfg_overlay") or {}), "file": _official_file(row, kwargs)}
            kwargs["pretrained_cfg_overlay"] = overlay
        kwargs["pretrained_cfg_overlay"] = _through_our_reader(kwargs)
    levels = 4 if kwargs.get("stem") == "small" else 5
    model: Any = build_model_with_cfg(
        family,
        row.name,
        pretrained,
        row=row,
        feature_cfg={"out_indices": tuple(range(levels)), "feature_cls": "getter"},
        **kwargs,
    )
    net: Network = getattr(model, "model", model)  # inside, if only features were asked for
    net.set_input_size(net.input_size)
    model.pretrained_cfg["input_size"] = net.pretrained_cfg["input_size"]
    return model


def register(family: type[Network], rows: Iterable[Row], namespace: dict[str, Any]) -> None:
    """Make each row known to timm, as an entry point of its own name in the family's module.

    Args:
        family: class of the networks.
        rows: of its table.
        namespace: ``globals()`` of the family's module.
    """
    for row in rows:

        def entry_point(pretrained: bool = False, *, _row: Row = row, **kwargs: Any) -> Any:
            return create(family, _row, pretrained, **kwargs)

        entry_point.__name__ = entry_point.__qualname__ = row.name
        entry_point.__module__ = namespace["__name__"]
        entry_point.__doc__ = f"{row.name}: {row.macs} M multiply-adds at its own size."
        namespace[row.name] = register_with_timm(entry_point)


def check_channels(channels: int, least: int, multiple: int = 1) -> int:
    """A number of channels, unchanged. Raises ConfigError below ``least``, or if it is no multiple."""
    if channels < least or channels % multiple:
        rule = f" and a multiple of {multiple}" if multiple > 1 else ""
        raise ConfigError(f"channels must be at least {least}{rule}, got {channels}")
    return channels


def drop_rate_for(row: Row) -> float:
    """DiCENet's rule for the dropout before the classifier, by the size of the network."""
    return 0.1 if row.macs < 100 else 0.2
