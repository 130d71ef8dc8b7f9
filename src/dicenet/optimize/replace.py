"""``replace_separable_convs``: any network's separable convolutions as DiCE units, with a report of what was done."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dicenet.errors import ConfigError
from dicenet.layers import DiCEUnit
from dicenet.layers.units import unit_layers
from dicenet.models.network import Network, initialise
from dicenet.optimize.channels import Channels, Sizes, resize
from dicenet.optimize.separable import Left, Pair, Size, Traced, find_pairs

_logger = logging.getLogger("dicenet")
#: Widths that are tried for the same multiply-adds.
_WIDTHS = [step / 200 for step in range(50, 1600)]


@dataclass(frozen=True)
class Replacement:
    """One separable convolution that became a unit.

    Attributes:
        pair: what was replaced, as it was.
        in_channels: of the unit.
        out_channels: of the unit.
        macs: multiply-adds before and after.
        parameters: before and after.
    """

    pair: Pair
    in_channels: int
    out_channels: int
    macs: tuple[int, int]
    parameters: tuple[int, int]


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`replace_separable_convs` did.

    Attributes:
        network: class of the network.
        img_size: (height, width) of the picture that all is counted for.
        width: factor of the channels that may change.
        replaced: in the order of computation.
        left: depth-wise convolutions that stayed, and why.
        macs: multiply-adds of the whole network before and after.
        parameters: of the whole network before and after.
    """

    network: str
    img_size: Size
    width: float
    replaced: tuple[Replacement, ...]
    left: tuple[Left, ...]
    macs: tuple[int, int]
    parameters: tuple[int, int]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each replacement, as plain values."""
        return [
            {
                "name": r.pair.depth_wise,
                "point_wise": r.pair.point_wise,
                "gone_between": " ".join(r.pair.between),
                "in_channels": r.in_channels,
                "out_channels": r.out_channels,
                "kernel_size": r.pair.kernel_size,
                "stride": r.pair.stride,
                "height": r.pair.feature_size[0],
                "width": r.pair.feature_size[1],
                "macs_before": r.macs[0],
                "macs_after": r.macs[1],
                "parameters_before": r.parameters[0],
                "parameters_after": r.parameters[1],
            }
            for r in self.replaced
        ]

    @property
    def summary(self) -> str:
        """The report's first line: the whole network."""
        if not self.replaced:
            return f"{self.network} has no separable convolution that can be replaced: nothing was changed"
        size = "x".join(map(str, self.img_size))
        return (
            f"{self.network} at {size}: {len(self.replaced)} separable convolutions became DiCE units, width "
            f"{self.width:g}; multiply-adds {self.macs[0] / 1e6:.2f} M before, {self.macs[1] / 1e6:.2f} M after "
            f"({self.macs[1] / self.macs[0] - 1:+.1%}); parameters {self.parameters[0] / 1e6:.3f} M, "
            f"{self.parameters[1] / 1e6:.3f} M"
        )

    def __str__(self) -> str:
        lines = [self.summary]
        for r in self.replaced:
            height, width = r.pair.feature_size
            stride = f", stride {r.pair.stride}" if r.pair.stride > 1 else ""
            lines.append(
                f"  {r.pair.depth_wise}: {r.in_channels} to {r.out_channels} channels, {height}x{width}, kernel "
                f"{r.pair.kernel_size}{stride}; {r.macs[0] / 1e6:.2f} M, {r.macs[1] / 1e6:.2f} M"
            )
        lines += [f"  left: {left.name}, because {left.reason}" for left in self.left]
        return "\n".join(lines)


def unit_macs(in_channels: int, out_channels: int, kernel_size: int, feature_size: Size) -> int:
    """Multiply-adds of a DiCE unit: three branches, local fusion, 3x3 with gcd groups, and the excitation once."""
    positions = feature_size[0] * feature_size[1]
    spatial = 9 * out_channels * in_channels // gcd(in_channels, out_channels)
    hidden = in_channels // 4
    return positions * (3 * kernel_size**2 * in_channels + 3 * in_channels + spatial) + hidden * (
        in_channels + out_channels
    )


