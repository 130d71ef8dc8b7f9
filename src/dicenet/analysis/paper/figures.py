"""The paper's figures, drawn from the networks here: Figure 2 (where multiply-adds are) and Figure 4 (the blocks)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torchvision
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import fx, nn

from dicenet.analysis.paper.shares import KINDS, shares
from dicenet.layers import BottleneckBlock, ConvNormAct, DiCEUnit, ShuffleBlock, StridedUnit
from dicenet.models.figure4 import REPEATS, STEM_CHANNELS
from dicenet.models.network import Network

_COLOURS = {
    "standard": "#a1a1aa",
    "depth-wise and DimConv": "#2563eb",
    "local fusion": "#0d9488",
    "point-wise": "#f59e0b",
    "fully connected": "#be185d",
    "other": "#18181b",
}
#: Rows of boxes that a panel of Figure 4 has room for.
_ROWS = 6
_DARK = (_COLOURS["depth-wise and DimConv"], _COLOURS["local fusion"])
#: Networks of Figure 2: library and name. The paper does not say which DiCENet it shows.
FIGURE_2 = (
    ("torchvision", "mobilenet_v2"),
    ("torchvision", "shufflenet_v2_x1_5"),
    ("dicenet", "dicenet_240"),
    ("dicenet", "dicenet_150"),
)


def figure_2_rows() -> list[dict[str, Any]]:
    """One row for each network of Figure 2: multiply-adds (M) in all and of each kind of layer."""
    rows = []
    for library, name in FIGURE_2:
        net = torchvision.models.get_model(name) if library == "torchvision" else timm.create_model(name)
        parts = {kind: macs / 1e6 for kind, macs in shares(net, (3, 224, 224)).items()}
        rows.append({"network": name, "macs": sum(parts.values()), **{kind: parts.get(kind, 0.0) for kind in KINDS}})
    return rows


def figure_2(rows: Sequence[dict[str, Any]]) -> Figure:
    """Pies whose areas are the networks' multiply-adds."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    largest = max(row["macs"] for row in rows)
    for axes, row in zip(figure.subplots(1, len(rows)), rows, strict=True):
        _pie(axes, row, largest)
    handles = [_patch(kind) for kind in KINDS]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(KINDS), frameon=False)
    return figure


def _patch(kind: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=_COLOURS[kind], label=kind)


def _pie(axes: Axes, row: dict[str, Any], largest: float) -> None:
    values = [row[kind] for kind in KINDS]
    axes.pie(
        values,
        radius=(row["macs"] / largest) ** 0.5,
        colors=[_COLOURS[kind] for kind in KINDS],
        startangle=90,
        counterclock=False,
        wedgeprops={"edgecolor": "white", "linewidth": 1},
    )
    axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    text = "\n".join(f"{kind} {row[kind] / row['macs']:.1%}" for kind in KINDS if row[kind])
    axes.set_title(f"{row['network']}, {row['macs']:.0f} M", fontsize=10)
    axes.text(0, -1.15, text, ha="center", va="top", fontsize=8)


# -- Figure 4


