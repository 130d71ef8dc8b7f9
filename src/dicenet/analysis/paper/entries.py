"""The rows of the paper's Tables 1 to 5: what it prints, and which network here or in another package that is.

The paper gives no structures for most rows of Tables 1 to 3 and no widths at all. Those below are ours: of some hundred
structures that were counted, the ones that fit all rows. A fit is no proof that the authors' networks were the same.
Accuracies are the paper's, on ImageNet; where none is given here, its figure was not at hand.
"""

import contextlib
import importlib
import io
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import nn

from dicenet.errors import ConfigError
from dicenet.layers import UNITS
from dicenet.models.resnet import ResNet, ResNetRow
from dicenet.models.shufflenetv2 import ShuffleNetV2, ShuffleNetV2Row

#: Largest deviation from the paper's multiply-adds that needs no reason.
TOLERANCE = 0.03


#: Arguments that stand in the labels of Tables 2 and 3.
_LABELLED = ("unit", "first_layer", "layout")


class Source(NamedTuple):
    """How to build a network: library and name there, arguments, side of the picture."""

    library: str
    name: str
    arguments: Mapping[str, Any] = {}
    img_size: int = 224

    def __str__(self) -> str:
        """What its row's labels do not say already."""
        shown = {key: value for key, value in self.arguments.items() if key not in _LABELLED}
        arguments = ", ".join(f"{key}={value}" for key, value in shown.items())
        return f"{self.library}: {self.name}" + (f" ({arguments})" if arguments else "")


class Entry(NamedTuple):
    """One row of a table.

    Attributes:
        labels: what the paper calls it, one for each of the table's columns.
        source: the network; None where no public implementation is known.
        macs: the paper's multiply-adds in millions.
        top1: the paper's accuracy in per cent.
        parameters: the paper's, in millions.
        note: why the count is off by more than 3 %, or what else must be known.
    """

    labels: tuple[str, ...]
    source: Source | None
    macs: float
    top1: float | None = None
    parameters: float | None = None
    note: str = ""


class PaperTable(NamedTuple):
    """A table of the paper: its title, the headings of its labels, its rows, and what holds for all of them."""

    title: str
    columns: tuple[str, ...]
    entries: tuple[Entry, ...]
    note: str = ""


# -- Tables 1 to 3


def _ours(name: str, **arguments: Any) -> Source:
    return Source("dicenet", name, arguments, arguments.get("img_size", 224))


def _resnet(unit: str, channels: int, first: str = "pointwise") -> Source:
    return _ours("ResNet", unit=unit, channels=channels, first_layer=first)


def _shuffle(unit: str, channels: int, first: str = "pointwise") -> Source:
    return _ours("ShuffleNetV2", unit=unit, channels=channels, first_layer=first, layout="figure4")


_SEPARABLE, _DICE = "separable", "DiCE"
_TABLE_1 = (
    Entry(("MobileNet", _SEPARABLE, "small"), _ours("mobilenet_sep_041"), 41, 49.8, note="width 0.25"),
    Entry(("MobileNet", _SEPARABLE, "medium"), _ours("mobilenet_sep_162"), 162, 65.3, note="width 0.75, 160 pixels"),
    Entry(("MobileNet", _SEPARABLE, "large"), _ours("mobilenet_sep_317"), 317, 68.4, note="width 0.75"),
    Entry(("MobileNet", _DICE, "small"), _ours("mobilenet_dice_029"), 29, note="our width"),
    Entry(("MobileNet", _DICE, "medium"), _ours("mobilenet_dice_167"), 167, note="our width"),
    Entry(("MobileNet", _DICE, "large"), _ours("mobilenet_dice_277"), 277, note="our width"),
    Entry(("ResNet", _SEPARABLE, "small"), _ours("resnet_sep_059"), 59, note="our width"),
    Entry(("ResNet", _SEPARABLE, "medium"), _ours("resnet_sep_142"), 142, note="our width"),
    Entry(("ResNet", _SEPARABLE, "large"), _ours("resnet_sep_302"), 302, note="our width"),
    Entry(("ResNet", _DICE, "small"), _ours("resnet_dice_052"), 52, note="our width"),
    Entry(("ResNet", _DICE, "medium"), _ours("resnet_dice_122"), 122, note="our width"),
    Entry(("ResNet", _DICE, "large"), _ours("resnet_dice_300"), 300, note="our width"),
    Entry(("ShuffleNetV2", _SEPARABLE, "small"), _ours("shufflenetv2_sep_041"), 41, note="0.5x"),
    Entry(("ShuffleNetV2", _SEPARABLE, "medium"), _ours("shufflenetv2_sep_146"), 146, note="1.0x"),
    Entry(("ShuffleNetV2", _SEPARABLE, "large"), _ours("shufflenetv2_sep_292"), 292, note="1.5x"),
    Entry(("ShuffleNetV2", _DICE, "small"), _ours("dicenet_075"), 46),
    Entry(("ShuffleNetV2", _DICE, "medium"), _ours("shufflenetv2_dice_122"), 122, note="our width"),
    Entry(("ShuffleNetV2", _DICE, "large"), _ours("dicenet_240"), 298),
)

