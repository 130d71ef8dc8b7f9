"""Which channel counts of a traced network belong together, and which may change: what scaling its width needs."""

import functools
from collections.abc import Callable, Iterable
from math import gcd, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from dicenet.optimize.separable import Pair, Traced

aten = torch.ops.aten
#: Widths are rounded to multiples of this, as in MobileNets.
DIVISOR = 8

_UNARY = {
    getattr(aten, name).default
    for name in (
        *("relu", "relu_", "silu", "silu_", "gelu", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_"),
        *("sigmoid", "sigmoid_", "hardtanh", "hardtanh_", "tanh", "leaky_relu", "leaky_relu_", "mish", "mish_", "elu"),
        *("elu_", "dropout", "dropout_", "clone", "contiguous", "clamp", "clamp_", "relu6", "relu6_"),
        *("adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "adaptive_max_pool2d", "prelu", "alias", "detach"),
    )
    if hasattr(aten, name)
} | {aten.to.dtype, aten.pow.Tensor_Scalar}
_BINARY = {
    getattr(getattr(aten, name), "Tensor")  # noqa: B009 (as names of overloads are written)
    for name in ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")
} | {aten.addcmul.default}


class Group:
    """Channel counts that must stay equal."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.fixed = False
        self._joined: Group | None = None

    def root(self) -> "Group":
        """The group that this one was joined to, at last."""
        return self if self._joined is None else self._joined.root()

    def join(self, other: "Group") -> None:
        """Make the two one."""
        mine, its = self.root(), other.root()
        if mine is its:
            return
        if mine.channels != its.channels:  # what was not understood
            mine.fixed = its.fixed = True
            return
        mine._joined = its
        its.fixed |= mine.fixed


@functools.cache
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def _nearest_divisor(number: int, wanted: float) -> int:
    """The divisor of a number that is nearest to another; of at least 4, the fewest channels of a unit."""
    return min((d for d in _divisors(number) if d >= min(4, number)), key=lambda d: abs(d - wanted))


class Sizes:
    """The channels of each group at a width.

    Fixed groups keep theirs; the others take multiples of 8. The two sides of a unit are chosen together: its 3x3
    convolution has as many groups as their greatest common divisor, and costs a multiple without a large one. So the
    second to be chosen is a multiple of that divisor of the first which is nearest to the scaled greatest common one.
    """

    def __init__(self, units: Iterable[tuple[Group, Group]], width: float) -> None:
        self.width = width
        self._chosen: dict[Group, int] = {}
        for given, result in ((given.root(), result.root()) for given, result in units):
            known, other = (given, result) if given in self._chosen else (result, given)
            self._chosen[known] = size = self(known)
            if other not in self._chosen and not other.fixed and width != 1:
                step = _nearest_divisor(size, gcd(given.channels, result.channels) * width)
                self._chosen[other] = max(1, round(other.channels * width / step)) * step

    def __call__(self, group: Group) -> int:
        """Channels of a group."""
        root = group.root()
        if root.fixed or self.width == 1:
            return root.channels
        if root in self._chosen:
            return self._chosen[root]
        return max(DIVISOR, int(root.channels * self.width / DIVISOR + 0.5) * DIVISOR)


class Along(NamedTuple):
    """Where the channels of a tensor are: their group, and which of its dimensions they are."""

    group: Group
    axis: int


class Work(NamedTuple):
    """Multiply-adds of a layer: those for each pair of an input and an output, and the groups of the two."""

    each: float
    inputs: Group | None
    outputs: Group | None

    def macs(self, sizes: Sizes) -> float:
        """At a width; a layer without an input group works on each channel by itself."""
        return self.each * prod(sizes(group) for group in (self.inputs, self.outputs) if group is not None)


class Channels:
    """The groups of a network's channels.

    Args:
        traced: the network.
        pairs: those that units replace: nothing inside of them matters.

    Attributes:
        stored: of each parameter and buffer that has channels, the group along each dimension that does.
        units: groups of the inputs and outputs of each pair.
        work: of all layers outside the pairs.
    """

    def __init__(self, traced: Traced, pairs: Iterable[Pair]) -> None:
        self.stored: dict[str, dict[int, Group]] = {}
        self.units: dict[Pair, tuple[Group, Group]] = {}
        self.work: list[Work] = []
        self._names = traced.stored
        self._along: dict[fx.Node, Along] = {}
        inside = {node: pair for pair in pairs for path in pair.modules for node in traced.nodes(path)}
        ends = {traced.nodes(pair.point_wise)[-1]: pair for pair in inside.values()}
        for node in traced.graph.nodes:
            if node in ends:
                self._unit(node, ends[node], traced)
            elif node not in inside:
                self._visit(node)
        self._fix_classifier(traced)

    @property
    def scalable(self) -> bool:
        """Whether any channel count may change."""
        groups = [group for pair in self.units.values() for group in pair]
        return any(not group.root().fixed for group in groups)

    def sizes(self, width: float) -> Sizes:
        """All channel counts at a width."""
        return Sizes(self.units.values(), width)

    def after(self, node: fx.Node) -> Group | None:
        """Group of a result's channels; None inside of pairs, and where it is not known."""
        along = self._along.get(node)
        return along.group if along is not None else None

    def _fix_classifier(self, traced: Traced) -> None:
        """What the last layer reads keeps its width, as in MobileNetV2: its owner knows the number."""
        layers = [n for n in traced.graph.nodes if n.target in (aten.conv2d.default, aten.linear.default)]
        self._fix(layers[-1].args[:1])

    # -- one node

    def _unit(self, node: fx.Node, pair: Pair, traced: Traced) -> None:
        nodes = traced.nodes(pair.depth_wise)
        source = next(s for n in nodes for s in n.all_input_nodes if s not in nodes and s.name not in self._names)
        group = self._group(source, 1)
        self._along[node] = Along(Group(pair.out_channels), 1)
        self.units[pair] = (group, self._along[node].group)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            self._fix(node.all_input_nodes)
        elif node.op == "placeholder":
            if node.name not in self._names and _shape(node):
                self._fresh(node, 1, fixed=True)
        elif node.op == "call_function":
            rule = _RULES.get(node.target, Channels._unknown)
            rule(self, node)

    def _unknown(self, node: fx.Node) -> None:
        """An operator that may do anything to channels."""
        self._fix(node.all_input_nodes)
        if len(_shape(node)) > 1:
            self._fresh(node, 1, fixed=True)

    def _fresh(self, node: fx.Node, axis: int, fixed: bool = False) -> Group:
        group = Group(_shape(node)[axis])
        group.fixed = fixed
        self._along[node] = Along(group, axis)
        return group

    def _fix(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            if node in self._along:
                self._along[node].group.root().fixed = True

    def _group(self, node: fx.Node, axis: int) -> Group:
        """Group of a tensor whose channels must be this dimension."""
        along = self._along.get(node)
        if along is not None and along.axis == axis:
            return along.group
        self._fix([node])
        return self._fresh(node, axis, fixed=True)

    def _store(self, node: Any, groups: dict[int, Group]) -> None:
        """Note the groups of a parameter; those of one that is computed, or belongs to two things, do not change."""
        if not isinstance(node, fx.Node):
            return
        name = self._names.get(node.name)
        known = self.stored.get(name or "", {})
        for dimension, group in groups.items():
            if name is None:
                group.root().fixed = True
            elif dimension in known:
                known[dimension].join(group)
        if name is not None:
            self.stored[name] = {**groups, **known}

    def _conv(self, node: Any) -> None:
        source, weight, *rest = node.args
        bias, groups = (rest[0] if rest else None), (rest[4] if len(rest) > 4 else 1)
        shape = _shape(weight)
        positions = prod(_shape(node)[2:]) * prod(shape[2:])
        given = self._group(source, 1)
        if groups == 1:
            result = self._fresh(node, 1)
            self._store(weight, {0: result, 1: given})
            self.work.append(Work(positions, given, result))
        elif groups == shape[0] == given.channels:
            self._along[node] = Along(given, 1)
            self._store(weight, {0: given})
            self.work.append(Work(positions, None, given))
        else:
            self._unknown(node)
            self.work.append(Work(positions * shape[0] * shape[1], None, None))
        self._store(bias, {0: self._along[node].group})

    def _linear(self, node: Any) -> None:
        source, weight, *bias = node.args
        last = len(_shape(source)) - 1
        given = self._group(source, last)
        result = self._fresh(node, last)
        self._store(weight, {0: result, 1: given})
        self._store(bias[0] if bias else None, {0: result})
        self.work.append(Work(prod(_shape(node)[:-1]), given, result))

    def _batch_norm(self, node: Any) -> None:
        source, *stored = node.args
        group = self._group(source, 1)
        self._along[node] = Along(group, 1)
        for value in stored[:4]:
            self._store(value, {0: group})

    def _layer_norm(self, node: Any) -> None:
        source, shape, *stored = node.args
        along = self._along.get(source)
        if len(shape) > 1 or along is None or along.axis != len(_shape(source)) - 1:
            return self._unknown(node)
        self._along[node] = along
        for value in stored[:2]:
            self._store(value, {0: along.group})

    def _same(self, node: Any) -> None:
        along = self._along.get(node.args[0])
        others = [source for source in node.all_input_nodes if source is not node.args[0]]
        if along is None or others:
            return self._unknown(node)
        self._along[node] = along

    def _broadcast(self, node: Any) -> None:
        """Sums and products: operands that have channels have the same ones, parameters too."""
        maps = [source for source in node.all_input_nodes if source in self._along]
        if not maps:
            return
        full = [s for s in maps if _shape(s)[self._along[s].axis] > 1 or len(maps) == 1] or maps
        along = self._along[full[0]]
        from_end = len(_shape(full[0])) - along.axis
        for source in full[1:]:
            other = self._along[source]
            if len(_shape(source)) - other.axis != from_end:
                return self._unknown(node)
            along.group.join(other.group)
        for source in node.all_input_nodes:
            shape = _shape(source)
            if source not in self._along and len(shape) >= from_end and shape[-from_end] == along.group.channels > 1:
                self._store(source, {len(shape) - from_end: along.group})
        self._along[node] = Along(along.group, len(_shape(node)) - from_end)

    def _permute(self, node: Any) -> None:
        source, order = node.args
        along = self._along.get(source)
        if along is None:
            return self._unknown(node)
        rank = len(_shape(source))
        self._along[node] = Along(along.group, [axis % rank for axis in order].index(along.axis))

    def _mean(self, node: Any) -> None:
        source, dims, *keep = node.args
        self._reduce(node, source, dims, bool(keep and keep[0]))

    def _norm(self, node: Any) -> None:
        source, _order, *rest = node.args
        self._reduce(node, source, rest[0] if rest else None, bool(len(rest) > 1 and rest[1]))

    def _reduce(self, node: Any, source: fx.Node, dims: list[int] | None, kept: bool) -> None:
        along, rank = self._along.get(source), len(_shape(source))
        gone = {axis % rank for axis in dims or range(rank)}
        if along is None:
            self._unknown(node)
            return
        if along.axis in gone:  # one number of all channels, however many: it has none itself
            return
        self._along[node] = Along(along.group, along.axis - (0 if kept else sum(axis < along.axis for axis in gone)))

    def _flatten(self, node: Any) -> None:
        """A map of one pixel as a vector; a parameter in another shape."""
        source = node.args[0]
        along, shape = self._along.get(source), _shape(node)
        if along is not None and prod(_shape(source)) == _shape(source)[0] * along.group.channels and len(shape) == 2:
            self._along[node] = Along(along.group, 1)
        elif source.name in self._names and len(_shape(source)) == 1 and prod(shape) == max(shape):
            group = self._fresh(node, shape.index(max(shape)))
            self._store(source, {0: group})
        else:
            self._unknown(node)

    def _pad(self, node: Any) -> None:
        along = self._along.get(node.args[0])
        if along is None or len(_shape(node)) - along.axis <= len(node.args[1]) // 2:
            return self._unknown(node)
        self._along[node] = along


_RULES: dict[Any, Callable[[Channels, Any], None]] = {
    **dict.fromkeys(_UNARY, Channels._same),
    **dict.fromkeys(_BINARY, Channels._broadcast),
    aten.conv2d.default: Channels._conv,
    aten.linear.default: Channels._linear,
    aten.batch_norm.default: Channels._batch_norm,
    aten.layer_norm.default: Channels._layer_norm,
    aten.permute.default: Channels._permute,
    aten.mean.dim: Channels._mean,
    aten.linalg_vector_norm.default: Channels._norm,
    aten.flatten.using_ints: Channels._flatten,
    aten.view.default: Channels._flatten,
    aten.reshape.default: Channels._flatten,
    aten.pad.default: Channels._pad,
}


def _shape(node: Any) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(int(side) for side in value.shape) if isinstance(value, Tensor) else ()


# -- changing a network


def resize(model: nn.Module, channels: Channels, sizes: Sizes) -> None:
    """Give a network the channels of a width, in place. Pairs are not touched: units replace them.

    Weights of which a dimension changes are drawn anew, with the deviation of the old ones; vectors (norms, biases,
    scales) repeat their values in turn.
    """
    owners = dict(model.named_modules())
    for name, groups in channels.stored.items():
        path, _, attribute = name.rpartition(".")
        owner = owners[path]
        old: Tensor = getattr(owner, attribute)
        shape = tuple(sizes(groups[d]) if d in groups else side for d, side in enumerate(old.shape))
        if shape == tuple(old.shape):
            continue
        new = _resized(old.detach(), shape)
        if isinstance(old, nn.Parameter):
            setattr(owner, attribute, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            owner._buffers[attribute] = new
    for module in owners.values():
        _say_sizes(module)


def _resized(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    if sum(side > 1 for side in shape) < 2:
        (axis,) = [d for d, side in enumerate(shape) if side != old.shape[d]]
        return old.index_select(axis, torch.arange(shape[axis], device=old.device) % old.shape[axis])
    ratio = prod(old.shape[1:]) / prod(shape[1:])  # the fan-in changes the deviation of what comes out
    return torch.randn(shape, dtype=old.dtype, device=old.device) * old.std() * ratio**0.5


def _say_sizes(module: nn.Module) -> None:
    """Bring the numbers that a layer tells of itself in step with its weights."""
    if isinstance(module, nn.Conv2d):
        depth_wise = module.groups == module.in_channels == module.out_channels > 1
        module.out_channels = module.weight.shape[0]
        module.groups = module.weight.shape[0] if depth_wise else module.groups
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