class _Blocks(fx.Tracer):
    """Looks into blocks, not into layers."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, ConvNormAct | DiCEUnit) or super().is_leaf_module(module, name)


class _Box(NamedTuple):
    text: str
    sources: tuple[str, ...]
    colour: str


def _layer(module: nn.Module) -> tuple[str, str] | None:
    """What a layer is called in the picture, and its colour; None for one that does nothing."""
    if isinstance(module, ConvNormAct):
        conv = module.conv
        size = f"{conv.kernel_size[0]}x{conv.kernel_size[1]}"
        kind = f"{size} depth-wise" if conv.groups > 1 else f"{size} convolution"
        stride = "stride 2, " if conv.stride[0] > 1 else ""
        colour = _COLOURS["depth-wise and DimConv" if conv.groups > 1 else "point-wise"]
        return f"{kind}\n{stride}{conv.in_channels} to {conv.out_channels}", colour
    if isinstance(module, DiCEUnit):
        channels, result = module.dim_conv.channels, module.dim_fuse.spatial.conv.out_channels
        return f"DiCE unit\n{channels} to {result}", _COLOURS["local fusion"]
    if isinstance(module, nn.AvgPool2d):
        return f"{module.kernel_size}x{module.kernel_size} average\nstride {module.stride}", _COLOURS["standard"]
    return None if isinstance(module, nn.Identity) else (type(module).__name__, _COLOURS["standard"])


_OPERATORS = {"add": "sum", "cat": "concatenation", "channel_shuffle": "shuffle", "tensor_split": "split into halves"}


def block_graph(block: nn.Module) -> dict[str, _Box]:
    """What a block computes, read off its code: boxes by name, each with those whose results it takes."""
    graph = _Blocks().trace(block)
    boxes: dict[str, _Box] = {}
    same: dict[str, str] = {}  # results that are another box's, unchanged
    for node in graph.nodes:
        sources = tuple(dict.fromkeys(same.get(s.name, s.name) for s in node.all_input_nodes))
        name = getattr(node.target, "__name__", str(node.target))
        if node.op == "placeholder":
            boxes[node.name] = _Box("input", (), "#e4e4e7")
        elif node.op == "call_module" and (found := _layer(block.get_submodule(str(node.target)))) is not None:
            boxes[node.name] = _Box(found[0], sources, found[1])
        elif node.op == "output":
            boxes["output"] = _Box("output", sources, "#e4e4e7")
        elif name in _OPERATORS:
            boxes[node.name] = _Box(_OPERATORS[name], sources, "#d4d4d8")
        else:
            same[node.name] = sources[0]
    return boxes


def _places(boxes: dict[str, _Box]) -> dict[str, tuple[float, float]]:
    """Where boxes stand: below all that they read; two ways side by side, and joined ones in the middle again."""
    places: dict[str, tuple[float, float]] = {}
    for name, box in boxes.items():
        above = [places[source] for source in box.sources]
        column = sum(place[0] for place in above) / len(above) if above else 0.5
        readers = [other for other in boxes if box.sources and boxes[other].sources == box.sources]
        if len(readers) > 1:
            column += readers.index(name) - (len(readers) - 1) / 2
        places[name] = column, min((place[1] for place in above), default=1.0) - 1
    return places


def _draw_block(axes: Axes, title: str, block: nn.Module) -> None:
    boxes = block_graph(block)
    places = _places(boxes)
    for name, box in boxes.items():
        (column, row), text = places[name], "white" if box.colour in _DARK else "#18181b"
        for source in box.sources:
            from_column, from_row = places[source]
            arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": "#52525b", "shrinkA": 0, "shrinkB": 0}
            if from_row - row > 1 and from_column == column:  # it passes by the boxes between: round them
                arrow["connectionstyle"] = "arc3,rad=-0.9"
            axes.annotate("", (column, row + 0.3), (from_column, from_row - 0.3), arrowprops=arrow)
        shape = {"boxstyle": "round,pad=0.4", "facecolor": box.colour, "edgecolor": "none"}
        axes.text(column, row, box.text, ha="center", va="center", fontsize=8, color=text, bbox=shape)
    axes.set(xlim=(-0.75, 1.75), ylim=(-_ROWS - 0.4, 0.6))
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def _outline(net: Network) -> str:
    """A network in words, read off its modules: what a picture passes, with the size of every map."""
    sizes = [tuple(side // 2 for side in net.trained_size), tuple(side // 4 for side in net.trained_size)]
    lines = [
        f"3x3 convolution, stride 2: {net.stem.conv.out_channels} x {sizes[0][0]} x {sizes[0][1]}",
        f"3x3 maximum, stride 2: {STEM_CHANNELS} x {sizes[1][0]} x {sizes[1][1]}",
    ]
    height, width = sizes[1]
    for stage, info in zip(net.stages, net.feature_info[2:], strict=True):
        height, width = -(-height // 2), -(-width // 2)
        assert isinstance(stage, nn.Sequential)
        lines.append(f"strided unit, {len(stage) - 1} blocks: {info['num_chs']} x {height} x {width}")
    head = getattr(net.conv_head, "conv", None)
    lines.append(f"1x1 convolution: {head.out_channels} x {height} x {width}" if head is not None else "")
    lines.append("average, classifier")
    return "\n".join(line for line in lines if line)


#: Networks of Figure 4: name in timm, further arguments, and title.
FIGURE_4: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("mobilenet_figure4_dice_029", {}, "MobileNet"),
    ("resnet_dice_052", {}, "ResNet"),
    ("shufflenetv2_sep_041", {"unit": "dice", "layout": "figure4", "channels": 96}, "ShuffleNetV2"),
)


def figure_4() -> Figure:
    """The strided unit that the three networks share, and the block of each, as their code has them."""
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(5, 1.5))
    upper, lower = parts
    nets = [timm.create_model(name, **arguments) for name, arguments, _ in FIGURE_4]
    panels: list[tuple[str, nn.Module]] = []
    for net, (_, _, title) in zip(nets, FIGURE_4, strict=True):
        stage = net.stages[1]
        assert len(stage) == 1 + REPEATS[1]
        assert isinstance(stage[0], StridedUnit)
        panels.append((f"{title}: block", stage[2]))
    panels.insert(0, ("All: strided unit", nets[0].stages[1][0]))
    for axes, (title, block) in zip(upper.subplots(1, 4), panels, strict=True):
        kind = f" ({type(block).__name__})" if isinstance(block, ShuffleBlock | BottleneckBlock | StridedUnit) else ""
        _draw_block(axes, title + kind, block)
    for axes, net, (name, arguments, title) in zip(lower.subplots(1, 3), nets, FIGURE_4, strict=True):
        axes.axis("off")
        more = f" ({', '.join(f'{key}={value}' for key, value in arguments.items())})" if arguments else ""
        axes.text(0.5, 1, f"{title}: {name}{more}", ha="center", va="top", fontsize=9, weight="bold")
        axes.text(0.5, 0.82, _outline(net), ha="center", va="top", fontsize=8, linespacing=1.6)
    return figure
