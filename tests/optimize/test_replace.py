"""Separable convolutions of any network as DiCE units: what is found, what it becomes, and what stays."""

import copy
import warnings

import pytest
import timm
import torch
import torchvision
from timm.layers import LayerNorm2d, MixedConv2d, SqueezeExcite
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dicenet
from dicenet import ConfigError, DiCEUnit, DimConv, optimize_for_inference, replace_separable_convs

#: Networks of other packages, how many separable convolutions they have, and the kernel sizes of these.
NETWORKS = {
    "timm/mobilenetv1_100": (13, {3}),
    "timm/mobilenetv2_100": (17, {3}),
    "timm/mobilenetv3_large_100": (15, {3, 5}),
    "timm/mobilenetv4_conv_small": (15, {3, 5}),
    "timm/mnasnet_100": (17, {3, 5}),
    "timm/mixnet_s": (16, {3, 5, 7, 9, 11}),
    "timm/efficientnet_b0": (16, {3, 5}),
    "timm/convnext_atto": (12, {7}),
    "torchvision/shufflenet_v2_x1_0": (19, {3}),
    "torchvision/mobilenet_v2": (17, {3}),
}
SIZE = (64, 96)
every = pytest.mark.parametrize("name", NETWORKS)


def network(name, **arguments):
    library, _, name = name.partition("/")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "timm":
            return timm.create_model(name, **arguments)
        return torchvision.models.get_model(name, **arguments)


def depth_wise(net):
    return [
        name
        for name, m in net.named_modules()
        if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 and m.kernel_size != (1, 1)
    ]


def macs(net, size=SIZE):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, 3, *size))
    return counter.get_total_flops() // 2


def maps_are_those_of_the_kernels(net, size):
    wrong = []
    hooks = [
        m.register_forward_pre_hook(
            lambda m, args: wrong.append(m) if tuple(args[0].shape[2:]) != m.feature_size else None
        )
        for m in net.modules()
        if isinstance(m, DimConv)
    ]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, *size))
    for hook in hooks:
        hook.remove()
    return not wrong


@every
def test_networks_of_other_packages(name):
    pairs, kernels = NETWORKS[name]
    net = network(name)
    before = copy.deepcopy(net.state_dict())
    new, report = replace_separable_convs(net, SIZE)
    assert (len(report.replaced), report.left) == (pairs, ())
    # nothing of the original has changed, and what stays has its weights
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    units = [module for module in new.modules() if isinstance(module, DiCEUnit)]
    assert len(units) == pairs
    assert {unit.dim_conv.weight_depth.shape[-1] for unit in units} == kernels
    in_units = [key for key in new.state_dict() if "dim_" in key or "norm_act" in key]
    kept = [key for key in new.state_dict() if key not in in_units]
    assert kept
    for key in kept:
        assert torch.equal(new.state_dict()[key], before[key]), key
    outside = [conv for conv in depth_wise(new) if ".dim_" not in f".{conv}"]
    assert not outside
    assert maps_are_those_of_the_kernels(new, SIZE)
    # the report's account, piece by piece and as a whole, against torch's counter
    assert report.macs == (macs(net), macs(new))
    changed = sum(r.macs[1] - r.macs[0] for r in report.replaced)
    assert report.macs[1] - report.macs[0] == changed
    assert report.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (net, new))
    gone = sum(r.parameters[0] - r.parameters[1] for r in report.replaced)
    assert report.parameters[0] - report.parameters[1] == gone
    assert type(new) is type(net)
    assert new.training == net.training


@every
def test_they_train_and_take_other_sizes(name):
    new, _ = replace_separable_convs(network(name, num_classes=5), SIZE)
    logits = new.train()(torch.randn(2, 3, *SIZE))
    logits.square().mean().backward()
    for parameter_name, parameter in new.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    with torch.no_grad():
        assert new.eval()(torch.randn(1, 3, 96, 64)).shape == (1, 5)


