"""What the tests of this folder share: random weights that show a folding error, and the network to compare with."""

import timm
import torch
from torch import nn

from dicenet.ops import use_backend

#: Of the largest value: what `optimize_for_inference` promises.
TOLERANCE = 1e-4


def randomise(net, seed=0):
    """Norms, slopes and biases away from their start, where a forgotten or swapped one would not show."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if value.dim() != 1:
                continue
            low, high = (0.5, 1.5) if "var" in name or isinstance(module, nn.BatchNorm2d) else (-0.3, 0.6)
            if name in ("running_mean", "bias"):
                low, high = -0.4, 0.4
            value.data.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return net.eval()


def network(name="dicenet_050", img_size=64, **arguments):
    torch.manual_seed(0)
    return randomise(timm.create_model(name, img_size=img_size, **{"num_classes": 7, **arguments}))


def picture(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(net, *inputs):
    """What torch's own operators make of the network's own modules."""
    with torch.no_grad(), use_backend("reference"):
        return net(*inputs)


def assert_same(actual, expected, tolerance=TOLERANCE):
    """Tensors, or lists of them, equal to a part of the largest value."""
    if not isinstance(expected, torch.Tensor):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, tolerance)
        return
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if expected.numel() == 0:
        return
    assert expected.std() > 1e-3 or expected.numel() == 1, "the network gives nothing to compare"
    off = (actual - expected).abs().max() / expected.abs().max()
    assert off <= tolerance, f"off by {off:.2g} of the largest value"
