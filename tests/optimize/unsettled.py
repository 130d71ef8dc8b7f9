"""What the tests of this folder share: networks away from their start, and what they should give."""

import torch
from timm.layers import SelectAdaptivePool2d
from torch import nn

from dicenet.layers import ConvNormAct, DiCEUnit
from dicenet.layers.blocks import ShuffleBlock, StridedUnit
from dicenet.ops import use_backend

TOLERANCE = 1e-4


def unsettle(net, seed=0):
    """Statistics, affine weights and slopes of any size and sign: their first values hide what is folded wrongly."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(values, low, high):
        values.copy_(low + (high - low) * torch.rand(values.shape, generator=generator))

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                if module.running_mean is not None:
                    uniform(module.running_mean, -0.5, 0.5)
                    uniform(module.running_var, 0.5, 1.5)
                if module.affine:
                    uniform(module.weight, 0.5, 1.5)
                    module.weight[::4] *= -1
                    uniform(module.bias, -0.5, 0.5)
            elif isinstance(module, nn.PReLU):
                uniform(module.weight, -0.4, 1.2)
    return net.eval()


def pictures(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_reference(net, *inputs):
    with use_backend("reference"), torch.no_grad():
        return net(*inputs)


def flat(outputs):
    """All tensors of what a network gives."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in flat(value)]


def assert_close(found, expected, tolerance=TOLERANCE):
    """Equal up to a share of the largest value, tensor by tensor."""
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        assert mine.shape == its.shape
        assert mine.dtype == its.dtype
        largest = its.abs().max().item() if its.numel() else 0.0
        torch.testing.assert_close(mine, its, rtol=0, atol=tolerance * largest)


def assert_equal(found, expected):
    assert_close(found, expected, tolerance=0.0)


def small_network(classes=5, size=(16, 12)):
    """A classifier of everything that plans know of the DiCENet, in no time."""
    torch.manual_seed(0)
    half = tuple((side + 3) // 4 for side in size)
    net = nn.Sequential(
        ConvNormAct(3, 8, 3, stride=2),
        StridedUnit(8, half),
        ShuffleBlock(16, 24, half),
        SelectAdaptivePool2d(pool_type="avg"),
        nn.Conv2d(24, 32, 1, groups=4, bias=False),
        nn.Conv2d(32, classes, 1),
        nn.Flatten(1),
    )
    return unsettle(net)


def unit(channels=20, size=(6, 5)):
    torch.manual_seed(0)
    return unsettle(DiCEUnit(channels, channels, size))
