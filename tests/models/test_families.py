"""The networks with an exchangeable unit, against the networks of other packages and costs worked out by hand."""

import math
from math import gcd

import pytest
import timm
import torch
import torchvision
from torch import nn

import dicenet
from dicenet.analysis.count import count
from dicenet.layers import FIRST_LAYERS, UNITS, ConvNormAct, GlobalFusion, first_layer, unit_layers
from dicenet.models.registry import ROWS
from dicenet.models.resnet import ResNet, ResNetRow


def take_weights(net, theirs, last):
    """Give a network another package's weights, layer by layer in order; ``last``: its classifier."""
    own = [m for m in net.modules() if isinstance(m, ConvNormAct)]
    convs = [m for m in theirs.modules() if isinstance(m, nn.Conv2d) and m is not last]
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.conv.weight.shape for m in own] == [m.weight.shape for m in convs]
    assert [m.conv.stride for m in own] == [m.stride for m in convs]
    for mine, conv, norm in zip(own, convs, norms, strict=True):
        mine.conv.load_state_dict(conv.state_dict())
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean, std=0.1)
        mine.norm.load_state_dict(norm.state_dict())
        nn.init.zeros_(mine.act.weight)  # a ReLU
    with torch.no_grad():
        net.classifier.weight.copy_(last.weight.reshape(net.classifier.weight.shape))
        net.classifier.bias.copy_(last.bias)
    return own


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("041", "shufflenet_v2_x0_5"), ("146", "shufflenet_v2_x1_0"), ("292", "shufflenet_v2_x1_5")],
)
def test_shufflenetv2_is_that_of_torchvision(name, theirs):
    torch.manual_seed(0)
    net = timm.create_model(f"shufflenetv2_sep_{name}").eval()
    their_net = torchvision.models.get_model(theirs).eval()
    for layer in take_weights(net, their_net, their_net.fc):
        if layer.conv.groups > 1:
            nn.init.ones_(layer.act.weight)  # no activation follows a depth-wise convolution there
    x = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected = their_net(x)
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("name", "theirs"), [("041", "mobilenet_wd4"), ("317", "mobilenet_w3d4")])
def test_mobilenet_is_that_of_pytorchcv(name, theirs):
    providers = pytest.importorskip("pytorchcv.model_provider")
    torch.manual_seed(0)
    net = timm.create_model(f"mobilenet_sep_{name}").eval()
    their_net = providers.get_model(theirs).eval()
    take_weights(net, their_net, their_net.output)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = their_net(x)
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", ROWS)
def test_rows_say_what_they_count_to(name):
    net = timm.create_model(name)
    assert count(net, (3, *net.trained_size)).macs_official / 1e6 == pytest.approx(ROWS[name].macs, abs=0.01)


