"""Claims of the paper that can be recomputed: what it says, what is counted here, and a verdict."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import timm
import torchvision
from torch import nn

from dicenet.analysis.count import count
from dicenet.analysis.paper import table7
from dicenet.analysis.paper.entries import TABLES, TOLERANCE, Entry, Source
from dicenet.analysis.paper.shares import shares
from dicenet.analysis.paper.table6 import DETECTORS, DICENET_MAP, SCORES, VGG, gmacs
from dicenet.analysis.paper.tables import counted
from dicenet.layers import DiCEUnit, DimConv
from dicenet.models.figure4 import STEM_CHANNELS
from dicenet.models.resnet import HEAD_CHANNELS
from dicenet.optimize.replace import unit_macs

_SIZE = (3, 224, 224)
#: Networks of Tables 2 and 3.
_ABLATED = ("ResNet", "ShuffleNetV2")


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


def _verdict(holds: bool, otherwise: str = "does not hold") -> str:
    return "holds" if holds else otherwise


def _between(values: Sequence[float], least: float, most: float) -> str:
    """Whether whole per cents are in a range; else, what they are."""
    whole = [round(value, 2) for value in values]
    return _verdict(least <= min(whole) and max(whole) <= most, f"{min(whole):.0%} to {max(whole):.0%}")


def _in_table_3(before: tuple[str, str], after: tuple[str, str]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Labels of rows that are compared: (row, network) before and after, for both networks."""
    return [((one, net), (other, net)) for one, other in zip(before, after, strict=True) for net in _ABLATED]


def _point_wise() -> tuple[str, str]:
    found = []
    for name in ("mobilenet_v2", "shufflenet_v2_x1_5"):
        parts = shares(torchvision.models.get_model(name), _SIZE)
        found.append(parts["point-wise"] / sum(parts.values()))
    holds = all(abs(share - 0.9) < 0.05 for share in found)
    return f"MobileNetV2 {found[0]:.1%}, ShuffleNetV2 1.5x {found[1]:.1%}", _verdict(holds)


def _widest_depth_wise(model: nn.Module) -> int:
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    return max(conv.in_channels for conv in convs)


def _widest_separable() -> tuple[str, str]:
    found = [_widest_depth_wise(torchvision.models.get_model(n)) for n in ("mobilenet_v2", "shufflenet_v2_x1_5")]
    return f"MobileNetV2 {found[0]}, ShuffleNetV2 1.5x {found[1]}", _verdict(found == [960, 352])


def _widest_dim_conv() -> tuple[str, str]:
    found = max(m.channels for m in timm.create_model("dicenet_240").modules() if isinstance(m, DimConv))
    return f"{found} (half of {2 * found})", _verdict(found == 576, f"off: {found}, not 576")


def _fusion_formula() -> tuple[str, str]:
    """DimFuse for D channels and H x W positions: as printed, HWD(3 + 9 + D); as built, 12 HWD + D^2 / 2."""
    net = timm.create_model("dicenet_240")
    printed = built = 0
    for unit in (m for m in net.modules() if isinstance(m, DiCEUnit)):
        channels, (height, width) = unit.dim_conv.channels, unit.dim_conv.feature_size
        printed += height * width * channels * (12 + channels)
        built += unit_macs(channels, channels, 3, (height, width)) - 27 * height * width * channels
    macs = count(net, _SIZE).macs
    total = macs + printed - built
    return (
        f"with the printed formula dicenet_240 would cost {total / 1e6:.0f} M instead of {macs / 1e6:.0f} M; the "
        "excitation runs once for each picture, not at every position",
        _verdict(abs(total / macs - 1) < TOLERANCE, "the formula is not that of the networks"),
    )


def _fusion_saving() -> tuple[str, str]:
    units = [m for m in timm.create_model("dicenet_240").modules() if isinstance(m, DiCEUnit)]
    ratios = {}
    for channels, size in {(unit.dim_conv.channels, unit.dim_conv.feature_size) for unit in units}:
        positions = prod(size)
        fusion = unit_macs(channels, channels, 3, size) - 27 * channels * positions
        ratios[channels] = 3 * channels**2 * positions / fusion
    found = {channels: round(ratio) for channels, ratio in sorted(ratios.items())}
    times, widths = (", ".join(map(str, numbers)) for numbers in (found.values(), found))
    text = f"{times} times in the units of dicenet_240, of {widths} channels"
    return text, _verdict(set(found.values()) == {3}, "understated")


