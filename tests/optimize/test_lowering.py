"""Networks that are no DiCENet: every operation that plans know, in odd places, beside some that they do not."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode
from unsettled import assert_close, assert_equal, by_reference, pictures, small_network, unit, unsettle

from dicenet.layers import ConvNormAct, DiCEUnit, NormAct
from dicenet.layers.blocks import ShuffleBlock, StridedUnit
from dicenet.ops import cpu
from dicenet.optimize import optimize_for_inference
from dicenet.optimize.lowering import lower
from dicenet.optimize.network import PlannedPart, _Tracer
from dicenet.optimize.steps import Kind

pytestmark = pytest.mark.skipif(not cpu.available, reason="the C++ operators are not built here")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """A network by its forward function and modules."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


class NetOfTwo(Net):
    def forward(self, x, y):
        return self.function(self, x, y)


def convs(*channels):
    """1x1 convolutions; the first of them need not read a picture."""
    torch.manual_seed(0)
    return nn.Sequential(*(ConvNormAct(i, o, 1) for i, o in itertools.pairwise(channels)))


def parts(fast):
    """The parts of a network that run as plans."""
    called = [module.__dict__.get("forward") for module in fast.runner.modules()]
    graphs = [fast.runner, *(call.__self__ for call in called if call is not None)]
    return [module for graph in graphs for module in graph.modules() if isinstance(module, PlannedPart)]


def kinds(fast):
    """Kinds of the steps of all plans that were made."""
    programs = [plan.program for part in parts(fast) for plan in part._plans.values() if plan is not None]
    return {Kind(int(step[0])) for program in programs for step in program}


def check(net, *inputs, planned=1):
    """Compares the outputs for two batches, and how many parts run as plans."""
    net = unsettle(net)
    fast = optimize_for_inference(net)
    assert_close(fast(*inputs), by_reference(net, *inputs))
    fewer = [x[:1] for x in inputs]
    assert_close(fast(*fewer), by_reference(net, *fewer))
    assert len(parts(fast)) == planned
    return fast


def lowered(net, *inputs):
    """The plan of a whole network, whatever its size, compared."""
    net = unsettle(net)
    plan = lower(fx.GraphModule(net, _Tracer().trace(net)), tuple(x.shape[1:] for x in inputs))
    assert_close(plan.run(inputs), by_reference(net, *inputs))
    return plan


# -- single operations, on maps of odd sizes

SIZES = [(1, 1), (1, 5), (4, 1), (2, 2), (7, 7), (9, 6), (3, 31)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [16, 17, 48, 70])
def test_unit(channels, size):
    lowered(nn.Sequential(unit(channels, size)), pictures(2, channels, *size))


@pytest.mark.parametrize("size", SIZES)
def test_scaled_unit(size):
    plan = lowered(nn.Sequential(unit(20, (5, 8))), pictures(2, 20, *size))
    assert Kind.DIM_CONV in plan.program[:, 0]


@pytest.mark.parametrize("size", [(5, 3), (4, 8)])
def test_unit_that_is_scaled_along_one_side(size):
    lowered(nn.Sequential(unit(20, (5, 8))), pictures(2, 20, *size))


@pytest.mark.parametrize("channels", [4, 5, 15])
def test_narrow_unit(channels):
    lowered(nn.Sequential(unit(channels, (4, 3))), pictures(3, channels, 4, 3))
    lowered(nn.Sequential(unit(channels, (4, 3))), pictures(3, channels, 9, 2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
def test_depth_wise(stride, size):
    torch.manual_seed(0)
    lowered(nn.Sequential(ConvNormAct(21, 21, 3, stride, groups=21)), pictures(2, 21, *size))
    lowered(nn.Sequential(nn.Conv2d(21, 21, 3, stride, 1, groups=21)), pictures(2, 21, *size))


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"), [(5, 7, 1), (33, 100, 1), (24, 36, 4), (64, 64, 4), (9, 9, 9)]
)
def test_pointwise(inputs, outputs, groups):
    torch.manual_seed(0)
    x = pictures(2, inputs, 5, 3)
    lowered(nn.Sequential(ConvNormAct(inputs, outputs, 1, groups=groups)), x)
    lowered(nn.Sequential(nn.Conv2d(inputs, outputs, 1, groups=groups)), x)
    lowered(nn.Sequential(nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)), x)


