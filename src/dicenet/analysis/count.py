"""Multiply-adds and parameters, as torch counts them and as the official code does."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """What a network costs for one picture.

    Attributes:
        parameters: number of parameters.
        macs: multiply-adds of convolutions and linear layers, biases not counted (torch's counter, halved).
        macs_official: the official counter's: plus half a multiply-add per output of a biased convolution.
    """

    parameters: int
    macs: int
    macs_official: float


def count(model: nn.Module, input_size: Sequence[int]) -> Cost:
    """Cost of a network for a picture of (channels, height, width). Nothing is computed; the model is unchanged."""
    return _count(copy.deepcopy(model).to("meta"), input_size)


def _count(model: nn.Module, input_size: Sequence[int]) -> Cost:
    """The same for a model without memory that nobody else needs."""
    return count_with_results(model, torch.empty(1, *input_size, device="meta"))[0]


def count_with_results(model: nn.Module, given: Any) -> tuple[Cost, Any]:
    """Cost of a model without memory (on "meta") for what it is given, and what it gives, without memory too.

    So the parts of a network can be counted one by one.
    """
    model.eval()
    biased_outputs = 0

    def add_outputs(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal biased_outputs
        biased_outputs += output.numel()

    biased = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.bias is not None]
    hooks = [module.register_forward_hook(add_outputs) for module in biased]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = model(given)
    for hook in hooks:
        hook.remove()
    macs = counter.get_total_flops() // 2
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(parameters, macs, macs + biased_outputs / 2), result


def count_model(name: str, **model_args: object) -> Cost:
    """Cost of a registered network at its own input size. The model is never given memory."""
    with torch.device("meta"):
        model = timm.create_model(name, **model_args)
    return _count(model, (model.in_chans, *model.input_size))
