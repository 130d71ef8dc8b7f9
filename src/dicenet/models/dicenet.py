"""DiCENet, the network of the paper (Table 4), at eleven widths, as timm models ``dicenet_010`` to ``dicenet_300``.

The exact structure is that of the official code (EdgeNets), which the paper leaves out: a strided unit doubles
its input's channels, so a level reaches its width in its first block, and no norm or activation stands between
the two convolutions of the classifier.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs
from timm.models import register_model as register_with_timm
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from dicenet.errors import ConfigError
from dicenet.layers import ConvNormAct, DiCEUnit, DimConv
from dicenet.models.fitting import load_weights
from dicenet.weights import catalogue
from dicenet.weights.formats import recognise

__all__ = ["WIDTHS", "DiCEBlock", "DiCENet", "StridedDiCEUnit", "Width"]


class Width(NamedTuple):
    """One row of the width table. Multiply-adds and parameters: 224x224, 1000 classes, official counter."""

    scale: float
    stem_channels: int
    stage_channels: tuple[int, int, int]
    head_channels: int
    drop_rate: float
    macs: float  # millions
    parameters: int

    @property
    def name(self) -> str:
        """Name of the timm model: the width times 100, three digits."""
        return f"dicenet_{round(self.scale * 100):03d}"


#: DiCE blocks after the strided unit of each stage.
REPEATS = (3, 7, 3)
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

MIN_IMG_SIZE = 32
STEMS = ("standard", "small")
ImgSize = int | tuple[int, int]


def _pair(img_size: ImgSize | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two; at least 32 each."""
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise ConfigError(f"img_size must be a whole number or (height, width), got {img_size!r}")
    height, width = size
    if min(height, width) < MIN_IMG_SIZE:
        raise ConfigError(f"img_size must be at least {MIN_IMG_SIZE} on both sides, got {height}x{width}")
    return height, width


def _pool(global_pool: str) -> SelectAdaptivePool2d:
    try:
        return SelectAdaptivePool2d(pool_type=global_pool)
    except AssertionError as error:
        raise ConfigError(f"global_pool {global_pool!r} is none of timm's pooling types: {error}") from error


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _initialise(network: nn.Module) -> None:
    """Initialise as the official code does: Kaiming normal (fan-out) for convolutions, biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class StridedDiCEUnit(nn.Module):
    """Halves the map and doubles the channels: a depth-wise branch beside a pooled DiCE branch, shuffled.

    Args:
        channels: C of the input.
        feature_size: (H, W) of the output, for which the unit's kernels are made.

    Shape: (N, C, H', W') to (N, 2C, ceil(H' / 2), ceil(W' / 2)).
    """

    def __init__(self, channels: int, feature_size: tuple[int, int]) -> None:
        super().__init__()
        self.left = nn.Sequential(
            ConvNormAct(channels, channels, 3, stride=2, groups=channels),
            ConvNormAct(channels, channels, 1),
        )
        self.right = nn.Sequential(
            nn.AvgPool2d(3, stride=2, padding=1),
            DiCEUnit(channels, channels, feature_size),
            ConvNormAct(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Reduce x."""
        return F.channel_shuffle(torch.cat([self.left(x), self.right(x)], dim=1), 2)