#: Unit, channels of the ResNet and of the ShuffleNetV2, and the paper's two counts.
_UNITS = (
    ("separable", 128, 128, 142, 146),
    ("dw_se", 156, 160, 137, 140),
    ("dw_pw_se", 128, 128, 142, 146),
    ("dw_dimfuse", 148, 156, 136, 139),
    ("dimconv_pw", 88, 86, 132, 135),
    ("dimconv_se", 148, 150, 134, 138),
    ("dimconv_pw_se", 88, 86, 132, 135),
    ("dice", 132, 134, 122, 122),
)
_TABLE_2 = tuple(
    entry
    for unit, resnet, shuffle, paper_resnet, paper_shuffle in _UNITS
    for entry in (
        Entry(("ResNet", UNITS[unit].text), _resnet(unit, resnet), paper_resnet),
        Entry(("ShuffleNetV2", UNITS[unit].text), _shuffle(unit, shuffle), paper_shuffle),
    )
)

#: Row, unit, first layer, channels and the paper's count: of the ResNet, then of the ShuffleNetV2. "4x" is about 2x.
_FIRST_LAYERS = (
    ("R1", "dw_dimfuse", "pointwise", (152, 136), (158, 139), ""),
    ("R2", "dw_dimfuse", "dimfuse", (152, 78), (158, 78), ""),
    ("R3", "dw_dimfuse", "dimfuse", (304, 141), (332, 140), "the paper's 4x counts to 2.0x, 2.1x in channels"),
    ("R4", "dice", "pointwise", (132, 122), (136, 122), ""),
    ("R5", "dice", "dimfuse", (132, 72), (136, 72), ""),
    ("R6", "dice", "dimfuse", (256, 129), (272, 132), "the paper's 4x counts to 1.9x, 2.0x in channels"),
)
_TABLE_3 = tuple(
    entry
    for row, unit, first, resnet, shuffle, note in _FIRST_LAYERS
    for entry in (
        Entry((row, "ResNet", first, UNITS[unit].text), _resnet(unit, resnet[0], first), resnet[1], note=note),
        Entry((row, "ShuffleNetV2", first, UNITS[unit].text), _shuffle(unit, shuffle[0], first), shuffle[1], note=note),
    )
)

# -- Tables 4 and 5


def _v1(name: str, img_size: int) -> Source:
    return Source("pytorchcv", name, img_size=img_size)


def _v2(width: float, img_size: int) -> Source:
    return Source("torchvision", "mobilenet_v2", {"width_mult": width}, img_size)


