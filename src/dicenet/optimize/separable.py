"""Where a network has separable convolutions: pairs of a depth-wise and a point-wise one, found in its traced graph."""

import copy
import re
from collections import defaultdict
from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath, MixedConv2d
from torch import Tensor, fx, nn

from dicenet.errors import ConfigError

Size = tuple[int, int]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, DropPath)
#: Where activations come from: modules of these files have nothing else in them that changes one map into one.
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
_CONV = torch.ops.aten.conv2d.default
_MUL = (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor)
#: Position of the stride among the arguments of what halves maps; without one, the pooling's window is its stride.
_STRIDES = {
    _CONV: 3,
    torch.ops.aten.conv2d.padding: 3,
    torch.ops.aten.max_pool2d.default: 2,
    torch.ops.aten.avg_pool2d.default: 2,
}


class Pair(NamedTuple):
    """A separable convolution.

    Attributes:
        depth_wise: path of the depth-wise convolution, or of several kernel sizes mixed (timm's ``MixedConv2d``).
        between: paths of the norm, activation, or squeeze and excite between the two.
        point_wise: path of the 1x1 convolution.
        in_channels: of the depth-wise convolution.
        out_channels: of the point-wise one.
        kernel_size: of the depth-wise one, the largest if mixed.
        dilation: of the depth-wise one.
        stride: 1 or 2.
        feature_size: (H, W) of the result.
    """

    depth_wise: str
    between: tuple[str, ...]
    point_wise: str
    in_channels: int
    out_channels: int
    kernel_size: int
    dilation: int
    stride: int
    feature_size: Size

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of all that a unit replaces."""
        return self.depth_wise, *self.between, self.point_wise


class Left(NamedTuple):
    """A depth-wise convolution that stays, and why."""

    name: str
    reason: str


class Traced:
    """A network's graph of operators, and which module each belongs to.

    Args:
        model: any network that ``torch.export`` takes.
        size: (height, width) of the picture.

    Raises:
        ConfigError: it cannot be traced, or the picture is smaller than the network's stride.
    """

    def __init__(self, model: nn.Module, size: Size) -> None:
        self.model = model
        parameter = next(model.parameters(), None)
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if parameter is None or first is None:
            raise ConfigError(f"{type(model).__name__} has no convolution: there is nothing to replace")
        self.size = size
        #: Of the picture.
        self.in_channels = first.in_channels
        try:
            picture = torch.zeros(1, self.in_channels, *size, dtype=parameter.dtype)
            program = torch.export.export(copy.deepcopy(model).cpu().eval(), (picture,), strict=False)
        except Exception as error:  # tracing runs the model's own code, which may fail in any way
            text = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{type(model).__name__} cannot be traced for pictures of {size[0]}x{size[1]}: {text}"
            ) from error
        self.graph = program.graph_module.graph
        signature = program.graph_signature
        #: Parameters and buffers by their node.
        self.stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._nodes: dict[str, list[fx.Node]] = defaultdict(list)
        self._calls: dict[str, set[str]] = defaultdict(set)
        for node in self.graph.nodes:
            for key, value in (node.meta.get("nn_module_stack") or {}).items():
                path = _path(value)
                self._nodes[path].append(node)
                self._calls[path].add(str(key))
        self._check_stride(size)
        self._parts = {path for path in self._nodes if path and self._is_part(path)}

    def _check_stride(self, size: Size) -> None:
        strides: dict[fx.Node, float] = {}
        for node in self.graph.nodes:
            # What is enlarged again, as in gates that look at half the map, is no stride of the network.
            stride = max((strides[source] * _shrinkage(source, node) for source in node.all_input_nodes), default=1.0)
            if node.target in _STRIDES:
                position = _STRIDES[node.target]
                given = node.args[position] if len(node.args) > position else None
                given = given or (node.args[1] if node.target is not _CONV else None)
                stride *= max(given) if isinstance(given, (list, tuple)) else 1
            strides[node] = stride
        largest = round(max(strides.values()))
        if min(size) < largest:
            raise ConfigError(f"img_size {size[0]}x{size[1]} is below the network's stride of {largest}")

    def nodes(self, path: str) -> list[fx.Node]:
        """What a module computes."""
        return self._nodes[path]

    def module(self, path: str) -> nn.Module:
        """The module at a path."""
        return self.model.get_submodule(path)

    def calls(self, path: str) -> int:
        """How often a module is called."""
        return len(self._calls[path])

    def _is_part(self, path: str) -> bool:
        """Whether a module is one thing in the search for pairs: a layer, or a gate of several."""
        module = self.module(path)
        known = (nn.Conv2d, nn.Linear, MixedConv2d, *_NORMS, *_DROPOUTS)
        return isinstance(module, known) or _is_activation(module) or self._is_gate(path)

    def _is_gate(self, path: str) -> bool:
        """Whether a module multiplies its input with one number per channel: squeeze and excite in all its forms."""
        nodes = self._nodes[path]
        inputs = [s for s in _inputs(nodes) if s.name not in self.stored]
        last = nodes[-1]
        if len(inputs) != 1 or last.target not in _MUL or len(nodes) < 3:
            return False
        factors = [a for a in last.args if isinstance(a, fx.Node)]
        shapes = [tuple(value.shape) if (value := _value(f)) is not None else () for f in factors]
        return inputs[0] in factors and any(len(s) == 4 and prod(s[2:]) == 1 for s in shapes)

    def part(self, node: fx.Node) -> str | None:
        """Path of the part that a node belongs to; None if it is written out in the code of a larger module."""
        stack = node.meta.get("nn_module_stack") or {}
        return next((path for value in stack.values() if (path := _path(value)) in self._parts), None)


def _path(value: Any) -> str:
    """Path of a module on a node's stack; torch marks repeated calls."""
    return re.sub(r"@\d+", "", value[0])


