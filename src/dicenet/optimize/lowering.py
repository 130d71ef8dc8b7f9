"""From a traced graph to a plan: which operations a plan knows, and the steps that each becomes."""

import itertools
import operator
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, fx, nn

from dicenet.layers import ConvNormAct, DiCEUnit, NormAct
from dicenet.layers.conv_norm_act import hooked
from dicenet.layers.dim_conv import resize
from dicenet.ops.unit import norm_arguments
from dicenet.optimize.steps import PAD, PANEL, Kind, Map, Place, Plan, PlanBuilder, at, pad_last, padded

#: Modules that a trace does not enter, beside torch's own.
LEAVES = (ConvNormAct, NormAct, DiCEUnit, SelectAdaptivePool2d)
#: Channels of a picture that the stem's kernel reads where they lie.
STEM_CHANNELS = 4
#: A local part adds up its result over at most so many blocks of rows: kLocalBlocks of ``ops/cpu/csrc/kernels.h``.
LOCAL_BLOCKS = 4
ADDITIONS = (operator.add, torch.add)

#: Channels, height and width of each input of a part.
Sizes = tuple[tuple[int, int, int], ...]


class Concat(tuple[Map, ...]):
    """Maps side by side, not copied yet: a shuffle may read them where they are."""


class Outside(NamedTuple):
    """An input of the plan."""

    number: int
    channels: int
    height: int
    width: int


class Flat(NamedTuple):
    """A map of one pixel as vectors (N, channels)."""

    map: Map


class NotPlannedError(Exception):
    """A part whose sizes no plan takes: it runs as modules, which also word what is wrong with them, if anything."""


# -- what a plan knows


def _is_pool(module: nn.MaxPool2d | nn.AvgPool2d) -> bool:
    def pair(value: Any) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else tuple(value)

    geometry = (pair(module.kernel_size), pair(module.stride), pair(module.padding)) == ((3, 3), (2, 2), (1, 1))
    if isinstance(module, nn.MaxPool2d):
        return geometry and pair(module.dilation) == (1, 1) and not module.ceil_mode and not module.return_indices
    return geometry and module.count_include_pad and not module.ceil_mode and module.divisor_override is None


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)


def _is_depth_wise(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride in ((1, 1), (2, 2))
        and conv.padding == (1, 1)
        and conv.dilation == (1, 1)
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.padding_mode == "zeros"
    )


def _is_stem(conv: nn.Conv2d, source: Any) -> bool:
    return (
        isinstance(source, fx.Node)
        and source.op == "placeholder"
        and conv.in_channels <= STEM_CHANNELS
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding))
    )


def _knows_conv(conv: nn.Conv2d, source: Any) -> bool:
    return _is_stem(conv, source) or _is_pointwise(conv) or _is_depth_wise(conv)


def _is_mean(module: SelectAdaptivePool2d) -> bool:
    return module.pool_type == "avg" and module.pool.output_size in (1, (1, 1)) and type(module.flatten) is nn.Identity


def _folds(pair: NormAct) -> bool:
    return type(pair.norm) is nn.BatchNorm2d and pair.norm.running_mean is not None and type(pair.act) is nn.PReLU


_MODULES: dict[type[nn.Module], Callable[[Any, fx.Node], bool]] = {
    ConvNormAct: lambda m, node: type(m.conv) is nn.Conv2d and _knows_conv(m.conv, node.args[0]) and _folds(m),
    NormAct: lambda m, node: _folds(m),
    DiCEUnit: lambda m, node: m.is_plain(),
    nn.Conv2d: lambda m, node: _knows_conv(m, node.args[0]),
    nn.MaxPool2d: lambda m, node: _is_pool(m),
    nn.AvgPool2d: lambda m, node: _is_pool(m),
    SelectAdaptivePool2d: lambda m, node: _is_mean(m),
    nn.AdaptiveAvgPool2d: lambda m, node: m.output_size in (1, (1, 1)),
    nn.Flatten: lambda m, node: m.start_dim == 1 and m.end_dim == -1 and _is_last(node),
    nn.Identity: lambda m, node: True,
    nn.Dropout: lambda m, node: True,
}


def _is_last(node: fx.Node) -> bool:
    """Whether only the graph's output uses a node: flat vectors are outputs, a plan does not go on with them."""
    return all(user.op == "output" for user in node.users)


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _knows_function(node: fx.Node) -> bool:
    if node.target is torch.cat:
        return len(node.args) > 0 and bool(_argument(node, 1, "dim") == 1)
    if node.target is F.channel_shuffle:
        return len(node.args) > 0 and bool(_argument(node, 1, "groups") == 2)
    if node.target is F.dropout:
        return len(node.args) > 0 and not _argument(node, 2, "training", True)
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op == "call_method" and knows(source, {})
    if node.target in ADDITIONS:
        return not node.kwargs and len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)
    return False


