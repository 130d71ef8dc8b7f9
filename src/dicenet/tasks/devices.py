"""Where a trained network runs."""

from typing import TypeVar, cast

import torch
from torch import nn

from dicenet.engine.fit import check_device
from dicenet.optimize import optimize_for_inference

_Net = TypeVar("_Net", bound=nn.Module)


def torch_device(device: str) -> torch.device:
    """The device of a name; ``auto`` is the fastest there is. Raises ConfigError if it is unknown or not there."""
    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(device)


def for_inference(net: _Net, device: torch.device, precision: str, optimize: bool) -> _Net:
    """The network on a device; where plans work, on the CPU in float32, optimized if that is wanted."""
    if not optimize or device.type != "cpu" or precision != "32-true":
        return net.to(device)
    return cast(_Net, optimize_for_inference(net))  # has all that the network has