@every
def test_multiply_adds_of_the_original(name):
    net = network(name)
    new, report = replace_separable_convs(net, SIZE, width="match")
    assert report.macs == (macs(net), macs(new))
    changes_freely = name != "torchvision/shufflenet_v2_x1_0"  # its stream is split and shuffled: only the inner may
    assert abs(report.macs[1] / report.macs[0] - 1) < (0.05 if changes_freely else 0.25)
    assert maps_are_those_of_the_kernels(new, SIZE)
    # what layers say of themselves is what they hold
    for module in new.modules():
        if isinstance(module, nn.Conv2d):
            expected = (module.out_channels, module.in_channels // module.groups)
            assert tuple(module.weight.shape[:2]) == expected
    new.train()(torch.randn(2, 3, *SIZE)).square().mean().backward()


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("fastvit_t8", 0.02),  # large kernels with two outputs for each channel
        ("convnextv2_atto", 0.02),  # global response norm
        ("mobilevit_xxs", 0.02),  # attention, whose products are work that no layer has
    ],
)
def test_multiply_adds_of_networks_with_other_parts(name, tolerance):
    _, report = replace_separable_convs(network(f"timm/{name}"), 128, width="match")
    assert report.width != 1
    assert report.macs[1] == pytest.approx(report.macs[0], rel=tolerance)


@every
@pytest.mark.slow
def test_they_export(name):
    new, _ = replace_separable_convs(network(name), SIZE)
    x = torch.randn(2, 3, *SIZE)
    program = torch.export.export(new.eval(), (x,))
    expected = new(x)
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["timm/mobilenetv2_100", "timm/mobilenetv4_conv_small"])
def test_timm_still_knows_its_network(name):
    new, report = replace_separable_convs(network(name), SIZE, width=1.5)
    assert report.width == 1.5
    x = torch.randn(2, 3, *SIZE)
    new.reset_classifier(3)
    assert new.eval()(x).shape == (2, 3)
    assert new.forward_head(new.forward_features(x), pre_logits=True).shape == (2, new.head_hidden_size)
    _, maps = new.forward_intermediates(x)
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in new.feature_info]
    # maps that somebody else takes keep their channels
    pyramid = network(name, features_only=True)
    wide, _ = replace_separable_convs(pyramid, SIZE, width=1.5)
    assert [m.shape[1] for m in wide.eval()(x)] == pyramid.feature_info.channels() == wide.feature_info.channels()


def test_it_exports_and_runs_in_plans():
    new, _ = replace_separable_convs(network("timm/mobilenetv4_conv_small"), 64)
    x = torch.randn(2, 3, 64, 64)
    expected = new.eval()(x)
    limit = {"rtol": 0, "atol": 1e-4 * expected.abs().max().item()}
    torch.testing.assert_close(torch.export.export(new, (x,)).module()(x), expected, **limit)
    torch.testing.assert_close(optimize_for_inference(new)(x), expected, **limit)


# -- the rules, on small networks


def chain(*layers):
    """A stem, the layers, and a 1x1 convolution with a classifier behind."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, nn.BatchNorm2d(16), nn.ReLU()).eval()


def depth(kernel=3, channels=8, **options):
    options = {"padding": kernel // 2, "groups": channels, **options}
    return nn.Conv2d(channels, options.pop("out", channels), kernel, **options)


def point(i=8, o=16):
    return nn.Conv2d(i, o, 1)


class Functional(nn.Module):
    """Layers with something written out between them."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return self.function(self.layers, x)