def _knows_split(node: fx.Node) -> bool:
    """Whether a node is a ``tensor_split`` at given channels whose parts are used one by one."""
    borders = _argument(node, 1, "")
    return (
        node.target == "tensor_split"
        and isinstance(borders, (list, tuple))
        and all(isinstance(border, int) for border in borders)
        and bool(_argument(node, 2, "dim", 0) == 1)
        and all(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)
    )


def knows(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a plan can take a node of a traced graph; sizes do not matter."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        check = _MODULES.get(type(module))
        return (
            check is not None
            and len(node.args) == 1
            and not node.kwargs
            and not hooked(*module.modules())
            and check(module, node)
        )
    if node.op == "call_function":
        return _knows_function(node)
    return node.op == "call_method" and _knows_split(node)


# -- weights


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution with the norm behind it, in float64."""
    weight = conv.weight.detach().double()
    bias = conv.bias.detach().double() if conv.bias is not None else weight.new_zeros(len(weight))
    if norm is None:
        return weight, bias
    scale, shift = _affine(norm)
    return weight * scale.view(-1, 1, 1, 1), bias * scale + shift


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm in evaluation, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
        return scale * weight, shift * weight + bias
    return scale, shift


def _slopes(slope: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The slope of a PReLU as the kernels take it: its middle, and half of its step at zero; zeros as padding."""
    slope = slope.detach().double().expand(channels)
    return pad_last((1 + slope) / 2), pad_last((1 - slope) / 2)


def _panels(weight: Tensor) -> Tensor:
    """A matrix (outputs, inputs), packed: panels of 48 outputs, in each the inputs in order."""
    columns = pad_last(weight.t())
    return torch.cat([panel.contiguous().flatten() for panel in columns.split(PANEL, dim=1)])


def _resize_table(size: int, new_size: int) -> tuple[Tensor, int]:
    """Dynamic scaling of one side as weighted sums: per new position first index, count, weights; largest count."""
    matrix = resize(torch.eye(size, dtype=torch.float64)[None, None], new_size, size)[0, 0]  # (new_size, size)
    spans = [(int(row.nonzero().min()), int(row.nonzero().max()) + 1) for row in matrix]
    longest = max(last - first for first, last in spans)
    table = torch.zeros(new_size, 2 + longest, dtype=torch.float64)
    for entry, row, (first, last) in zip(table, matrix, spans, strict=True):
        entry[0], entry[1] = first, last - first
        entry[2 : 2 + last - first] = row[first:last]
    return table, longest


# -- steps


def _plans_only(taken: bool) -> None:
    if not taken:
        raise NotPlannedError


class Lowering(fx.Interpreter):
    """Walks a graph whose nodes are all known and writes the steps of its plan."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.builder = PlanBuilder()
        self.by_module: dict[type[nn.Module], Callable[[Any, Any], Any]] = {
            ConvNormAct: lambda m, x: self._conv(m.conv, m.norm, m.act.weight, x),
            NormAct: self._norm_act,
            DiCEUnit: self._unit,
            nn.Conv2d: lambda m, x: self._conv(m, None, None, x),
            nn.MaxPool2d: lambda m, x: self._pool(Kind.MAX_POOL, x),
            nn.AvgPool2d: lambda m, x: self._pool(Kind.AVERAGE_POOL, x),
            SelectAdaptivePool2d: lambda m, x: self._mean(x),
            nn.AdaptiveAvgPool2d: lambda m, x: self._mean(x),
            nn.Flatten: self._flatten,
            nn.Identity: lambda m, x: x,
            nn.Dropout: lambda m, x: x,
        }

    def plan(self, sizes: Sizes) -> Plan:
        """The plan of the whole graph."""
        self.run(*(Outside(number, *size) for number, size in enumerate(sizes)))
        return self.builder.finish()

    # fx.Interpreter's hooks

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Steps of a module."""
        module = self.fetch_attr(target)
        return self.by_module[type(module)](module, args[0])

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Steps of a function."""
        if target is torch.cat:
            return Concat(self._inside(part) for part in args[0])
        if target is F.channel_shuffle:
            return self._shuffle(args[0])
        if target is operator.getitem:
            return args[0][args[1]]
        if target in ADDITIONS:
            return self._add(*args)
        return args[0]  # dropout in evaluation

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Parts of a split map, as views."""
        x = self._inside(args[0])
        parts = [range(x.channels)[first:last] for first, last in itertools.pairwise([0, *args[1], None])]
        _plans_only(all(parts))
        return [x.part(part.start, len(part)) for part in parts]

    def output(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stores the results."""
        # maps are tuples themselves
        several = isinstance(args[0], (tuple, list)) and not isinstance(args[0], (Map, Concat, Outside, Flat))
        results = args[0] if several else (args[0],)
        for number, result in enumerate(results):
            flat = isinstance(result, Flat)
            x = self._inside(result.map if flat else result)
            self.builder.out_shapes += [x.channels, 0 if flat else x.height, 0 if flat else x.width]
            self.builder.add(
                Kind.STORE,
                input=number,
                x=at(x),
                x_stride=x.stride,
                channels=x.channels,
                height=x.height,
                width=x.width,
            )
        return results

    # maps

    def _inside(self, x: Any) -> Map:
        """A map in the arena: loaded from outside, or its parts copied together."""
        if isinstance(x, Outside):
            return self._load(x)
        return self._concatenate(x) if isinstance(x, Concat) else x

    def _load(self, x: Outside) -> Map:
        out = self.builder.new_map(x.channels, x.height, x.width)
        self.builder.add(
            Kind.LOAD,
            input=x.number,
            out=at(out),
            out_stride=out.stride,
            channels=x.channels,
            height=x.height,
            width=x.width,
        )
        return out

    def _concatenate(self, parts: tuple[Map, ...]) -> Map:
        height, width = parts[0].height, parts[0].width
        _plans_only(all((part.height, part.width) == (height, width) for part in parts))
        out = self.builder.new_map(sum(part.channels for part in parts), height, width)
        start = 0
        for part in parts:
            is_last = part is parts[-1]
            self.builder.add(
                Kind.COPY,
                x=at(part),
                x_stride=part.stride,
                out=Place(out.buffer, start),
                out_stride=out.stride,
                channels=part.channels,
                height=height,
                width=width,
                count=out.stride - out.channels if is_last else 0,
            )
            start += part.channels
        return out

    def _whole(self, x: Any) -> Map:
        """A map that is a buffer of its own."""
        x = self._inside(x)
        return x if x.is_whole else self._concatenate((x,))

    def _shuffle(self, x: Any) -> Map:
        if not (isinstance(x, Concat) and len(x) == 2 and x[0][1:4] == x[1][1:4]):
            whole = self._inside(x)
            _plans_only(whole.channels % 2 == 0)
            half = whole.channels // 2
            x = Concat((whole.part(0, half), whole.part(half, half)))
        first, second = x
        out = self.builder.new_map(2 * first.channels, first.height, first.width)
        self.builder.add(
            Kind.INTERLEAVE,
            x=at(first),
            x_stride=first.stride,
            second=at(second),
            second_stride=second.stride,
            out=at(out),
            out_stride=out.stride,
            channels=first.channels,
            height=first.height,
            width=first.width,
        )
        return out

    def _add(self, first: Any, second: Any) -> Map:
        first, second = self._whole(first), self._whole(second)
        _plans_only(first[1:4] == second[1:4])  # others are broadcast
        out = self.builder.new_map(first.channels, first.height, first.width)
        self.builder.add(
            Kind.ADD,
            x=at(first),
            x_stride=first.stride,
            second=at(second),
            second_stride=second.stride,
            out=at(out),
            out_stride=out.stride,
            channels=out.stride,
            height=out.height,
            width=out.width,
        )
        return out

    def _flatten(self, module: nn.Flatten, x: Any) -> Flat:
        x = self._inside(x)
        _plans_only(x.height == x.width == 1)  # others would have to be in torch's order
        return Flat(x)

    # operations

    def _pool(self, kind: Kind, x: Any) -> Map:
        x = self._whole(x)
        out = self.builder.new_map(x.channels, (x.height + 1) // 2, (x.width + 1) // 2)
        self.builder.add(
            kind,
            x=at(x),
            channels=x.stride,
            height=x.height,
            width=x.width,
            out=at(out),
            out_height=out.height,
            out_width=out.width,
        )
        return out

    def _mean(self, x: Any) -> Map:
        x = self._whole(x)
        out = self.builder.new_map(x.channels, 1, 1)
        self._mean_of(at(x), x.height, x.width, x.height * x.width, out)
        return out

    def _mean_of(self, place: Place, height: int, width: int, count: int, out: Map) -> None:
        self.builder.add(
            Kind.MEAN,
            x=place,
            x_stride=out.stride,
            channels=out.stride,
            height=height,
            width=width,
            count=count,
            out=at(out),
        )

    def _norm_act(self, module: NormAct, x: Any) -> Map:
        x = self._whole(x)
        _plans_only(x.channels == module.norm.num_features)
        scale, shift = _affine(module.norm)
        out = self.builder.new_map(x.channels, x.height, x.width)
        self.builder.add(
            Kind.NORM_ACT,
            x=at(x),
            x_stride=x.stride,
            channels=x.stride,
            height=x.height,
            width=x.width,
            out=at(out),
            out_stride=out.stride,
            weight=self.builder.weight(pad_last(scale)),
            bias=self.builder.weight(pad_last(shift)),
            middle=self.builder.weight(pad_last(module.act.weight.detach().expand(x.channels))),
        )
        return out

    def _activation(self, slope: Tensor | None, channels: int) -> dict[str, int]:
        if slope is None:
            return {}
        middle, half = _slopes(slope, channels)
        return {"middle": self.builder.weight(middle), "half": self.builder.weight(half)}

    def _conv(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, slope: Tensor | None, x: Any) -> Map:
        weight, bias = _fold(conv, norm)
        x = x if isinstance(x, Outside) else self._inside(x)
        _plans_only(x.channels == conv.in_channels)
        if isinstance(x, Outside) and conv.in_channels <= STEM_CHANNELS and conv.groups == 1:
            return self._stem(conv, weight, bias, slope, x)
        if _is_pointwise(conv):
            return self._pointwise(weight, bias, slope, self._inside(x), conv.groups)
        return self._depth_wise(weight, bias, slope, self._whole(x), conv.stride[0])

    def _stem(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor, slope: Tensor | None, x: Outside) -> Map:
        kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (x.height, x.width))
        _plans_only(height > 0 and width > 0)
        out = self.builder.new_map(conv.out_channels, height, width)
        self.builder.add(
            Kind.STEM,
            input=x.number,
            channels=x.channels,
            height=x.height,
            width=x.width,
            kernel=kernel,
            stride=stride,
            padding=padding,
            out=at(out),
            out_channels=out.stride,
            out_height=height,
            out_width=width,
            weight=self.builder.weight(pad_last(weight.permute(2, 3, 1, 0))),
            bias=self.builder.weight(pad_last(bias)),
            **self._activation(slope, conv.out_channels),
        )
        self.builder.macs += weight.numel() * height * width
        return out

    def _pointwise(self, weight: Tensor, bias: Tensor, slope: Tensor | None, x: Map, groups: int) -> Map:
        outputs, inputs = weight.shape[:2]
        self.builder.macs += weight.numel() * x.height * x.width
        matrix = weight[:, :, 0, 0]
        if groups > 1 and (outputs // groups) % PAD:  # groups that do not begin at a vector: one full matrix
            matrix = torch.block_diag(*matrix.chunk(groups))
            inputs, groups = matrix.shape[1], 1
        out = self.builder.new_map(outputs, x.height, x.width)
        each = outputs // groups
        for group, (rows, start) in enumerate(zip(matrix.chunk(groups), bias.chunk(groups), strict=True)):
            part = None if slope is None else slope.expand(outputs).chunk(groups)[group]
            self.builder.add(
                Kind.GEMM,
                x=Place(x.buffer, x.offset + group * inputs),
                x_stride=x.stride,
                channels=inputs,
                height=x.height,
                width=x.width,
                out=Place(out.buffer, group * each),
                out_stride=out.stride,
                out_channels=padded(each),
                count=each,
                weight=self.builder.weight(_panels(rows)),
                bias=self.builder.weight(pad_last(start)),
                **self._activation(part, each),
            )
        return out

    def _depth_wise(
        self,
        weight: Tensor,
        bias: Tensor,
        slope: Tensor | None,
        x: Map,
        stride: int,
        gate: Map | None = None,
    ) -> Map:
        height, width = (x.height - 1) // stride + 1, (x.width - 1) // stride + 1
        out = self.builder.new_map(x.channels, height, width)
        gating = {} if gate is None else {"gate": at(gate)}
        self.builder.add(
            Kind.DEPTH_WISE,
            x=at(x),
            x_stride=x.stride,
            channels=x.stride,
            height=x.height,
            width=x.width,
            stride=stride,
            out=at(out),
            out_stride=out.stride,
            out_height=height,
            out_width=width,
            count=x.channels,
            weight=self.builder.weight(pad_last(weight.flatten(1).t())),
            bias=self.builder.weight(pad_last(bias)),
            **self._activation(slope, x.channels),
            **gating,
        )
        self.builder.macs += weight.numel() * height * width
        return out

    # the DiCE unit

    def _unit(self, unit: DiCEUnit, x: Any) -> Map:
        x = self._whole(x)
        _plans_only(x.channels == unit.dim_conv.channels)
        local, means = self._local(unit, x)
        fuse = unit.dim_fuse
        squeezed = self._pointwise(*_fold(fuse.excitation.squeeze, None), torch.zeros(1), means, 1)
        gate = self._pointwise(*_fold(fuse.excitation.excite, None), None, squeezed, 1)
        self.builder.add(Kind.SIGMOID, x=at(gate), out=at(gate), channels=gate.stride)
        weight, bias = _fold(fuse.spatial.conv, fuse.spatial.norm)
        return self._depth_wise(weight, bias, fuse.spatial.act.weight, local, 1, gate)

    def _local(self, unit: DiCEUnit, x: Map) -> tuple[Map, Map]:
        """The local part and its channel means."""
        parts = unit.parts()
        table = torch.ops.dicenet.fold_local(
            parts.weight_depth.detach(),
            *(t if t is None else t.detach() for t in norm_arguments(parts.norm)),
            parts.slope.detach(),
            parts.norm.eps,
            parts.join.detach(),
            *(t if t is None else t.detach() for t in norm_arguments(parts.joined_norm)),
            parts.joined_slope.detach(),
            parts.joined_norm.eps,
        )
        out = self.builder.new_map(x.channels, x.height, x.width)
        blocks = -(-x.height // -(-x.height // LOCAL_BLOCKS))
        sums = self.builder.buffer(x.stride * blocks)
        height, width = unit.dim_conv.feature_size
        ready = {}
        if (x.height, x.width) != (height, width):
            by_height = self._scaled_branch(x, parts.weight_height, Kind.RESIZE_ROWS, height)
            by_width = self._scaled_branch(x, parts.weight_width, Kind.RESIZE_COLUMNS, width)
            ready = {"third": at(by_height), "fourth": at(by_width)}
        self.builder.add(
            Kind.LOCAL,
            x=at(x),
            x_stride=x.stride,
            second=Place(sums, 0),
            channels=x.stride,
            height=x.height,
            width=x.width,
            out=at(out),
            out_stride=out.stride,
            weight=self.builder.weight(pad_last(table)),
            bias=self.builder.weight(parts.weight_height),
            middle=self.builder.weight(parts.weight_width),
            **ready,
        )
        channels, pixels = x.channels, x.height * x.width
        self.builder.macs += channels * pixels * (9 + 3)
        if not ready:
            self.builder.macs += channels * pixels * 18
        means = self.builder.new_map(channels, 1, 1)
        self._mean_of(Place(sums, 0), blocks, 1, pixels, means)
        return out, means

    def _scaled_branch(self, x: Map, weight: Tensor, kind: Kind, trained: int) -> Map:
        """Dynamic scaling of the height or width branch: resize one side, convolve, resize back."""
        rows = kind is Kind.RESIZE_ROWS
        size = x.height if rows else x.width
        x = self._resize(kind, x, trained)
        out = self.builder.new_map(x.channels, x.height, x.width)
        self.builder.add(
            Kind.DIM_CONV,
            x=at(x),
            x_stride=x.stride,
            channels=x.stride,
            height=x.height,
            width=x.width,
            kernel=2 if rows else 4,
            out=at(out),
            out_stride=out.stride,
            weight=self.builder.weight(weight),
        )
        self.builder.macs += 9 * prod((x.channels, x.height, x.width))
        return self._resize(kind, out, size)

    def _resize(self, kind: Kind, x: Map, size: int) -> Map:
        rows = kind is Kind.RESIZE_ROWS
        old = x.height if rows else x.width
        if old == size:
            return x
        table, longest = _resize_table(old, size)
        out = self.builder.new_map(x.channels, *((size, x.width) if rows else (x.height, size)))
        self.builder.add(
            kind,
            x=at(x),
            x_stride=x.stride,
            channels=x.stride,
            height=x.height,
            width=x.width,
            kernel=longest,
            out=at(out),
            out_stride=out.stride,
            out_height=out.height,
            out_width=out.width,
            weight=self.builder.weight(table),
        )
        return out


def lower(graph: fx.GraphModule, sizes: Sizes) -> Plan:
    """The plan of a graph whose nodes are all known, for inputs of these sizes.

    Raises:
        NotPlannedError: the nodes are known, but not for maps of these sizes.
    """
    with torch.device("cpu"):  # whatever the process makes its tensors on
        return Lowering(graph).plan(sizes)