def _matching_width(channels: Channels, target: int, pairs: int) -> float:
    """The width whose multiply-adds come nearest to the target, of which the pairs' share is given.

    Of equals that nearest to 1. Work that the account of the channels does not know (attention's products) stays.
    """

    def outside(sizes: Sizes) -> float:
        return sum(work.macs(sizes) for work in channels.work)

    unknown = target - pairs - outside(channels.sizes(1.0))

    def macs(width: float) -> float:
        sizes = channels.sizes(width)
        return (
            unknown
            + outside(sizes)
            + sum(
                unit_macs(sizes(given), sizes(result), pair.kernel_size, pair.feature_size)
                for pair, (given, result) in channels.units.items()
            )
        )

    return min(_WIDTHS, key=lambda width: (abs(macs(width) - target), abs(width - 1)))


def _unit(pair: Pair, in_channels: int, out_channels: int, like: Tensor) -> nn.Module:
    """The unit in a pair's place: with stride 2 behind an average pooling, as in the strided unit."""
    if pair.kernel_size == 3 and pair.dilation == 1:
        layers = unit_layers("dice", in_channels, out_channels, pair.feature_size, pair.stride)
    else:
        dilation = (pair.dilation,) * 3
        unit = DiCEUnit(in_channels, out_channels, pair.feature_size, pair.kernel_size, dilation)
        layers = [unit] if pair.stride == 1 else [nn.AvgPool2d(3, stride=2, padding=1), unit]
    module = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    initialise(module, grouped=True)
    return module.to(like)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module


def _replace(new: nn.Module, pair: Pair, channels: Channels, sizes: Sizes, macs: int) -> Replacement:
    """Put a unit in a pair's place; the pair's multiply-adds are given, for the account."""
    given, result = (sizes(group) for group in channels.units[pair])
    gone = [new.get_submodule(path) for path in pair.modules]
    unit = _unit(pair, given, result, like=next(gone[0].parameters()))
    _put(new, pair.depth_wise, unit)
    for path in (*pair.between, pair.point_wise):
        _put(new, path, nn.Identity())
    after = unit_macs(given, result, pair.kernel_size, pair.feature_size)
    return Replacement(pair, given, result, (macs, after), (_parameters(gone), _parameters([unit])))


def _last_map(model: nn.Module, traced: Traced) -> Tensor:
    """What timm calls the features, without memory."""
    model = copy.deepcopy(model).to("meta").eval()
    like = next(model.parameters())
    with torch.no_grad():
        return model.forward_features(like.new_empty(1, traced.in_channels, *traced.size))  # type: ignore[operator]


def _tell(model: nn.Module, traced: Traced, channels: Channels, sizes: Sizes) -> None:
    """Bring timm's account of a network's feature maps in step with its new channels."""
    if isinstance(getattr(model, "num_features", None), int) and hasattr(model, "forward_features"):
        last = _last_map(model, traced)
        if last.dim() == 4 and _last_map(traced.model, traced).shape[1] == model.num_features:
            model.num_features = last.shape[1]  # type: ignore[assignment]
    info = getattr(model, "feature_info", None)
    for level in info if isinstance(info, list) else []:
        nodes = traced.nodes(level["module"]) if isinstance(level, dict) and "module" in level else []
        group = channels.after(nodes[-1]) if nodes else None
        if group is not None and group.root().channels == level.get("num_chs"):
            level["num_chs"] = sizes(group)


