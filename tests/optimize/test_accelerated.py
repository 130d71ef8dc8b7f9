"""Networks of other packages, given to ``accelerate`` as they are."""

import pytest
import timm
import torch
from pytorchcv.model_provider import get_model
from torch import nn
from unsettled import assert_close, pictures, unsettle

import dicenet
from dicenet.ops import cpu
from dicenet.optimize import OptimizedNetwork, accelerate

pytestmark = pytest.mark.skipif(not cpu.available, reason="the C++ operators are not built here")


def theirs(name, **arguments):
    torch.manual_seed(0)
    return unsettle(get_model(name, **arguments))


@pytest.mark.parametrize(("name", "width"), [("dicenet_w2", "dicenet_200"), ("dicenet_w1", "dicenet_100")])
def test_pytorchcv(name, width):
    net = theirs(name)
    x = pictures(2, 3, 224, 224)
    with torch.no_grad():
        expected = net(x)
    fast = accelerate(net)
    assert isinstance(fast, OptimizedNetwork)
    assert fast.width.name == width
    assert_close(fast(x), expected)


def test_of_other_sizes_and_classes():
    net = theirs("dicenet_wd5", in_size=(64, 96), num_classes=3, in_channels=4)
    x = pictures(3, 4, 64, 96)
    with torch.no_grad():
        expected = net(x)
    fast = accelerate(net)
    assert (fast.trained_size, fast.num_classes, fast.in_chans) == ((64, 96), 3, 4)
    assert_close(fast(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_changed(training):
    net = theirs("dicenet_wd5", in_size=(64, 64)).train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    accelerate(net)
    assert all(module.training is training for module in net.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_modes_of_single_modules_are_not_changed():
    net = theirs("dicenet_wd5", in_size=(64, 64)).train()
    frozen = [module.eval() for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    accelerate(net)
    assert net.training
    assert not any(module.training for module in frozen)


def test_modes_are_restored_where_the_model_fails():
    net = theirs("dicenet_wd5", in_size=(64, 64)).train()
    net.register_forward_pre_hook(lambda module, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        accelerate(net)
    assert all(module.training for module in net.modules())


def test_a_dicenet_of_ours_passes_through():
    net = unsettle(timm.create_model("dicenet_020", img_size=32, num_classes=3))
    x = pictures(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(x)
    fast = accelerate(net)
    assert_close(fast(x), expected)
    assert accelerate(fast) is fast


def resnet18():
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.resnet18()


WRONG = {
    "resnet18": resnet18,
    "shufflenet of pytorchcv": lambda: get_model("shufflenetv2_wd2"),
    "linear": lambda: nn.Linear(3, 4),
    "nothing": nn.Identity,
}


@pytest.mark.parametrize("name", WRONG)
def test_other_models(name):
    net = WRONG[name]().train()
    with pytest.raises(dicenet.WeightsError) as error:
        accelerate(net)
    assert "\n" not in str(error.value)
    assert net.training


def test_other_outputs_with_the_same_weights():
    class Doubled(type(get_model("dicenet_wd5"))):
        def forward(self, x):
            return 2 * super().forward(x)

    net = theirs("dicenet_wd5", in_size=(64, 64)).train()
    net.__class__ = Doubled
    with pytest.raises(dicenet.WeightsError, match="differ") as error:
        accelerate(net)
    assert "\n" not in str(error.value)
    assert net.training