def excitation(c, o):
    return c * (c // 4) + (c // 4) * o


#: Multiply-adds of a unit from i to o channels for m positions: the closed forms of the paper's section 3.2, where it
#: has them, with the excitation once for each picture.
COSTS = {
    "separable": lambda i, o, m: m * (9 * i + i * o),
    "dw_se": lambda i, o, m: m * (9 * i + (i != o) * i * o // gcd(i, o)) + excitation(o, o),
    "dw_pw_se": lambda i, o, m: m * (9 * i + i * o) + excitation(o, o),
    "dw_dimfuse": lambda i, o, m: m * (9 * i + 9 * o * i // gcd(i, o)) + excitation(i, o),
    "dimconv_pw": lambda i, o, m: m * (27 * i + 3 * i * o),
    "dimconv_se": lambda i, o, m: m * (30 * i + (i != o) * i * o // gcd(i, o)) + excitation(o, o),
    "dimconv_pw_se": lambda i, o, m: m * (27 * i + 3 * i * o) + excitation(o, o),
    "dice": lambda i, o, m: m * (30 * i + 9 * o * i // gcd(i, o)) + excitation(i, o),
}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("i", "o"), [(24, 24), (24, 36), (40, 16)])
@pytest.mark.parametrize("unit", UNITS)
def test_units_cost_what_the_formulas_say(unit, i, o, stride):
    size = (7, 5)
    net = nn.Sequential(*unit_layers(unit, i, o, size, stride))
    given = (size[0] * stride, size[1] * stride - stride + 1)
    assert net(torch.randn(2, i, *given)).shape == (2, o, *size)
    assert count(net, (i, *given)).macs == COSTS[unit](i, o, math.prod(size))


@pytest.mark.parametrize("kind", FIRST_LAYERS)
def test_first_layers_cost_what_the_formulas_say(kind):
    layer = first_layer(kind, 24, 36)
    expected = {"pointwise": 35 * 24 * 36, "dimfuse": 35 * 9 * 24 * 36 // 12 + 24 * 36}
    assert count(layer, (24, 7, 5)).macs == expected[kind]


def test_units_keep_their_parts_in_order():
    """The table of units in words: what follows what."""
    names = {unit: [type(layer).__name__ for layer in unit_layers(unit, 16, 16, (4, 4), stride=2)] for unit in UNITS}
    assert names == {
        "separable": ["ConvNormAct", "ConvNormAct"],
        "dw_se": ["ConvNormAct", "SqueezeExcite"],
        "dw_pw_se": ["ConvNormAct", "ConvNormAct", "SqueezeExcite"],
        "dw_dimfuse": ["ConvNormAct", "GlobalFusion"],
        "dimconv_pw": ["AvgPool2d", "DimConv", "NormAct", "ConvNormAct"],
        "dimconv_se": ["AvgPool2d", "DimConv", "NormAct", "LocalFusion", "SqueezeExcite"],
        "dimconv_pw_se": ["AvgPool2d", "DimConv", "NormAct", "ConvNormAct", "SqueezeExcite"],
        "dice": ["AvgPool2d", "DiCEUnit"],
    }


@pytest.mark.parametrize("direct", [True, False])
def test_global_fusion_by_hand(direct):
    """In float64: a grouped 3x3 as explicit sums, times weights from the means."""
    torch.manual_seed(0)
    fusion = GlobalFusion(8, 12, direct).double().eval()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    weight, padded = fusion.spatial.conv.weight, nn.functional.pad(x, (1, 1, 1, 1))
    spatial = torch.zeros(2, 12, 3, 4, dtype=torch.float64)
    for out in range(12):
        first = out // 3 * 2  # four groups, each of two inputs and three outputs
        for channel in (0, 1):
            for row in range(3):
                for column in range(3):
                    plane = padded[:, first + channel, row : row + 3, column : column + 4]
                    spatial[:, out] += weight[out, channel, row, column] * plane
    spatial = spatial / math.sqrt(1 + 1e-5)
    spatial = torch.where(spatial > 0, spatial, 0.25 * spatial)
    hidden = x.mean((2, 3))
    if not direct:
        hidden = (hidden @ fusion.excitation.squeeze.weight[:, :, 0, 0].t()).clamp(min=0)
    weights = 1 / (1 + torch.exp(-hidden @ fusion.excitation.excite.weight[:, :, 0, 0].t()))
    torch.testing.assert_close(fusion(x), spatial * weights[:, :, None, None])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", ["mobilenet_sep_041", "mobilenet_figure4_sep_041", "resnet_sep_059"])
def test_every_unit_in_every_network(name, unit, tmp_path):
    torch.manual_seed(0)
    net = timm.create_model(name, unit=unit, channels=64, num_classes=3, img_size=64)
    x = torch.randn(4, 3, 64, 64)
    net.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    dicenet.save(net, tmp_path / "net.safetensors")
    loaded = dicenet.load(tmp_path / "net.safetensors")
    assert loaded.choices == net.choices
    torch.testing.assert_close(loaded.eval()(x), net.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("first", FIRST_LAYERS)
@pytest.mark.parametrize("layout", ["v2", "figure4"])
def test_layouts_and_first_layers_of_shufflenetv2(layout, first, tmp_path):
    torch.manual_seed(0)
    arguments = {"unit": "dice", "first_layer": first, "layout": layout, "num_classes": 3, "img_size": 64}
    net = timm.create_model("shufflenetv2_sep_041", **arguments)
    x = torch.randn(2, 3, 64, 64)
    dicenet.save(net, tmp_path / "net.safetensors")
    torch.testing.assert_close(dicenet.load(tmp_path / "net.safetensors").eval()(x), net.eval()(x), rtol=0, atol=0)
    fused = sum(isinstance(m, GlobalFusion) for m in net.modules())
    # one in front of each unit, beside it in the strided unit, and behind the unit of Figure 4's strided unit
    assert fused == {"pointwise": 0, "dimfuse": 13 + 3 * 2}[first]


def test_first_layer_of_resnet():
    net = ResNet(ResNetRow("resnet", "dice", 64, 0, "dimfuse"), img_size=64)
    assert sum(isinstance(m, GlobalFusion) for m in net.modules()) == 13 + 3 * 2
    with pytest.raises(dicenet.ConfigError, match="first_layer 'dim' is unknown: choose one of pointwise, dimfuse"):
        timm.create_model("resnet_sep_059", first_layer="dim")


@pytest.mark.parametrize("name", ["mobilenet_sep_041", "resnet_sep_059", "shufflenetv2_sep_041"])
def test_bad_arguments(name):
    with pytest.raises(dicenet.ConfigError, match="unit 'dise' is unknown: choose one of separable, dw_se"):
        timm.create_model(name, unit="dise")
    with pytest.raises(dicenet.ConfigError, match="channels must be at least"):
        timm.create_model(name, channels=2)
    with pytest.raises(dicenet.ConfigError, match=f"no weights are published for {name}"):
        timm.create_model(name, pretrained=True)
    with pytest.raises(dicenet.ConfigError, match="stem 'big' is unknown"):
        timm.create_model(name, stem="big")


def test_odd_channels_of_shufflenetv2():
    with pytest.raises(dicenet.ConfigError, match="at least 32 and a multiple of 2, got 45"):
        timm.create_model("shufflenetv2_sep_041", channels=45)
    with pytest.raises(dicenet.ConfigError, match="layout 'v3' is unknown: choose one of v2, figure4"):
        timm.create_model("shufflenetv2_sep_041", layout="v3")


@pytest.mark.parametrize("name", ["mobilenet_sep_041", "resnet_dice_052"])
def test_own_weights_through_timm(name, tmp_path):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5)
    dicenet.save(net, tmp_path / "net.safetensors")
    for overlay in ({"file": str(tmp_path / "net.safetensors")}, {"state_dict": net.state_dict()}):
        other = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)
        for mine, its in zip(other.state_dict().values(), net.state_dict().values(), strict=True):
            assert torch.equal(mine, its)
    with pytest.raises(dicenet.WeightsError, match="is of another width than"):
        dicenet.models.fitting.load_weights(timm.create_model(name, channels=48, num_classes=5), net.state_dict())