_NONE = "no public implementation"
_TRUNCATED = "the paper truncates"
_TABLE_4 = (
    Entry(("MobileNet",), _v1("mobilenet_wd4", 128), 14, 41.5, note="13.57, which rounds to 14"),
    Entry(("MobileNet",), _v1("mobilenet_wd2", 128), 49, 56.3),
    Entry(("MobileNet",), _v1("mobilenet_wd2", 160), 77, 59.1),
    Entry(("MobileNet",), _v1("mobilenet_wd2", 192), 110, 61.7),
    Entry(("MobileNet",), _v1("mobilenet_w3d4", 160), 162, 65.3),
    Entry(("MobileNet",), _v1("mobilenet_w3d4", 224), 317, 68.4),
    Entry(("MobileNetV2",), _v2(0.35, 96), 11, 45.5, note=_TRUNCATED),
    Entry(("MobileNetV2",), _v2(0.5, 160), 50, 61.0),
    Entry(("MobileNetV2",), _v2(0.5, 192), 71, 63.9),
    Entry(("MobileNetV2",), _v2(0.75, 160), 107, 66.4),
    Entry(("MobileNetV2",), _v2(0.75, 192), 153, 68.7),
    Entry(("MobileNetV2",), _v2(1.0, 224), 300, 71.8),
    Entry(("MobileNetV3",), Source("torchvision", "mobilenet_v3_small"), 66, 67.4, note="the paper's is as published"),
    Entry(("MobileNetV3",), Source("torchvision", "mobilenet_v3_large"), 219, 75.2),
    Entry(("ShuffleNetV2",), None, 8.0, 39.1, note=f"{_NONE} of 0.1x"),
    Entry(("ShuffleNetV2",), Source("torchvision", "shufflenet_v2_x0_5"), 41, 59.7),
    Entry(("ShuffleNetV2",), Source("torchvision", "shufflenet_v2_x1_0"), 142, 68.1, note="146 in Table 1"),
    Entry(("ShuffleNetV2",), Source("torchvision", "shufflenet_v2_x1_5"), 292, 71.8, note="300 in Table 5"),
    Entry(("ESPNetv2",), Source("pytorchcv", "espnetv2_w1"), 86, 66.1),
    Entry(("ESPNetv2",), Source("pytorchcv", "espnetv2_w5d4"), 124, 67.9),
    Entry(("ESPNetv2",), Source("pytorchcv", "espnetv2_w2"), 284, 72.1),
    Entry(
        ("CondenseNet",),
        Source("pytorchcv", "condensenet74_c8_g8"),
        274,
        71.0,
        note="the pruned form; the paper's is as published",
    ),
    Entry(
        ("MNASNet",),
        Source("torchvision", "mnasnet0_5", {"alpha": 0.35}),
        76,
        62.4,
        note="another network of that accuracy; with an unscaled stem 79.43",
    ),
    Entry(("MNASNet",), Source("torchvision", "mnasnet1_0", img_size=128), 103, 67.3),
    Entry(("MNASNet",), Source("torchvision", "mnasnet1_0"), 317, 74.0),
    Entry(("FBNet",), None, 72, 65.3, note=_NONE),
    Entry(("FBNet",), None, 92, 67.0, note=_NONE),
    Entry(("FBNet",), None, 295, 74.1, note=f"{_NONE} of FBNet-B"),
    Entry(("MixNet",), Source("timm", "mixnet_s"), 256, 75.8, note="the paper's is as published"),
    Entry(("DiCENet", "150 epochs"), _ours("dicenet_010"), 6.5, 40.6),
    Entry(("DiCENet", "150 epochs"), _ours("dicenet_020"), 14, 46.2, note=_TRUNCATED),
    Entry(("DiCENet", "150 epochs"), _ours("dicenet_075"), 46, 62.8),
    Entry(("DiCENet", "150 epochs"), _ours("dicenet_100"), 70, 66.5),
    Entry(("DiCENet", "150 epochs"), _ours("dicenet_125"), 98, 67.8),
    Entry(("DiCENet", "150 epochs"), _ours("dicenet_150"), 139, 69.5, note="135 in the authors' own list"),
    Entry(("DiCENet", "150 epochs"), _ours("dicenet_240"), 298, 72.9),
    Entry(("DiCENet", "300 epochs"), _ours("dicenet_010"), 6.5, 43.1),
    Entry(("DiCENet", "300 epochs"), _ours("dicenet_020"), 14, 48.2, note=_TRUNCATED),
    Entry(("DiCENet", "300 epochs"), _ours("dicenet_075"), 46, 65.1),
    Entry(("DiCENet", "300 epochs"), _ours("dicenet_100"), 70, 68.5),
    Entry(("DiCENet", "300 epochs"), _ours("dicenet_125"), 98, 69.3),
    Entry(("DiCENet", "300 epochs"), _ours("dicenet_150"), 139, 72.0, note="135 in the authors' own list"),
    Entry(("DiCENet", "300 epochs"), _ours("dicenet_240"), 298, 75.7),
)
_TABLE_5 = (
    Entry(("MobileNetV2",), Source("torchvision", "mobilenet_v2"), 300, 71.8, 3.5),
    Entry(("ShuffleNetV2",), Source("torchvision", "shufflenet_v2_x1_5"), 300, 71.8, 3.5, note="292 in Table 4"),
    Entry(("MobileNetV3",), Source("torchvision", "mobilenet_v3_large"), 220, 75.2, 5.5, note="219 in Table 4"),
    Entry(("DiCENet",), _ours("dicenet_240"), 297, 75.7, 5.1, note="298 elsewhere"),
)