class DiCEBlock(nn.Module):
    """Split, transform, shuffle: half of the channels pass, the rest goes through a 1x1 convolution and a DiCE unit.

    Args:
        in_channels: of the input; the first ``round(in_channels / 2)`` pass unchanged.
        out_channels: of the result, even.
        feature_size: (H, W) that the unit's kernels are made for.

    Shape: (N, in_channels, H', W') to (N, out_channels, H', W').
    """

    def __init__(self, in_channels: int, out_channels: int, feature_size: tuple[int, int]) -> None:
        super().__init__()
        self.kept = round(0.5 * in_channels)
        computed = out_channels - self.kept
        self.transform = nn.Sequential(
            ConvNormAct(in_channels - self.kept, computed, 1), DiCEUnit(computed, computed, feature_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform x."""
        kept, rest = x.tensor_split([self.kept], dim=1)
        return F.channel_shuffle(torch.cat([kept, self.transform(rest)], dim=1), 2)


def _stage(in_channels: int, out_channels: int, repeats: int, feature_size: tuple[int, int]) -> nn.Sequential:
    """One level: the strided unit, then the blocks."""
    blocks: list[nn.Module] = [StridedDiCEUnit(in_channels, feature_size)]
    channels = 2 * in_channels
    for _ in range(repeats):
        blocks.append(DiCEBlock(channels, out_channels, feature_size))
        channels = out_channels
    return nn.Sequential(*blocks)


class DiCENet(nn.Module):
    """DiCENet (paper, section 4 and Table 4). Usually built by ``timm.create_model("dicenet_100", ...)``.

    Args:
        width: row of :data:`WIDTHS`.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the picture.
        img_size: one number or (height, width), at least 32 each: sets the trained and the input size.
        stem: ``"standard"`` (stride 4 before the first stage, 32 in all) or ``"small"`` for small pictures
            (first convolution with stride 1, no pooling, 8 in all).
        drop_rate: dropout before the classifier; None takes the official rate of the width.
        global_pool: any of timm's pooling types; ``""`` pools nothing, the result is then a map of logits.

    Shape: (N, in_chans, H, W) to (N, num_classes). H and W may differ from the trained size (dynamic scaling).

    Attributes:
        trained_size: (height, width) that the height and width kernels are made for.
        input_size: (height, width) that data should be resized to.
        pretrained_cfg: timm's configuration: preprocessing, class names (``label_names``), names of layers.
    """

    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]

    def __init__(
        self,
        width: Width,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: ImgSize = 224,
        stem: str = "standard",
        drop_rate: float | None = None,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ConfigError(f"stem {stem!r} is unknown: choose one of {', '.join(STEMS)}")
        self.width = width
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.stem_type = stem
        self.trained_size = self.input_size = _pair(img_size)
        self.drop_rate = width.drop_rate if drop_rate is None else drop_rate
        self.grad_checkpointing = False

        small = stem == "small"
        self.stem = ConvNormAct(in_chans, width.stem_channels, 3, stride=1 if small else 2)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        channels = width.stem_channels
        for out_channels, repeats, size in zip(
            width.stage_channels, REPEATS, self._stage_sizes(self.trained_size), strict=True
        ):
            stages.append(_stage(channels, out_channels, repeats, size))
            channels = out_channels
        self.stages = nn.Sequential(*stages)

        self.num_features = width.stage_channels[-1]
        self.global_pool = _pool(global_pool)
        self.head_hidden_size = width.head_channels
        self.conv_head: nn.Module = self._new_conv_head()
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.classifier = self._new_classifier()
        _initialise(self)
        self.feature_info = self._feature_info()
        self.pretrained_cfg = self.default_cfg = _cfg() | {"num_classes": num_classes}  # timm replaces it
        self._record_input_size()
        self.to(device=device, dtype=dtype)

    # -- construction

    def _stage_sizes(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Map sizes of the three stages for a picture size: every stride rounds up."""
        size = img_size if self.stem_type == "small" else _halved(_halved(img_size))
        sizes = []
        for _ in REPEATS:
            size = _halved(size)
            sizes.append(size)
        return sizes

    def _new_conv_head(self) -> nn.Module:
        pooled = self.num_features * self.global_pool.feat_mult()
        return nn.Conv2d(pooled, self.head_hidden_size, 1, groups=4, bias=False)

    def _new_classifier(self) -> nn.Module:
        return nn.Conv2d(self.head_hidden_size, self.num_classes, 1) if self.num_classes > 0 else nn.Identity()

    def _feature_info(self) -> list[dict[str, Any]]:
        reduction = 1 if self.stem_type == "small" else 2
        info = [{"num_chs": self.width.stem_channels, "reduction": reduction, "module": "stem"}]
        if self.stem_type == "standard":
            reduction *= 2
            info.append({"num_chs": self.width.stem_channels, "reduction": reduction, "module": "pool"})
        for index, channels in enumerate(self.width.stage_channels):
            reduction *= 2
            info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{index}"})
        return info

    # -- sizes

    def set_input_size(self, img_size: ImgSize) -> None:
        """Change the size that data should be resized to; the kernels stay, maps are scaled to them as they pass.

        Raises ConfigError for sides below 32.
        """
        self.input_size = _pair(img_size)
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
        size = _pair(img_size)
        for stage, feature_size in zip(self.stages, self._stage_sizes(size), strict=True):
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

        A pooling that gives another number of channels (``catavgmax``) replaces ``conv_head`` too.
        """
        self.num_classes = num_classes
        like = next(self.stem.parameters())
        if global_pool is not None:
            features = self.global_pool.feat_mult()
            self.global_pool = _pool(global_pool)
            self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
            if isinstance(self.conv_head, nn.Conv2d) and self.global_pool.feat_mult() != features:
                self.conv_head = self._new_conv_head().to(like)
                _initialise(self.conv_head)
        self.classifier = self._new_classifier().to(like)
        _initialise(self.classifier)

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

    def no_weight_decay(self) -> set[str]:
        """Names of the PReLU slopes, which decay would pull towards ReLU."""
        return {name for name, _ in self.named_parameters() if name.endswith("act.weight")}

    def load_pretrained(self, path: str) -> None:
        """Load any checkpoint of this network; timm calls it for ``pretrained=True``. See ``load_weights``."""
        load_weights(self, path)

    # -- computation

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and not torch.compiler.is_exporting():
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map: (N, C4, H / 32, W / 32), or H / 8, W / 8 with the small stem; sizes rounded up."""
        x = self.pool(self.stem(x))
        for stage in self.stages:
            x = self._run_stage(stage, x)
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
        levels: list[Callable[[Tensor], Tensor]] = [self.stem]
        if self.stem_type == "standard":
            levels.append(self.pool)
        levels += [lambda x, stage=stage: self._run_stage(stage, x) for stage in self.stages]  # type: ignore[misc]
        if stop_early:
            levels = levels[: last + 1]
        intermediates = []
        for index, level in enumerate(levels):
            x = level(x)
            if index in taken:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last level in ``indices`` (and the head); returns the levels as a list."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        before_stages = len(self.feature_info) - len(self.stages)
        pruned = last < len(self.feature_info) - 1
        self.stages = self.stages[: max(0, last + 1 - before_stages)]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or pruned:
            self.conv_head = nn.Identity()
            self.classifier = nn.Identity()
            self.num_classes = 0
            self.head_hidden_size = self.num_features
        return taken

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, grouped 1x1 convolution (the pre-logits, (N, C5)), dropout, classifier."""
        x = self.conv_head(self.global_pool(x))
        if pre_logits:
            return self.flatten(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return self.flatten(self.classifier(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures, (N, in_chans, H, W) to (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _cfg(row: catalogue.Entry | None = None) -> dict[str, Any]:
    """timm's pretrained configuration of a width, with official weights if there are any."""
    cfg: dict[str, Any] = {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "min_input_size": (3, MIN_IMG_SIZE, MIN_IMG_SIZE),
        "pool_size": (7, 7),
        "first_conv": "stem.conv",
        "classifier": "classifier",
        "paper_name": "DiCENet: Dimension-wise Convolutions for Efficient Networks",
        "paper_ids": "arXiv:1906.03516",
        **catalogue.PREPROCESSING,
    }
    if row is not None:
        cfg |= {
            "url": row.url,
            "license": row.licence,
            "origin_url": catalogue.ORIGIN,
            "description": row.metric,
        }
    return cfg


def _default_cfgs() -> dict[str, dict[str, Any]]:
    cfgs = {}
    for width in WIDTHS:
        row = catalogue.find(f"{width.name}.{catalogue.IN1K_TAG}")
        cfgs[f"{width.name}.{catalogue.IN1K_TAG}" if row else width.name] = _cfg(row)
    return cfgs


default_cfgs = generate_default_cfgs(_default_cfgs())

#: Keys of a timm configuration that name a source of weights.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "source")


def _source_overlay(variant: str, cfg: Any, overlay: dict[str, Any], cache_dir: str | None) -> dict[str, Any]:
    """Where timm shall read weights from: the verified official file, or the user's own, through our reader.

    timm cannot check a git blob SHA-1, the only hash published for the official files; we fetch and verify,
    then hand timm the file. ``custom_load`` makes timm call ``load_pretrained`` above, which reads any format.
    """
    given = {} if cfg is None or isinstance(cfg, str) else dict(cfg if isinstance(cfg, dict) else cfg.to_dict())
    given |= overlay
    if not any(given.get(key) for key in _SOURCES):
        tag = cfg if isinstance(cfg, str) else given.get("tag") or catalogue.IN1K_TAG
        folder = Path(cache_dir) if cache_dir else None
        return overlay | {"file": str(catalogue.fetch(f"{variant}.{tag}", folder=folder)), "custom_load": True}
    if given.get("state_dict"):
        state = recognise(given["state_dict"]).state
        if "classifier.weight" in state:
            overlay.setdefault("num_classes", len(state["classifier.weight"]))
        return overlay | {"state_dict": state}
    return {"custom_load": True, **overlay, "file": given["file"]} if given.get("file") else overlay


def _create_dicenet(width: Width, pretrained: bool = False, **kwargs: Any) -> Any:
    if pretrained:
        overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
        kwargs["pretrained_cfg_overlay"] = _source_overlay(
            width.name, kwargs.get("pretrained_cfg"), overlay, kwargs.get("cache_dir")
        )
    out_indices = tuple(range(4 if kwargs.get("stem") == "small" else 5))
    model: Any = build_model_with_cfg(
        DiCENet,
        width.name,
        pretrained,
        width=width,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )
    net: DiCENet = getattr(model, "model", model)  # inside, if only features were asked for
    net.set_input_size(net.input_size)
    model.pretrained_cfg["input_size"] = net.pretrained_cfg["input_size"]
    return model


def _register(widths: Iterable[Width]) -> None:
    """Make each width known to timm, as an entry point of its own name in this module."""
    for width in widths:

        def entry_point(pretrained: bool = False, *, _width: Width = width, **kwargs: Any) -> DiCENet:
            return _create_dicenet(_width, pretrained, **kwargs)

        entry_point.__name__ = entry_point.__qualname__ = width.name
        entry_point.__doc__ = f"DiCENet at width {width.scale}: {width.macs} M multiply-adds at 224x224."
        globals()[width.name] = register_with_timm(entry_point)


_register(WIDTHS)