BETWEEN = {
    "nothing": [],
    "norm": [nn.BatchNorm2d(8)],
    "norm and activation": [nn.BatchNorm2d(8), nn.SiLU()],
    "LayerNorm2d": [LayerNorm2d(8)],
    "squeeze and excite": [nn.BatchNorm2d(8), nn.Hardswish(inplace=True), SqueezeExcite(8)],
    "torchvision's": [torchvision.ops.SqueezeExcitation(8, 4)],
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_lies_between_goes(name):
    net = chain(depth(), *copy.deepcopy(BETWEEN[name]), point())
    new, report = replace_separable_convs(net, (12, 10))
    (replaced,) = report.replaced
    assert replaced.pair.between == tuple(str(2 + index) for index in range(len(BETWEEN[name])))
    kinds = [type(layer) for layer in new]
    gone = [nn.Identity] * (len(BETWEEN[name]) + 1)
    assert kinds == [nn.Conv2d, DiCEUnit, *gone, nn.BatchNorm2d, nn.ReLU]
    x = torch.randn(2, 3, 12, 10)
    expected = new[-1](new[-2](new[1](new[0](x))))
    torch.testing.assert_close(new(x), expected)
    torch.testing.assert_close(new[0](x), net[0](x), rtol=0, atol=0)


def test_dropout_between_stays():
    new, report = replace_separable_convs(chain(depth(), nn.Dropout2d(0.5), point()), 8)
    assert len(report.replaced) == 1
    assert isinstance(new[2], nn.Dropout2d)


@pytest.mark.parametrize(("kernel", "dilation", "stride"), [(3, 1, 2), (5, 1, 1), (7, 1, 2), (3, 2, 1)])
def test_kernels_strides_and_dilations(kernel, dilation, stride):
    layer = depth(kernel, stride=stride, dilation=dilation, padding=dilation * (kernel // 2))
    new, _ = replace_separable_convs(chain(layer, point()), (13, 10))
    unit = new[1] if stride == 1 else new[1][1]
    assert isinstance(unit, DiCEUnit)
    assert unit.dim_conv.weight_depth.shape == (8, 1, kernel, kernel)
    assert unit.dim_conv.dilation == (dilation,) * 3
    assert unit.dim_conv.feature_size == ((13, 10) if stride == 1 else (7, 5))
    if stride == 2:
        x = torch.randn(1, 8, 13, 10)
        torch.testing.assert_close(new[1][0](x), nn.functional.avg_pool2d(x, 3, 2, 1))


def test_mixed_kernels_take_the_largest():
    mixed = MixedConv2d(8, 8, [3, 5, 7], depthwise=True)
    new, report = replace_separable_convs(chain(mixed, nn.BatchNorm2d(8), MixedConv2d(8, 16, [1, 1])), 8)
    assert new[1].dim_conv.weight_depth.shape == (8, 1, 7, 7)
    assert report.replaced[0].out_channels == 16


LEFT = {
    "its kernel is even": lambda: chain(nn.ZeroPad2d((0, 1, 0, 1)), depth(2, padding=0), point()),
    "its kernel is not square": lambda: chain(nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=8), point()),
    "its stride is 3": lambda: chain(depth(stride=3), point()),
    "it has several outputs for each channel": lambda: chain(depth(out=16), point(16)),
    "it is not padded: its map shrinks": lambda: chain(depth(padding=0), point()),
    "relu follows in the code of a module": lambda: chain(
        Functional(lambda m, x: m[1](m[0](x).relu()), depth(), point())
    ),
    "its result goes to several places": lambda: chain(
        Functional(lambda m, x: m[1](y := m[0](x)) + m[2](y), depth(), point(), point())
    ),
    "1.layers.2 follows, which is used more than once": lambda: chain(
        Functional(lambda m, x: m[1](m[2](m[0](m[2](x)))), depth(), point(), nn.ReLU())
    ),
    "it is used more than once": lambda: chain(Functional(lambda m, x: m[1](m[0](m[0](x))), depth(), point())),
    "2 follows, a Conv2d and no 1x1 convolution": lambda: chain(depth(), nn.Conv2d(8, 16, 3, padding=1)),
    "it is the last layer": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), depth()),
    "a unit needs 4 channels": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), depth(channels=3), point(3)),
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_is_left_and_why(reason):
    net = LEFT[reason]()
    new, report = replace_separable_convs(net, 12)
    assert not report.replaced
    assert {left.reason for left in report.left} == {reason}
    assert f"because {reason}" in str(report)
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(new(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("width", [1.0, 2.0, "match"])
def test_a_network_without_separable_convolutions(width, caplog):
    net = network("timm/resnet18").eval()
    new, report = replace_separable_convs(net, 64, width)
    assert "ResNet has no separable convolution that can be replaced: nothing was changed" in str(report)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "dicenet"]
    assert warning == report.summary
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(new(x), net(x), rtol=0, atol=0)
    assert report.macs[0] == report.macs[1]


def test_width_follows_what_belongs_together():
    """A residual stream, its scale per channel, a gate that stays, and a split that may not change."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.expand = nn.Conv2d(16, 32, 1)
            self.pair = nn.Sequential(depth(channels=32), nn.BatchNorm2d(32), point(32, 16))
            self.scale = nn.Parameter(torch.arange(16.0))
            self.gate = SqueezeExcite(16, rd_channels=8)
            self.out = nn.Conv2d(16, 24, 1)
            self.few = nn.Conv2d(12, 10, 1)
            self.fc = nn.Linear(10, 5)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.scale.reshape(1, -1, 1, 1) * self.pair(self.expand(x))
            x = self.out(self.gate(x))
            x = self.few(x[:, :12]).mean((2, 3))
            return self.fc(x)

    net = Net()
    new, report = replace_separable_convs(net, 8, width=2)
    (replaced,) = report.replaced
    assert (replaced.in_channels, replaced.out_channels) == (64, 32)
    assert new.stem.weight.shape == (32, 3, 3, 3)
    assert (new.expand.in_channels, new.expand.out_channels) == (32, 64)
    assert torch.equal(new.scale, torch.arange(16.0).repeat(2))
    assert (new.gate.fc1.in_channels, new.gate.fc1.out_channels) == (32, 16)
    assert (new.out.in_channels, new.out.out_channels) == (32, 24)  # what is sliced stays
    assert new.fc.weight.shape == (5, 10)
    assert new(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert net.stem.weight.shape == (16, 3, 3, 3)


def test_width_keeps_layers_that_it_does_not_understand():
    """A depth-wise convolution with two outputs for each channel keeps its groups."""
    twice = depth(channels=16, out=32)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), depth(), point(), twice, nn.Conv2d(32, 24, 1), nn.Conv2d(24, 5, 1))
    net = nn.Sequential(net, depth(channels=5), nn.Conv2d(5, 5, 1))
    new, report = replace_separable_convs(net, 8, width=3)
    assert [(r.in_channels, r.out_channels) for r in report.replaced] == [(32, 16), (15, 5)]
    assert (new[0][3].in_channels, new[0][3].out_channels, new[0][3].groups) == (16, 32, 16)
    assert new(torch.randn(1, 3, 8, 8)).shape == (1, 5, 8, 8)


def test_norms_over_maps_and_means_over_channels_scale():
    """Global response norm: x + weight * x * |x| / mean(|x|) + bias."""
    gain = GlobalResponseNorm(16, channels_last=False)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), depth(), point(), gain, nn.Conv2d(16, 16, 1), nn.Conv2d(16, 5, 1))
    new, _ = replace_separable_convs(net, 8, width=2)
    assert new[3].weight.shape == new[3].bias.shape == (32,)
    assert new[4].in_channels == 32
    assert new(torch.randn(1, 3, 8, 8)).shape == (1, 5, 8, 8)


def test_a_network_that_cannot_be_scaled():
    """Its code counts on a number of channels that the graph does not show."""

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = chain(depth(), point())

        def forward(self, x):
            x = self.layers(x)
            if x.shape[1] != 16:
                raise ValueError("16 channels, please")
            return x.mean(1)

    assert replace_separable_convs(Counts(), 8)[1].width == 1
    with pytest.raises(ConfigError, match="Counts does not run at width 2: 16 channels, please; leave out width"):
        replace_separable_convs(Counts(), 8, width=2)


def test_gates_of_a_smaller_map_are_no_stride():
    """What is pooled and enlarged again, twice, with kernels that stay at the size of the map."""

    class Gate(nn.Module):
        def forward(self, x):
            gate = nn.functional.avg_pool2d(x, 2)
            return x * nn.functional.interpolate(gate, size=x.shape[-2:])

    net = chain(*(Gate() for _ in range(6)), depth(), point())
    _, report = replace_separable_convs(net, 9)
    assert len(report.replaced) == 1
    with pytest.raises(ConfigError, match="img_size 9x9 is below the network's stride of 16"):
        replace_separable_convs(nn.Sequential(net, *(nn.MaxPool2d(2, ceil_mode=True) for _ in range(4))), 9)


def test_width_keeps_the_scale_of_what_comes_out():
    first = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Conv2d(64, 64, 1, bias=False)]
    net = nn.Sequential(*first, depth(channels=64), point(64, 16), nn.Conv2d(16, 5, 1))
    new, _ = replace_separable_convs(net, 16, width=4)
    x = torch.randn(8, 3, 16, 16)
    assert new[1].weight.shape == (256, 256, 1, 1)
    assert new[1](new[0](x)).std().item() == pytest.approx(net[1](net[0](x)).std().item(), rel=0.2)


def test_all_channels_fixed():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), depth(), point(), nn.ChannelShuffle(2))
    with pytest.raises(ConfigError, match="no channels of Sequential may change"):
        replace_separable_convs(net, 8, width="match")
    assert len(replace_separable_convs(net, 8)[1].replaced) == 1


def test_modes_types_and_frozen_weights():
    net = chain(depth(), point()).double().train()
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    new, _ = replace_separable_convs(net, 8)
    assert new.training
    assert {p.dtype for p in new.parameters()} == {torch.float64}
    assert [p.requires_grad for p in new[0].parameters()] == [False, False]


def test_report_rows():
    _, report = replace_separable_convs(chain(depth(stride=2), nn.ReLU(), point()), 12)
    (row,) = report.rows()
    positions = 6 * 6
    assert row == {
        "name": "1",
        "point_wise": "3",
        "gone_between": "2",
        "in_channels": 8,
        "out_channels": 16,
        "kernel_size": 3,
        "stride": 2,
        "height": 6,
        "width": 6,
        "macs_before": positions * (9 * 8 + 8 * 16),
        "macs_after": positions * (30 * 8 + 9 * 16) + 2 * (8 + 16),
        "parameters_before": 8 * 9 + 8 + 8 * 16 + 16,
        "parameters_after": sum(p.numel() for p in DiCEUnit(8, 16, (6, 6)).parameters()),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mobilenetv2_100", 64), "takes a network, not str"),
        ((nn.Linear(3, 4), 64), "Linear has no convolution"),
        ((nn.ReLU(), 64), "ReLU has no convolution"),
        (("timm/mobilenetv2_100", 0), "img_size must be a whole number or"),
        (("timm/mobilenetv2_100", "64"), "img_size must be a whole number or"),
        (("timm/mobilenetv2_100", 31), "img_size 31x31 is below the network's stride of 32"),
        (("torchvision/shufflenet_v2_x1_0", (64, 20)), "img_size 64x20 is below the network's stride of 32"),
        (("timm/mobilenetv2_100", 64, 0), "width must be a factor above 0, or 'match', got 0"),
        (("timm/mobilenetv2_100", 64, float("inf")), "width must be a factor above 0, or 'match', got inf"),
        (("timm/mobilenet_sep_041", 64), "MobileNet is a network of dicenet: it has DiCE units, or takes unit='dice'"),
        (("timm/mobilenetv2_100", 64, "wide"), "width must be a factor above 0, or 'match', got 'wide'"),
    ],
)
def test_bad_arguments(arguments, message):
    model, *rest = arguments
    if isinstance(model, str) and "/" in model:
        model = network(model)
    with pytest.raises(ConfigError, match=message):
        replace_separable_convs(model, *rest)


def test_a_network_that_cannot_be_traced():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) if x.sum().item() > 0 else x

    with pytest.raises(ConfigError, match="Counts cannot be traced for pictures of 32x32"):
        replace_separable_convs(Counts(), 32)


def test_it_is_public():
    assert dicenet.replace_separable_convs is replace_separable_convs
    assert isinstance(replace_separable_convs(chain(depth(), point()), 8)[1], dicenet.ConversionReport)