def _fewer_in_table_2() -> tuple[str, str]:
    pairs = [_change(2, (net, "DWise + point-wise"), (net, "DimConv + DimFuse (DiCE)")) for net in _ABLATED]
    return f"{_percent(*pairs)} from the paper's own figures", _between(pairs, 0.15, 0.20)


def _dim_conv_alone() -> tuple[str, str]:
    saved = [
        _paper(2, net, "DWise + point-wise").macs - _paper(2, net, "DimConv + point-wise").macs for net in _ABLATED
    ]
    return ", ".join(f"{value:g} M" for value in saved) + " from the paper's own figures", _verdict(saved == [10, 11])


def _first_layers() -> tuple[str, str]:
    rows = _in_table_3(("R1", "R4"), ("R2", "R5"))
    saved = [_change(3, *pair) for pair in rows]
    ours = [1 - counted(_source(3, *after)).macs / counted(_source(3, *before)).macs for before, after in rows]
    return f"{_percent(*saved)} from its own figures; {_percent(*ours)} counted", _between(saved, 0.45, 0.45)


def _four_times() -> tuple[str, str]:
    """Stem and last layer keep their cost; all else grows as the channels do, or as their square."""
    fixed = (27 * STEM_CHANNELS * 112**2 + HEAD_CHANNELS * 1000) / 1e6
    rows = _in_table_3(("R2", "R5"), ("R3", "R6"))
    growth = [(_paper(3, *after).macs - fixed) / (_paper(3, *before).macs - fixed) for before, after in rows]
    channels = [
        _source(3, *after).arguments["channels"] / _source(3, *before).arguments["channels"] for before, after in rows
    ]
    return (
        f"all but stem and last layer grow {_times(growth)} by its own figures, and at least as fast as the channels; "
        f"with {_times(channels)} the channels the rows fit",
        _verdict(max(growth) >= 4, f"{max(growth):.0f}x, not 4x"),
    )


def _times(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in ratios) + " times"