@pytest.mark.parametrize("size", [(5, 5), (8, 5), (17, 20)])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"), [(3, 3, 2, 1), (1, 7, 2, 3), (4, 5, 3, 0), (2, 1, 1, 0), (3, 4, 4, 2)]
)
def test_stem(channels, kernel, stride, padding, size):
    torch.manual_seed(0)
    lowered(nn.Sequential(nn.Conv2d(channels, 19, kernel, stride, padding)), pictures(2, channels, *size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_pools(pool, size):
    lowered(nn.Sequential(NormAct(18), pool(3, stride=2, padding=1)), pictures(2, 18, *size) - 3)


@pytest.mark.parametrize("size", SIZES)
def test_pooled_stem(size):
    torch.manual_seed(0)
    net = nn.Sequential(ConvNormAct(3, 18, 3, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
    lowered(net, pictures(2, 3, *size))


@pytest.mark.parametrize("pool", [SelectAdaptivePool2d(pool_type="avg"), nn.AdaptiveAvgPool2d(1)])
def test_means(pool):
    lowered(nn.Sequential(NormAct(18), pool, nn.Flatten(1)), pictures(2, 18, 5, 3))


def test_norm_without_weights_and_one_slope():
    net = nn.Sequential(*convs(5, 6), NormAct(6))
    net[0].norm = nn.BatchNorm2d(6, affine=False)
    net[1].act = nn.PReLU()
    lowered(net, pictures(2, 5, 4, 3))


# -- between modules that plans do not know


def test_other_modules_stay_between_plans():
    torch.manual_seed(0)
    net = nn.Sequential(
        ConvNormAct(3, 20, 3, stride=2),
        DiCEUnit(20, 20, (8, 8)),
        ConvNormAct(20, 18, 1),
        nn.GELU(),
        ShuffleBlock(18, 24, (8, 8)),
        nn.Hardswish(),
        StridedUnit(24, (4, 4)),
        SelectAdaptivePool2d(pool_type="avg", flatten=True),
        nn.Linear(48, 5),
    )
    fast = check(net, pictures(2, 3, 16, 16), planned=3)
    assert Kind.LOCAL in kinds(fast)
    check(net, pictures(3, 3, 25, 14), planned=3)


def test_too_little_for_a_plan():
    check(nn.Sequential(*convs(5, 8), nn.GELU(), *convs(8, 8, 6)), pictures(2, 5, 5, 5), planned=0)


class DataDependent(nn.Module):
    """Cannot be traced, and uses its children in more ways than calling them."""

    def __init__(self):
        super().__init__()
        self.first = small_network()[:3]
        self.unit = unit(24, (4, 3))
        self.layers = nn.Sequential(*convs(24, 24, 24), ShuffleBlock(24, 24, (4, 3)))
        self.more = nn.ModuleList([ShuffleBlock(24, 24, (4, 3)), ShuffleBlock(24, 24, (4, 3))])
        self.missing = None
        self.linear = nn.Linear(24, 4)

    def forward(self, x):
        x = self.unit(self.first(x))
        if x.mean() > 1e6:
            return x
        x = self.layers(x)
        for layer in self.layers:
            x = layer(x)
        for layer in self.more:
            x = x + layer(x)
        return self.linear(x.mean((2, 3)))


def test_children_of_what_cannot_be_traced():
    # `first`, `layers` and the two of `more`
    fast = check(DataDependent(), pictures(2, 3, 16, 12), planned=4)
    assert type(fast.runner) is DataDependent


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = small_network()[:3], nn.Conv2d(24, 3, 1)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


class Outer(nn.Module):
    """Cannot be traced, and calls a method of its child beside its forward."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()

    def forward(self, x):
        features = self.backbone.features(x)
        return self.backbone(x) if features.sum() != 0 else features


def test_other_methods_of_a_child():
    check(Outer(), pictures(2, 3, 16, 12), planned=1)


def test_units_by_themselves():
    for net in (unit(20, (6, 5)), nn.ModuleList([unit(20, (6, 5))])[0], nn.Sequential(unit(20, (6, 5)))):
        check(net, pictures(2, 20, 6, 5), planned=0)


# -- joints


@pytest.mark.parametrize("size", [(6, 5), (20, 9)])
def test_residual_additions(size):
    net = Net(
        lambda m, x: m.last(torch.add(m.b(m.a(x)), m.a(x)) + x),
        a=convs(17, 17),
        b=nn.Sequential(ConvNormAct(17, 17, 3, groups=17)),
        last=convs(17, 9),
    )
    assert Kind.ADD in kinds(check(net, pictures(2, 17, *size)))


@pytest.mark.parametrize("size", [(1, 1), (6, 5)])
def test_concatenation_of_any_widths(size):
    def forward(m, x):
        a, b = m.a(x), m.b(x)
        return m.c(torch.cat((a, b, a, x), dim=1)), torch.cat([b, b], 1)

    check(Net(forward, a=convs(3, 5), b=convs(3, 16, 2), c=convs(15, 20)), pictures(2, 3, *size))


def test_splits_at_any_channel():
    def forward(m, x):
        x = m.a(x)
        first, second, third = x.tensor_split([3, -9], dim=1)
        fourth = x.tensor_split((40,), 1)[0]
        return m.b(third), F.channel_shuffle(torch.cat([first, m.c(first)], 1), 2), second, fourth

    net = Net(forward, a=convs(6, 24), b=convs(9, 7), c=convs(3, 3))
    check(net, pictures(2, 6, 4, 5))
    check(Net(lambda m, x: m.a(x).tensor_split(3, dim=1), a=convs(6, 6, 6, 24)), pictures(2, 6, 4, 5))


def test_split_that_leaves_as_a_whole():
    check(Net(lambda m, x: m.a(x).tensor_split([3], dim=1), a=convs(6, 6, 6, 24)), pictures(2, 6, 4, 5))


def test_split_around_other_modules():
    def forward(m, x):
        kept, rest = m.a(x).tensor_split([7], dim=1)
        return F.channel_shuffle(torch.cat([kept, torch.tanh(m.b(rest))], dim=1), 2)

    check(Net(forward, a=convs(6, 6, 6, 14), b=convs(7, 7, 7, 7)), pictures(2, 6, 4, 5))


@pytest.mark.parametrize("channels", [6, 16, 32, 38])
def test_shuffles(channels):
    def forward(m, x):
        y = m.b(m.a(x))
        twice = F.channel_shuffle(torch.cat([y, y], dim=1), groups=2)
        first, _ = y.tensor_split([channels // 2], dim=1)
        other = F.channel_shuffle(torch.cat([m.c(first), first], dim=1), 2)
        return twice, other, F.channel_shuffle(F.channel_shuffle(y, 2), 2)

    net = Net(
        forward,
        a=convs(5, channels),
        b=ConvNormAct(channels, channels, 3, groups=channels),
        c=convs(channels // 2, channels // 2),
    )
    check(net, pictures(2, 5, 4, 5))


#: A depth-wise convolution's result in a shuffle: twice, in part, as second and as first.
BEHIND_DEPTH_WISE = {
    "twice": lambda m, x: [m.b(m.a(x))] * 2,
    "half": lambda m, x: [m.c(x), m.b(m.a(x)).tensor_split([24], dim=1)[0]],
    "second": lambda m, x: [m.a(x), m.b(m.a(x))],
    "first": lambda m, x: [m.b(m.a(x)), m.a(x)],
}


@pytest.mark.parametrize("size", [(4, 5), (11, 9)])
@pytest.mark.parametrize("name", BEHIND_DEPTH_WISE)
def test_shuffle_behind_a_depth_wise_convolution(name, size):
    joined = BEHIND_DEPTH_WISE[name]
    net = Net(
        lambda m, x: F.channel_shuffle(torch.cat(joined(m, x), dim=1), 2),
        a=convs(5, 48),
        b=ConvNormAct(48, 48, 3, groups=48),
        c=convs(5, 24),
    )
    check(net, pictures(2, 5, *size))


def test_shuffle_of_three_groups():
    check(Net(lambda m, x: F.channel_shuffle(m.a(x), groups=3), a=convs(5, 9, 9, 9)), pictures(2, 5, 4, 5))


def test_only_what_has_no_weights():
    def forward(m, x):
        return F.channel_shuffle(m.pool(x) + m.pool(x), 2)

    # the network has a convolution somewhere, else there is nothing to do
    check(Net(forward, pool=nn.MaxPool2d(3, stride=2, padding=1), unused=convs(4, 4)), pictures(2, 6, 9, 8))


def test_several_inputs_and_outputs():
    def forward(m, x, y):
        a, b = m.a(x), m.b(y)
        low = m.pool(b)
        return {"sum": m.c(a) + low, "all": [a, b, torch.cat([low, a], dim=1)], "x": m.drop(x)}

    net = NetOfTwo(
        forward,
        a=convs(6, 12, 10),
        b=convs(7, 10, 10),
        c=convs(10, 10),
        pool=nn.AvgPool2d(3, stride=2, padding=1),
        drop=nn.Dropout(),
    )
    check(net, pictures(9, 6, 4, 3), pictures(9, 7, 8, 5))


def test_the_same_map_twice():
    def forward(m, x):
        y = m.a(x)
        return y, y, m.b(y), m.b(y) + m.b(y), y + y

    check(Net(forward, a=convs(6, 12), b=convs(12, 12)), pictures(2, 6, 4, 3))


def test_pooled_and_flattened():
    def forward(m, x):
        pooled = m.pool(m.a(x))
        return pooled, m.flatten(pooled)

    check(Net(forward, a=convs(6, 12), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()), pictures(2, 6, 4, 3))


# -- sizes that plans do not take


@pytest.mark.parametrize("size", [(4, 3), (1, 1)])
def test_flattened_maps_keep_torchs_order(size):
    check(nn.Sequential(*convs(6, 6, 7), nn.Flatten()), pictures(2, 6, *size))


def test_broadcast_additions():
    def forward(m, x):
        y = m.a(x)
        return m.b(y + m.pool(y))

    check(Net(forward, a=convs(6, 12), b=convs(12, 5), pool=nn.AdaptiveAvgPool2d(1)), pictures(2, 6, 4, 3))


class Positions(nn.Module):
    """Adds a parameter and a buffer, for one image, to the maps of all."""

    def __init__(self, rows):
        super().__init__()
        self.a, self.b = convs(6, 12), convs(12, 5, 6)
        self.where = nn.Parameter(pictures(1, 12, rows, 3, seed=2))
        self.register_buffer("again", pictures(1, 12, 4, 3, seed=3))

    def forward(self, x):
        return self.b(self.where + (self.a(x) + self.again))


@pytest.mark.parametrize("rows", [4, 1])
def test_additions_of_parameters(rows):
    check(Positions(rows), pictures(3, 6, 4, 3))


def test_arithmetic_with_sizes():
    def forward(m, x):
        y = m.a(x)
        return m.b(y).flatten(1).mean(1) / (y.shape[2] + y.shape[3] + x.shape[0])

    check(Net(forward, a=convs(6, 12), b=convs(12, 5, 6)), pictures(3, 6, 4, 3))


def test_arguments_by_name():
    def forward(m, x):
        y = m.a(input=m.first(x))
        y = torch.cat(tensors=[y, y], dim=1)
        return F.dropout(m.b(y), training=False), y.tensor_split(indices=[4], dim=1)[0]

    check(Net(forward, first=convs(6, 6), a=nn.Conv2d(6, 6, 1), b=convs(12, 5, 5)), pictures(3, 6, 4, 3))


def without_statistics():
    conv = ConvNormAct(8, 8, 1)
    conv.norm = nn.BatchNorm2d(8, track_running_stats=False)
    return conv


OTHERS = {
    "dilated": lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
    "reflected": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="reflect"),
    "valid": lambda: nn.Conv2d(8, 8, 1, padding="valid"),
    "same": lambda: nn.Conv2d(8, 8, 3, padding="same", groups=8),
    "strided": lambda: nn.Conv2d(8, 8, 1, stride=2),
    "dense": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "multiplied": lambda: nn.Conv2d(8, 16, 3, padding=1, groups=8),
    "small pool": lambda: nn.MaxPool2d(2),
    "rounded up": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "without padding": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "divided": lambda: nn.AvgPool2d(3, 2, 1, divisor_override=2),
    "four means": lambda: nn.AdaptiveAvgPool2d(2),
    "flattened mean": lambda: SelectAdaptivePool2d(pool_type="avg", flatten=True),
    "batch statistics": without_statistics,
    "other outputs": lambda: DiCEUnit(8, 12, (6, 5)),
    "not interleaved": lambda: DiCEUnit(8, 8, (6, 5), interleave=False),
    "large kernels": lambda: DiCEUnit(8, 8, (6, 5), kernel_size=5),
    "dilated unit": lambda: DiCEUnit(8, 8, (6, 5), dilation=(2, 1, 1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_near_what_plans_know(name):
    net = nn.Sequential(*convs(6, 8, 8, 8), OTHERS[name]())
    fast = check(net, pictures(2, 6, 6, 5))
    assert fast.runner.get_submodule("3") is fast.network[3]


# -- hooks


def test_hooks_fire():
    net = small_network()
    x = pictures(2, 3, 16, 12)
    expected = by_reference(net, x)
    seen = []

    def note(name):
        return lambda module, inputs, output: seen.append((name, tuple(output.shape)))

    net[1].register_forward_hook(note("container"))
    net[2].transform[1].dim_fuse.spatial.register_forward_hook(note("inside a unit"))
    net[4].register_forward_hook(note("convolution"))
    net.register_forward_hook(note("network"))
    fast = optimize_for_inference(net)
    assert seen == []
    assert_close(fast(x), expected)
    assert seen == [
        ("container", (2, 16, 4, 3)),
        ("inside a unit", (2, 16, 4, 3)),
        ("convolution", (2, 32, 1, 1)),
        ("network", (2, 5)),
    ]


def test_weights_made_anew_at_every_call():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
    check(nn.Sequential(*convs(6, 8, 8, 8), conv, *convs(8, 9)), pictures(2, 6, 4, 3))


# -- the plan itself


def small_plan():
    fast = optimize_for_inference(small_network())
    x = pictures(2, 3, 16, 12)
    expected = fast(x)
    (part,) = parts(fast)
    (plan,) = part._plans.values()
    return plan, x, expected


def test_opcheck():
    plan, x, _ = small_plan()
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[:0]):
        torch.library.opcheck(torch.ops.dicenet.run_plan.default, ([given], *plan))


def test_a_plan_is_what_the_network_runs():
    plan, x, expected = small_plan()
    assert_equal(plan.run([x])[0], expected)
    assert plan.out_shapes == [5, 0, 0]


def test_work_of_a_unit():
    plan = lowered(nn.Sequential(unit(20, (6, 5))), pictures(1, 20, 6, 5))
    # 27 taps of three branches, 3 of their fusion, 9 of the spatial convolution; excitation from 20 to 5 to 20
    assert plan.macs == 20 * 6 * 5 * (27 + 3 + 9) + 2 * 20 * 5


def test_work_of_a_scaled_unit():
    net = nn.Sequential(unit(20, (6, 5)))
    x = pictures(1, 20, 9, 4)
    with FlopCounterMode(display=False) as counter:
        by_reference(net, x)
    assert lowered(net, x).macs == counter.get_total_flops() // 2


def test_work_of_groups():
    # as much as the groups have, though narrow groups run as one full matrix
    assert lowered(nn.Sequential(nn.Conv2d(24, 36, 1, groups=4)), pictures(1, 24, 5, 3)).macs == 24 * 36 // 4 * 5 * 3