def _inputs(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """What nodes take from elsewhere."""
    own = set(nodes)
    return list(dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in own))


def _value(node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def _shrinkage(source: fx.Node, node: fx.Node) -> float:
    """How much smaller a map is than what is made of it; 1 where it is not enlarged."""
    small, large = _value(source), _value(node)
    if small is None or large is None or small.dim() != 4 or large.dim() != 4:
        return 1.0
    return min(1.0, small.shape[2] / large.shape[2])


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ in _ACTIVATIONS and not isinstance(module, nn.MultiheadAttention)


def _convs(module: nn.Module) -> list[nn.Conv2d]:
    """The convolution, or those that are mixed; none for other modules."""
    convs = list(module.children()) if isinstance(module, MixedConv2d) else [module]
    return [conv for conv in convs if isinstance(conv, nn.Conv2d)]


def _is_depth_wise(module: nn.Module) -> bool:
    convs = _convs(module)
    return bool(convs) and all(conv.groups == conv.in_channels > 1 and max(conv.kernel_size) > 1 for conv in convs)


def _is_point_wise(module: nn.Module) -> bool:
    convs = _convs(module)
    return bool(convs) and all(
        conv.kernel_size == (1, 1) and conv.stride == (1, 1) and not _padded(conv) for conv in convs
    )


def _padded(conv: nn.Conv2d) -> bool:
    return conv.padding not in ((0, 0), "valid", "same")


def _why_not(traced: Traced, path: str) -> str | None:
    """Why a depth-wise convolution cannot become a unit's, whatever follows it; None if it can."""
    convs = _convs(traced.module(path))
    kernels = {side for conv in convs for side in conv.kernel_size}
    strides = {side for conv in convs for side in conv.stride}
    if traced.calls(path) > 1:
        return "it is used more than once"
    if any(conv.out_channels != conv.in_channels for conv in convs):
        return "it has several outputs for each channel"
    if any(len(set(conv.kernel_size)) > 1 for conv in convs):
        return "its kernel is not square"
    if any(side % 2 == 0 for side in kernels):
        return "its kernel is even"
    if len(strides) > 1 or max(strides) > 2:
        return f"its stride is {' and '.join(map(str, sorted(strides)))}"
    if len({side for conv in convs for side in conv.dilation}) > 1:
        return "its dilations differ"
    if sum(conv.in_channels for conv in convs) < 4:
        return "a unit needs 4 channels"
    nodes = traced.nodes(path)
    source, result = (_value(node) for node in (_map_into(traced, nodes), nodes[-1]))
    if source is None or result is None or source.dim() != 4:
        return "it does not filter a batch of maps"
    (stride,) = strides
    if tuple(result.shape[2:]) != tuple(-(-side // stride) for side in source.shape[2:]):
        return "it is not padded: its map shrinks"
    return None


def _map_into(traced: Traced, nodes: list[fx.Node]) -> fx.Node:
    """The map that a layer reads: the only one of its inputs that is not stored."""
    return next(source for source in _inputs(nodes) if source.name not in traced.stored)


def _follow(traced: Traced, path: str) -> tuple[tuple[str, ...], str] | str:
    """From a depth-wise convolution to its point-wise one: what lies between and its path, or why there is none."""
    between: list[str] = []
    last = traced.nodes(path)[-1]
    while True:
        parts = {traced.part(user) for user in last.users}
        if len(parts) != 1:
            return "its result goes to several places" if parts else "nothing follows it"
        (part,) = parts
        if part is None:
            operator = next(iter(last.users))
            name = getattr(operator.target, "__name__", str(operator.target)).split(".")[0]
            return "it is the last layer" if operator.op == "output" else f"{name} follows in the code of a module"
        module = traced.module(part)
        if traced.calls(part) > 1:
            return f"{part} follows, which is used more than once"
        if _is_point_wise(module):
            return tuple(between), part
        if isinstance(module, _NORMS) or _is_activation(module) or traced._is_gate(part):
            between.append(part)
        elif not isinstance(module, _DROPOUTS):
            return f"{part} follows, a {type(module).__name__} and no 1x1 convolution"
        last = traced.nodes(part)[-1]


def find_pairs(traced: Traced) -> tuple[list[Pair], list[Left]]:
    """All separable convolutions of a network in the order of computation, and the depth-wise ones that are none."""
    pairs, left = [], []
    parts = dict.fromkeys(part for node in traced.graph.nodes if (part := traced.part(node)) is not None)
    for path in parts:
        module = traced.module(path)
        if not _is_depth_wise(module):
            continue
        found = _why_not(traced, path) or _follow(traced, path)
        if isinstance(found, str):
            left.append(Left(path, found))
            continue
        between, point_wise = found
        convs = _convs(module)
        result = _value(traced.nodes(path)[-1])
        assert result is not None
        pairs.append(
            Pair(
                path,
                between,
                point_wise,
                sum(conv.in_channels for conv in convs),
                sum(conv.out_channels for conv in _convs(traced.module(point_wise))),
                max(conv.kernel_size[0] for conv in convs),
                convs[0].dilation[0],
                convs[0].stride[0],
                (int(result.shape[2]), int(result.shape[3])),
            )
        )
    return pairs, left
