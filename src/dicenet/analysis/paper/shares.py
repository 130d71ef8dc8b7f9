"""Where the multiply-adds of a network are: the data of the paper's Figure 2."""

import copy
from collections import Counter
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dicenet.layers import DimConv, LocalFusion

#: Kinds of layers, in the order in which they are shown.
KINDS = ("standard", "depth-wise and DimConv", "local fusion", "point-wise", "fully connected")


def _kind(layer: nn.Module, output: Tensor) -> str:
    """What a layer is to Figure 2: a convolution of vectors, one number for each channel, counts as fully connected."""
    if isinstance(layer, DimConv):
        return "depth-wise and DimConv"
    if isinstance(layer, LocalFusion):
        return "local fusion"
    if isinstance(layer, nn.Linear) or prod(output.shape[2:]) == 1:
        return "fully connected"
    assert isinstance(layer, nn.Conv2d)
    if layer.groups > 1 and max(layer.kernel_size) > 1:
        return "depth-wise and DimConv"
    return "standard" if max(layer.kernel_size) > 1 else "point-wise"


def shares(model: nn.Module, input_size: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of a network by kind of layer; those of all kinds together are all that torch's counter finds.

    Args:
        model: the network; it is copied.
        input_size: (channels, height, width) of the picture.
    """
    model = copy.deepcopy(model).to("meta").eval()
    kinds: dict[str, str] = {}
    layers: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{layer}.") for layer in layers)
        if isinstance(module, nn.Conv2d | nn.Linear | DimConv | LocalFusion) and not inside:
            layers.append(name)

            def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                kinds[name] = _kind(layer, output)

            module.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *input_size, device="meta"))
    root = f"{type(model).__name__}."
    counts = {name.removeprefix(root): sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    total: Counter[str] = Counter()
    for name, kind in kinds.items():
        total[kind] += counts.get(name, 0)
    missing = counter.get_total_flops() // 2 - total.total()
    if missing:
        total["other"] = missing
    return {kind: total[kind] for kind in (*KINDS, "other") if kind in total}