def _parameters(modules: Sequence[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _count(model: nn.Module, in_channels: int, size: Size) -> tuple[int, dict[str, int]]:
    """Multiply-adds of a network and of each of its modules, by torch's counter."""
    model = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, in_channels, *size, device="meta", dtype=next(model.parameters()).dtype))
    root = type(model).__name__ + "."
    counts = {name.removeprefix(root): sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    return counter.get_total_flops() // 2, counts


def _count_changed(model: nn.Module, in_channels: int, size: Size, width: float) -> int:
    """Multiply-adds of the changed network, which is also the trial whether it runs."""
    try:
        return _count(model, in_channels, size)[0]
    except Exception as error:  # the network's own code, which may count on its channels and fail in any way
        if width == 1:
            raise
        name, text = type(model).__name__, " ".join(str(error).split())[:200]
        raise ConfigError(f"{name} does not run at width {width:g}: {text}; leave out width") from error


def _size(img_size: Any) -> Size:
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
        raise ConfigError(f"img_size must be a whole number or (height, width), got {img_size!r}")
    return size[0], size[1]


def replace_separable_convs(
    model: nn.Module, img_size: int | tuple[int, int], width: float | str = 1.0
) -> tuple[nn.Module, ConversionReport]:
    """A copy of a network with DiCE units in place of its separable convolutions (paper, section 6).

    A separable convolution is a depth-wise convolution and the 1x1 convolution that alone reads its result; the norm,
    activation, or squeeze and excite between them goes with them, because a unit brings its own. What follows the
    pair stays, and so does everything else, with its weights. Stride 2 becomes an average pooling before the unit.
    Kernels keep their size (the largest, where several are mixed). The module stays what it was: an ordinary one of its
    class that trains and exports; units take other sizes than ``img_size`` by scaling maps.

    Args:
        model: any network for one batch of pictures that ``torch.export`` takes, from timm, torchvision or elsewhere.
        img_size: side of the pictures, or (height, width): the units' kernels are made for the maps that it gives.
        width: factor for all channels that may change (to multiples of 8): those that pass through convolutions,
            linear layers, norms, activations, sums and products only, not those that are split, joined or shuffled.
            ``"match"`` takes the factor with which the multiply-adds come nearest to the original's. Layers whose
            channels change get fresh weights.

    Returns:
        The new network, in the mode (training or evaluation) of the old one, and the report. Without separable
        convolutions the copy is unchanged, which the report says, and a warning too.

    Raises:
        ConfigError: not a network, a size below its stride, no channel that may change, or it cannot be traced or
            does not run at the width.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"replace_separable_convs takes a network, not {type(model).__name__}")
    if isinstance(model, Network):
        raise ConfigError(f"{type(model).__name__} is a network of dicenet: it has DiCE units, or takes unit='dice'")
    if not (width == "match" or (isinstance(width, int | float) and not isinstance(width, bool) and 0 < width < inf)):
        raise ConfigError(f"width must be a factor above 0, or 'match', got {width!r}")
    size = _size(img_size)
    traced = Traced(model, size)
    pairs, left = find_pairs(traced)
    in_channels = traced.in_channels
    before, counts = _count(model, in_channels, size)
    channels = Channels(traced, pairs)
    if pairs and width != 1 and not channels.scalable:
        raise ConfigError(
            f"no channels of {type(model).__name__} may change: all are split, joined or shuffled; leave out width"
        )
    inside = {pair: sum(counts.get(path, 0) for path in pair.modules) for pair in pairs}
    factor = 1.0 if not pairs or isinstance(width, str) else float(width)
    if pairs and isinstance(width, str):
        factor = _matching_width(channels, before, sum(inside.values()))
    sizes = channels.sizes(factor)
    new = copy.deepcopy(model)
    if factor != 1:
        resize(new, channels, sizes)
    replaced = tuple(_replace(new, pair, channels, sizes, inside[pair]) for pair in pairs)
    new.train(model.training)
    after = _count_changed(new, in_channels, size, factor)
    if factor != 1:
        _tell(new, traced, channels, sizes)
    report = ConversionReport(
        type(model).__name__,
        size,
        factor,
        replaced,
        tuple(left),
        (before, after),
        (_parameters([model]), _parameters([new])),
    )
    if not replaced:
        _logger.warning("%s", report.summary)
    return new, report