_WIDTHS = "Structures and widths of ResNet and ShuffleNetV2 are ours (Figure 4's form, head of 1280 channels)."
TABLES = {
    1: PaperTable(
        "Separable convolutions and DiCE units in three architectures",
        ("architecture", "unit", "size"),
        _TABLE_1,
        "MobileNet with its own body; DiCE widths of MobileNet and all of ResNet are ours.",
    ),
    2: PaperTable("Encodings and fusions", ("architecture", "unit"), _TABLE_2, _WIDTHS),
    3: PaperTable(
        "DimFuse in place of 1x1 convolutions", ("row", "architecture", "first layer", "unit"), _TABLE_3, _WIDTHS
    ),
    4: PaperTable("Networks on ImageNet", ("network", "training"), _TABLE_4),
    5: PaperTable(
        "The networks whose speed is compared",
        ("network",),
        _TABLE_5,
        "Accuracies are those of Table 4. For our own timings see `dicenet benchmark latency`.",
    ),
}

# -- building


def build(source: Source) -> nn.Module:
    """The network of a row, without memory for its weights.

    Raises:
        ConfigError: it is pytorchcv's, which is not installed.
    """
    with torch.device("meta"), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # libraries announce changes that are not the user's business here
        return _BUILDERS[source.library](source).eval()


def _build_ours(source: Source) -> nn.Module:
    if source.name == "ResNet":
        return ResNet(ResNetRow("resnet", "dice", 4, 0), **source.arguments)
    if source.name == "ShuffleNetV2":
        return ShuffleNetV2(ShuffleNetV2Row("shufflenetv2", "figure4", "dice", 2, 0), **source.arguments)
    return timm.create_model(source.name, **source.arguments)


def _build_torchvision(source: Source) -> nn.Module:
    if source.name == "mnasnet0_5" and source.arguments:
        return torchvision.models.MNASNet(**source.arguments)
    return torchvision.models.get_model(source.name, weights=None, **source.arguments)


def _build_pytorchcv(source: Source) -> nn.Module:
    try:
        provider = importlib.import_module("pytorchcv.model_provider")
    except ImportError as error:
        raise ConfigError("this table counts networks of pytorchcv: pip install pytorchcv") from error
    net: Any = getattr(provider, source.name)(**source.arguments)
    if source.img_size != 224:  # its pooling is made for maps of 224 pixels
        net.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return net


_BUILDERS = {
    "dicenet": _build_ours,
    "torchvision": _build_torchvision,
    "timm": lambda source: timm.create_model(source.name, **source.arguments),
    "pytorchcv": _build_pytorchcv,
}


def size_of(source: Source, net: nn.Module) -> int:
    """Side of the picture that a row is counted for: the network's own for ours."""
    return net.input_size[0] if source.library == "dicenet" else source.img_size  # type: ignore[index, return-value]
