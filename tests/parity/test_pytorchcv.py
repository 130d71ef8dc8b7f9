"""The same random weights in pytorchcv's independent implementation give the same outputs."""

import pytest
import torch
from pytorchcv.model_provider import get_model

import dicenet

NAMES = {
    "dicenet_wd5": "dicenet_020",
    "dicenet_wd2": "dicenet_050",
    "dicenet_w3d4": "dicenet_075",
    "dicenet_w1": "dicenet_100",
    "dicenet_w5d4": "dicenet_125",
    "dicenet_w3d2": "dicenet_150",
    "dicenet_w7d8": "dicenet_175",
    "dicenet_w2": "dicenet_200",
}


def randomise(net, seed):
    """Norm statistics and slopes that show a forgotten or swapped one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            low, high = (0.5, 1.5) if "running_var" in name else (-0.3, 0.6)
            value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return net.eval()


@pytest.mark.parametrize("theirs", NAMES)
def test_recognised(theirs):
    net = dicenet.load_pytorchcv(get_model(theirs))
    assert net.width.name == NAMES[theirs]
    assert net.trained_size == (224, 224)


@pytest.mark.parametrize("theirs", ["dicenet_w1", "dicenet_w2"])
@pytest.mark.parametrize("size", [(224, 224), (160, 192)])
def test_outputs(theirs, size):
    torch.manual_seed(3)
    net = randomise(get_model(theirs), seed=4)
    ours = dicenet.load_pytorchcv(net).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, actual = net(x), ours(x)
    assert expected.std() > 1e-3
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_rectangular_trained_size():
    net = randomise(get_model("dicenet_w1", in_size=(96, 160), num_classes=7), seed=5)
    ours = dicenet.load_pytorchcv(net).eval()
    assert (ours.trained_size, ours.num_classes) == ((96, 160), 7)
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), net(x), rtol=1e-5, atol=1e-5)
