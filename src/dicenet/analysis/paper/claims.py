"""Claims of the paper that can be recomputed: what it says, what is counted here, and a verdict."""

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torchvision
from torch import nn

from dicenet.analysis.count import count
from dicenet.analysis.paper.entries import TABLES, Entry, Source
from dicenet.analysis.paper.shares import shares
from dicenet.analysis.paper.tables import counted
from dicenet.layers import DiCEUnit, DimConv
from dicenet.optimize.replace import unit_macs

_SIZE = (3, 224, 224)


class Claim(NamedTuple):
    """A claim of the paper: where it stands, what it says, and what gives our figure and the verdict."""

    where: str
    says: str
    check: Callable[[], tuple[str, str]]


def _paper(table: int, *labels: str) -> Entry:
    (entry,) = (e for e in TABLES[table].entries if set(labels) <= set(e.labels))
    return entry


def _source(table: int, *labels: str) -> Source:
    source = _paper(table, *labels).source
    assert source is not None
    return source


def _change(table: int, before: tuple[str, ...], after: tuple[str, ...]) -> float:
    return 1 - _paper(table, *after).macs / _paper(table, *before).macs


def _percent(*values: float) -> str:
    return ", ".join(f"{value:.1%}" for value in values)


def _point_wise() -> tuple[str, str]:
    found = []
    for name in ("mobilenet_v2", "shufflenet_v2_x1_5"):
        parts = shares(torchvision.models.get_model(name), _SIZE)
        found.append(parts["point-wise"] / sum(parts.values()))
    return f"MobileNetV2 {found[0]:.1%}, ShuffleNetV2 1.5x {found[1]:.1%}", "holds"


def _widest_depth_wise(model: nn.Module) -> int:
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    return max(conv.in_channels for conv in convs)


def _widest_separable() -> tuple[str, str]:
    found = [_widest_depth_wise(torchvision.models.get_model(n)) for n in ("mobilenet_v2", "shufflenet_v2_x1_5")]
    return f"MobileNetV2 {found[0]}, ShuffleNetV2 1.5x {found[1]}", _verdict(found == [960, 352])


def _widest_dim_conv() -> tuple[str, str]:
    found = max(m.channels for m in timm.create_model("dicenet_240").modules() if isinstance(m, DimConv))
    return f"{found} (half of 1112)", f"off: {found}, not 576"


def _verdict(holds: bool, otherwise: str = "does not hold") -> str:
    return "holds" if holds else otherwise


def _fusion_formula() -> tuple[str, str]:
    """DimFuse for D channels and H x W positions: as printed, HWD(3 + 9 + D); as built, 12 HWD + D^2 / 2."""
    net = timm.create_model("dicenet_240")
    printed = built = 0
    for unit in (m for m in net.modules() if isinstance(m, DiCEUnit)):
        channels, (height, width) = unit.dim_conv.channels, unit.dim_conv.feature_size
        printed += height * width * channels * (12 + channels)
        built += unit_macs(channels, channels, 3, (height, width)) - 27 * height * width * channels
    total = count(net, _SIZE).macs + printed - built
    return (
        f"with the printed formula dicenet_240 would cost {total / 1e6:.0f} M instead of 298 M; the excitation runs "
        "once for each picture, not at every position",
        "the formula is not that of the networks",
    )


def _fusion_saving() -> tuple[str, str]:
    ratios = []
    for channels, side in ((139, 28), (278, 14), (556, 7)):
        fusion = unit_macs(channels, channels, 3, (side, side)) - 27 * channels * side * side
        ratios.append(3 * channels**2 * side**2 / fusion)
    return f"{ratios[0]:.0f}, {ratios[1]:.0f}, {ratios[2]:.0f} times in the three stages of dicenet_240", "understated"


def _fewer_in_table_2() -> tuple[str, str]:
    pairs = [
        _change(2, (net, "DWise + point-wise"), (net, "DimConv + DimFuse (DiCE)")) for net in ("ResNet", "ShuffleNetV2")
    ]
    return f"{_percent(*pairs)} from the paper's own figures", "14 to 16 %"


def _dim_conv_alone() -> tuple[str, str]:
    saved = [
        _paper(2, net, "DWise + point-wise").macs - _paper(2, net, "DimConv + point-wise").macs
        for net in ("ResNet", "ShuffleNetV2")
    ]
    return ", ".join(f"{value:g} M" for value in saved) + " from the paper's own figures", _verdict(saved == [10, 11])


def _first_layers() -> tuple[str, str]:
    saved = [
        _change(3, (before, net), (after, net))
        for before, after in (("R1", "R2"), ("R4", "R5"))
        for net in ("ResNet", "ShuffleNetV2")
    ]
    ours = [
        1 - counted(_source(3, after, net)).macs / counted(_source(3, before, net)).macs
        for before, after in (("R1", "R2"), ("R4", "R5"))
        for net in ("ResNet", "ShuffleNetV2")
    ]
    return f"{_percent(*saved)} from its own figures; {_percent(*ours)} counted", "41 to 44 %"