def _maps() -> tuple[str, str]:
    rows = [[counted(_source(3, *labels)) for labels in pair] for pair in _in_table_3(("R1", "R4"), ("R3", "R6"))]
    everything = [after.all_maps / before.all_maps for before, after in rows]
    peaks = [after.peak_maps / before.peak_maps for before, after in rows]
    return (
        f"all maps: {_times(everything)} those of R1 and R4; at once: {_times(peaks)}",
        _verdict(min(*everything, *peaks) > 1),
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
    """The paper's figures for one network in several tables."""
    figures = {
        "ShuffleNetV2 1.0x": [_paper(1, "ShuffleNetV2", "separable", "medium"), _built_from(4, "shufflenet_v2_x1_0")],
        "ShuffleNetV2 1.5x": [_built_from(4, "shufflenet_v2_x1_5"), _built_from(5, "shufflenet_v2_x1_5")],
        "DiCENet": [_built_from(4, "dicenet_240"), _built_from(5, "dicenet_240")],
    }
    found = {name: [f"{entry.macs:g} M" for entry in entries] for name, entries in figures.items()}
    text = "; ".join(f"{name} {' and '.join(macs)}" for name, macs in found.items())
    return text, _verdict(all(len(set(macs)) == 1 for macs in found.values()), "one network, two figures")


def _built_from(table: int, name: str) -> Entry:
    return next(e for e in TABLES[table].entries if e.source is not None and e.source.name == name)


def _needs_fewer_channels() -> tuple[str, str]:
    units = ("DWise + point-wise", "DimConv + DimFuse (DiCE)")
    widths = {net: [_source(2, net, unit).arguments["channels"] for unit in units] for net in _ABLATED}
    text = ", ".join(f"{net} {before} and {after}" for net, (before, after) in widths.items())
    return (
        f"first-stage channels with separable units and with DiCE units: {text}",
        _verdict(all(after < before for before, after in widths.values()), "not in any structure counted here"),
    )


# -- Table 6

_Net = tuple[str, str]
#: The DiCENet that fits the table, the one that the text names, and what the paper compares: network and head.
_FITTING: _Net = ("dicenet_200", "espnet")
_NAMED: _Net = ("dicenet_240", "espnet")
_VGG: _Net = (VGG, "ssd")
_ESPNET: _Net = ("espnetv2_200", "espnet")


def _in_table_6(net: _Net) -> dict[tuple[str, int], float]:
    """The paper's billions of multiply-adds: on VOC at 300 and 512, then on COCO."""
    return dict(next(d.paper for d in DETECTORS if (d.network, d.head) == net))


def _detector_gmacs(net: _Net) -> list[float]:
    """The same, counted."""
    return [gmacs(*net, side, SCORES[data]) for data, side in _in_table_6(net)]


def _ratios(more: Iterable[float], fewer: Iterable[float]) -> list[float]:
    return [one / other for one, other in zip(more, fewer, strict=True)]


def _claimed_of_vgg(ratios: Sequence[float]) -> bool:
    """Whether 45 on VOC and 38 on COCO are those of one of the sizes."""
    whole = [round(ratio) for ratio in ratios]
    return 45 in whole[:2] and 38 in whole[2:]


def _fewer_than_vgg() -> tuple[str, str]:
    paper = _ratios(_in_table_6(_VGG).values(), _in_table_6(_FITTING).values())
    ours = _ratios(_detector_gmacs(_VGG), _detector_gmacs(_FITTING))
    texts = ["VOC {:.1f}, {:.1f}, COCO {:.1f}, {:.1f}".format(*ratios) for ratios in (paper, ours)]
    return (
        f"at 300 and 512: {texts[0]} from its own figures; {texts[1]} counted, with dicenet_200",
        _verdict(_claimed_of_vgg(ours), "only by its own figures" if _claimed_of_vgg(paper) else "does not hold"),
    )


def _billions(values: Iterable[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values) + " B"


def _cut_off(values: Iterable[float]) -> list[float]:
    """Without what stands behind the first digit, as the paper prints them."""
    return [int(10 * value) / 10 for value in values]


def _detector_base() -> tuple[str, str]:
    paper, named, fitting = [*_in_table_6(_NAMED).values()], _detector_gmacs(_NAMED), _detector_gmacs(_FITTING)
    fits = "the table fits the 236 M network" if _cut_off(fitting) == paper else "fits neither"
    return (
        f"with ESPNetv2's detector dicenet_240 (298 M) {_billions(named, 2)}, dicenet_200 (236 M) "
        f"{_billions(fitting, 2)}; the table {_billions(paper, 1)}",
        _verdict(_cut_off(named) == paper, fits),
    )


def _small_pictures() -> tuple[str, str]:
    paper = [_in_table_6(_ESPNET)[data, 300] for data in SCORES]
    found = {side: [gmacs(*_ESPNET, side, scores) for scores in SCORES.values()] for side in (256, 300)}
    text = "; ".join(f"{side}x{side} {_billions(values, 2)}" for side, values in found.items())
    fits = "fits 300x300" if _cut_off(found[300]) == paper else "fits neither"
    return f"VOC and COCO at {text}; the table {_billions(paper, 1)}", _verdict(_cut_off(found[256]) == paper, fits)


def _over_others() -> tuple[str, str]:
    others = {d.backbone: d.paper_map for d in DETECTORS if d.paper_map is not None}
    found = [round(DICENET_MAP - value, 1) for value in others.values()]
    return (
        f"{', '.join(f'{f:g}' for f in found)} points over {', '.join(others)}, from the paper's own figures",
        _verdict(all(round(f) == 3 for f in found)),
    )


def _over_others_in_labels() -> tuple[str, str]:
    found = {row.network: row.f1_overall for row in table7.ROWS}
    ours = found.pop("DiCENet")
    gains = {name: round(ours - found[name], 2) for name in ("ESPNetv2", "ShuffleNetV2")}
    return (
        f"{', '.join(f'{gain:.2f}' for gain in gains.values())} points over {', '.join(gains)}, from the paper's own "
        "figures",
        _verdict(_cut_off(gains.values()) == [4.1, 5.8]),
    )


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
    Claim("Table 6", "45 times fewer FLOPs than VGG's SSD on VOC, 38 times on COCO", _fewer_than_vgg),
    Claim("Table 6", "3 points of mAP over MobileNetV3 and MixNet on COCO", _over_others),
    Claim("Table 6", "the smaller pictures of ESPNetv2 are 256x256", _small_pictures),
    Claim("Section 7.1", "the base of DiCENet's detector is the 298 M network", _detector_base),
    Claim("Table 7", "4.1 and 5.8 points of overall F1 over ESPNetv2 and ShuffleNetV2", _over_others_in_labels),
    Claim("Tables 1, 4, 5", "the same networks cost the same in all tables", _same_networks),
)


def claim_rows(claims: Any = CLAIMS) -> list[dict[str, str]]:
    """One row for each claim, computed now: where, claim, counted here, verdict."""
    rows = []
    for claim in claims:
        found, verdict = claim.check()
        rows.append({"where": claim.where, "claim": claim.says, "counted": found, "verdict": verdict})
    return rows