def _four_times() -> tuple[str, str]:
    fixed = 9.4  # stem and last layer of these networks, M
    ratios = [
        (_paper(3, after, net).macs - fixed) / (_paper(3, before, net).macs - fixed)
        for before, after in (("R2", "R3"), ("R5", "R6"))
        for net in ("ResNet", "ShuffleNetV2")
    ]
    channels = [
        _source(3, after, net).arguments["channels"] / _source(3, before, net).arguments["channels"]
        for before, after in (("R2", "R3"), ("R5", "R6"))
        for net in ("ResNet", "ShuffleNetV2")
    ]
    text = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return (
        f"all but stem and last layer grow {text} times by its own figures, and at least as fast as the channels; "
        f"with {', '.join(f'{c:.2f}' for c in channels)} times the channels the rows fit",
        "2x, not 4x",
    )


def _maps() -> tuple[str, str]:
    ratios = [
        counted(_source(3, after, net)).all_maps / counted(_source(3, before, net)).all_maps
        for before, after in (("R1", "R3"), ("R4", "R6"))
        for net in ("ResNet", "ShuffleNetV2")
    ]
    peaks = [
        counted(_source(3, after, net)).peak_maps / counted(_source(3, before, net)).peak_maps
        for before, after in (("R1", "R3"), ("R4", "R6"))
        for net in ("ResNet", "ShuffleNetV2")
    ]
    return (
        f"all maps: {', '.join(f'{r:.2f}' for r in ratios)} times those of R1 and R4; at once: "
        f"{', '.join(f'{p:.2f}' for p in peaks)} times",
        "more memory for the same multiply-adds",
    )


def _table_4(first: str, training: str, macs: float, *others: tuple[str, float]) -> list[float]:
    def top1(name: str, size: float, *labels: str) -> float:
        (found,) = (
            e.top1 for e in TABLES[4].entries if e.labels[0] == name and e.macs == size and set(labels) <= set(e.labels)
        )
        assert found is not None
        return found

    own = top1(first, macs, training)
    return [round(own - top1(*other), 1) for other in others]


def _at_70() -> tuple[str, str]:
    found = _table_4("DiCENet", "300 epochs", 70, ("MNASNet", 76), ("FBNet", 72), ("MobileNetV3", 66))
    return ", ".join(f"{f:g}" for f in found) + " points from Table 4", _verdict(found == [6.1, 3.2, 1.1])


def _at_300() -> tuple[str, str]:
    found = _table_4("DiCENet", "300 epochs", 298, ("MNASNet", 317), ("MobileNetV2", 300))
    return ", ".join(f"{f:g}" for f in found) + " points from Table 4", _verdict(found == [1.7, 3.9])


def _same_networks() -> tuple[str, str]:
    return (
        "ShuffleNetV2 1.0x is 146 M in Table 1 and 142 M in Table 4; 1.5x 292 M and 300 M; DiCENet 298 M and 297 M",
        "one network, two figures",
    )


def _needs_fewer_channels() -> tuple[str, str]:
    units = ("DWise + point-wise", "DimConv + DimFuse (DiCE)")
    widths = {
        net: [_source(2, net, unit).arguments["channels"] for unit in units] for net in ("ResNet", "ShuffleNetV2")
    }
    text = ", ".join(f"{net} {before} and {after}" for net, (before, after) in widths.items())
    return f"first-stage channels with separable units and with DiCE units: {text}", "not in any structure counted here"


CLAIMS = (
    Claim("Figure 2", "point-wise convolutions are about 90 % of MobileNetV2 and ShuffleNetV2", _point_wise),
    Claim("Section 3.2", "DimFuse costs HWD(3 + n^2 + D)", _fusion_formula),
    Claim("Section 3.2", "DimFuse costs about 3 times less than a 1x1 convolution of the 3D planes", _fusion_saving),
    Claim("Text", "the widest depth-wise convolutions have 960 and 352 channels", _widest_separable),
    Claim("Text", "the widest DimConv of the 298 M network has 576 channels", _widest_dim_conv),
    Claim("Captions of Tables 1, 2", "networks with DiCE units need fewer channels", _needs_fewer_channels),
    Claim("Table 2", "DiCE units save 15 to 20 %", _fewer_in_table_2),
    Claim("Table 2", "DimConv with point-wise convolutions saves 10 and 11 M", _dim_conv_alone),
    Claim("Table 3", "DimFuse in place of all point-wise convolutions saves 45 %", _first_layers),
    Claim("Table 3", "R3 and R6 have 4 times the channels", _four_times),
    Claim("Table 3", "R3 and R6 need more memory", _maps),
    Claim("Table 4", "6.1, 3.2, 1.1 points over MNASNet, FBNet, MobileNetV3 at 70 M", _at_70),
    Claim("Table 4", "1.7 points over MNASNet, 4 over MobileNetV2 at 300 M", _at_300),
    Claim("Tables 1, 4, 5", "multiply-adds of the same networks", _same_networks),
)


def claim_rows(claims: Any = CLAIMS) -> list[dict[str, str]]:
    """One row for each claim, computed now: where, claim, counted here, verdict."""
    rows = []
    for claim in claims:
        found, verdict = claim.check()
        rows.append({"where": claim.where, "claim": claim.says, "counted": found, "verdict": verdict})
    return rows
