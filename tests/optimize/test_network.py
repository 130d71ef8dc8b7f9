"""Networks that are no DiCENet: what a plan takes of them, and that the rest stays as it is.

Single operations are in test_lowering.py, whole DiCENets, their copies, threads and types in test_optimized.py.
"""

import inspect
import random

import pytest
import torch
import torch.nn.functional as F
from optimize_cases import assert_same, picture, plain, randomise
from torch import nn

from dicenet import optimize_for_inference
from dicenet.layers import ConvNormAct, DiCEUnit, NormAct
from dicenet.layers.blocks import ShuffleBlock, StridedUnit
from dicenet.ops import cpu
from dicenet.optimize.network import MOST_PLANS, PlannedPart
from dicenet.optimize.steps import GROUPED_PIXELS, Kind

pytestmark = pytest.mark.skipif(not cpu.available, reason="plans are run by the C++ operators")

#: Float32 sums in another order; what is promised is 1e-4.
EXACT = 1e-5


def of(function, *layers):
    """A network of some layers that computes function(layers, x), or of two inputs."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x):
            return function(self.layers, x)

    class NetOfTwo(Net):
        def forward(self, x, y):
            return function(self.layers, x, y)

    return randomise((NetOfTwo if len(inspect.signature(function).parameters) == 3 else Net)())


def check(net, *inputs):
    """The optimized network gives what the network gives; one image and a group with a rest agree."""
    fast = optimize_for_inference(net)
    expected = plain(net, *inputs)
    assert_same(fast(*inputs), expected, EXACT)
    alone = fast(*(x[:1] for x in inputs))
    assert_same(alone, plain(net, *(x[:1] for x in inputs)), EXACT)
    return fast


def kinds(plans):
    return [[Kind(kind) for kind in plan.program[:, 0].tolist()] for _, plan in plans]


# -- one plan takes all

# what is computed of x (N, 16, 6, 5) by layers; N is 9: a group of images and a rest
WHOLE = {
    "point-wise, norms": lambda: of(
        lambda m, x: m[2](m[1](m[0](x))), ConvNormAct(16, 40, 1), NormAct(40), nn.Conv2d(40, 11, 1)
    ),
    "grouped": lambda: of(
        # groups of 16 outputs are products of their own, groups of 5 one block-diagonal matrix
        lambda m, x: m[2](m[1](m[0](x))),
        nn.Conv2d(16, 64, 1, groups=4),
        nn.Conv2d(64, 20, 1, groups=4, bias=False),
        nn.Conv2d(20, 6, 1, groups=2),
    ),
    "depth-wise": lambda: of(
        lambda m, x: m[1](m[0](m[2](x))),
        ConvNormAct(16, 16, 3, groups=16),
        ConvNormAct(16, 16, 3, stride=2, groups=16),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
    ),
    "residual": lambda: of(
        lambda m, x: torch.add(x + m[0](x), m[1](x)) + x, ConvNormAct(16, 16, 1), DiCEUnit(16, 16, (6, 5))
    ),
    "concatenation": lambda: of(
        # a map twice, and parts that do not begin at a vector
        lambda m, x: m[2](torch.cat([m[0](x), x, m[1](x), x], 1)),
        ConvNormAct(16, 7, 1),
        ConvNormAct(16, 21, 1),
        NormAct(60),
    ),
    "shuffle of unequal parts": lambda: of(
        lambda m, x: F.channel_shuffle(torch.cat([m[0](x), x], 1), 2), ConvNormAct(16, 10, 1), nn.Identity()
    ),
    "split without zeros behind": lambda: of(
        # 17 channels are padded to 32, but here others follow
        lambda m, x: [m[1](m[0](x).tensor_split([17], dim=1)[0]), m[0](x).tensor_split([-15], 1)[1]],
        ConvNormAct(16, 32, 1),
        DiCEUnit(17, 17, (6, 5)),
    ),
    "split of a split": lambda: of(
        lambda m, x: m[1](m[0](x).tensor_split([20], 1)[1].tensor_split([3], 1)[1]),
        ConvNormAct(16, 45, 1),
        ConvNormAct(22, 8, 1),
    ),
    "units": lambda: of(
        lambda m, x: m[2](m[1](m[0](x))),
        DiCEUnit(16, 16, (6, 5)),
        StridedUnit(16, (3, 3)),
        ShuffleBlock(32, 70, (3, 3)),
    ),
    "scaled units": lambda: of(
        lambda m, x: m[2](m[1](m[0](x))), DiCEUnit(16, 16, (9, 2)), DiCEUnit(16, 16, (6, 11)), DiCEUnit(16, 16, (2, 5))
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_one_plan(name, plans):
    check(WHOLE[name](), picture(9, 16, 6, 5))
    assert len(plans) == 1


def test_several_inputs(plans):
    net = of(lambda m, x, y: [m[0](x) + y, m[1](torch.cat([y, x], 1))], ConvNormAct(16, 20, 1), ConvNormAct(36, 3, 1))
    x = picture(9, 16, 6, 5), picture(9, 20, 6, 5, seed=2)
    fast = check(net, *x)
    assert len(plans) == 1
    swapped = [t.contiguous(memory_format=torch.channels_last) for t in x]
    assert_same(fast(*swapped), plain(net, *x), EXACT)


def test_sums_that_are_broadcast_run_as_modules(plans):
    net = of(lambda m, x: m[0](x) + m[1](m[2](x)), ConvNormAct(16, 16, 1), nn.AdaptiveAvgPool2d(1), NormAct(16))
    check(net, picture(9, 16, 6, 5))
    assert plans == []


# -- pairs of steps as one


def test_unit_ends_in_its_shuffle(plans):
    check(of(lambda m, x: m[0](x), ShuffleBlock(40, 40, (6, 5))), picture(9, 40, 6, 5))
    (steps,) = kinds(plans)
    assert Kind.INTERLEAVE not in steps


@pytest.mark.parametrize("channels", [32, 34, 48, 50, 64, 70, 116])
@pytest.mark.parametrize("stride", [1, 2])
def test_shuffle_inside_of_the_convolution(channels, stride, plans):
    # whether the padding of the pairs is longer than that of the map depends on the channels
    half = channels // 2

    def function(m, x):
        return shuffle(m[1](m[0](x)), m[3](m[2](x)))

    net = of(
        function,
        ConvNormAct(16, half, 1),
        ConvNormAct(half, half, 3, stride, groups=half),
        ConvNormAct(16, half, 1),
        ConvNormAct(half, half, 3, stride, groups=half),
    )
    check(net, picture(9, 16, 6, 5))
    assert Kind.INTERLEAVE not in kinds(plans)[0]


def shuffle(left, right):
    return F.channel_shuffle(torch.cat([left, right], 1), 2)


def both(m, x):
    right = m[1](m[0](x))
    return [shuffle(x, right), m[2](right)]


@pytest.mark.parametrize(
    "function",
    [
        both,
        lambda m, x: shuffle(m[1](m[0](x)), x),
        lambda m, x: (lambda y: shuffle(y, y))(m[1](m[0](x))),
        lambda m, x: shuffle(m[2](x).tensor_split([16], 1)[0], m[1](m[0](x)).tensor_split([16], 1)[0]),
    ],
    ids=["used elsewhere", "left half", "both halves", "some channels"],
)
def test_shuffles_that_stay(function, plans):
    net = of(function, ConvNormAct(24, 24, 1), ConvNormAct(24, 24, 3, groups=24), ConvNormAct(24, 20, 1))
    check(net, picture(9, 24, 6, 5))
    assert kinds(plans)[0].count(Kind.INTERLEAVE) == 1


def stem(channels, **conv):
    return nn.Conv2d(channels, 20, **{"kernel_size": 3, "stride": 2, "padding": 1, **conv})


@pytest.mark.parametrize("size", [(31, 40), (7, 6), (5, 1), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_stem_and_pool(channels, size, plans):
    net = of(lambda m, x: m[2](m[1](m[0](x))), ConvNormAct(channels, 20, 3, 2), nn.MaxPool2d(3, 2, 1), NormAct(20))
    check(net, picture(9, channels, *size))
    assert kinds(plans)[0][0] == Kind.STEM_POOL


@pytest.mark.parametrize(
    "conv",
    [{"kernel_size": 5, "padding": 2}, {"kernel_size": 7, "stride": 4}, {"stride": 1, "padding": 0}, {"padding": 3}],
)
def test_other_stems(conv, plans):
    net = of(lambda m, x: m[2](m[1](m[0](x))), stem(3, **conv), nn.MaxPool2d(3, 2, 1), NormAct(20))
    check(net, picture(9, 3, 19, 22))
    assert kinds(plans)[0][0] == Kind.STEM_POOL


def test_stem_that_is_an_output_too(plans):
    def function(m, x):
        first = m[0](x)
        return [first, m[2](m[1](first))]

    check(of(function, ConvNormAct(3, 20, 3, 2), nn.MaxPool2d(3, 2, 1), ConvNormAct(20, 8, 1)), picture(9, 3, 17, 20))
    assert {Kind.STEM, Kind.MAX_POOL} <= set(kinds(plans)[0])


def test_average_behind_a_stem_stays(plans):
    net = of(lambda m, x: m[2](m[1](m[0](x))), stem(3), nn.AvgPool2d(3, 2, 1), NormAct(20))
    check(net, picture(9, 3, 17, 20))
    assert {Kind.STEM, Kind.AVERAGE_POOL} <= set(kinds(plans)[0])


# -- a part of the network


def test_modules_between_plans(plans):
    net = randomise(
        nn.Sequential(
            ConvNormAct(3, 16, 3, 2),
            nn.MaxPool2d(3, 2, 1),
            DiCEUnit(16, 16, (6, 5)),
            nn.GELU(),
            DiCEUnit(16, 16, (6, 5)),
            ConvNormAct(16, 24, 1),
            DiCEUnit(24, 24, (6, 5)),
            nn.GELU(),
            ConvNormAct(24, 8, 1),  # too little for a plan
        )
    )
    check(net, picture(9, 3, 23, 19))
    assert [sizes for sizes, _ in plans] == [((3, 23, 19),), ((16, 6, 5),)]


#: Layers that look like those that plans know.
UNKNOWN = {
    "dilated": lambda: nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16),
    "circular padding": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16, padding_mode="circular"),
    "5x5": lambda: nn.Conv2d(16, 16, 5, padding=2, groups=16),
    "full 3x3": lambda: nn.Conv2d(16, 16, 3, padding=1),
    "strided 1x1": lambda: nn.Conv2d(16, 16, 1, stride=2),
    "padded 1x1": lambda: nn.Conv2d(16, 16, 1, padding=1),
    "padding by name": lambda: nn.Conv2d(16, 16, 3, padding="same", groups=16),
    "uneven stride": lambda: nn.Conv2d(16, 16, 3, padding=1, stride=(1, 2), groups=16),
    "depth multiplier": lambda: nn.Conv2d(16, 32, 3, padding=1, groups=16),
    "ceil_mode": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "padding that does not count": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "pool 2x2": lambda: nn.MaxPool2d(2),
    "dilated pool": lambda: nn.MaxPool2d(3, 2, 1, dilation=2),
    "unit of 5x5": lambda: DiCEUnit(16, 16, (6, 5), kernel_size=5),
    "dilated unit": lambda: DiCEUnit(16, 16, (6, 5), dilation=(1, 2, 1)),
    "unit that is not interleaved": lambda: DiCEUnit(16, 16, (6, 5), interleave=False),
    "unit of other outputs": lambda: DiCEUnit(16, 24, (6, 5)),
    "ReLU": nn.ReLU,
    "pool to 2x2": lambda: nn.AdaptiveAvgPool2d(2),
    "flatten in front of another layer": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    "flatten of a map": lambda: nn.Flatten(2),
    "norm of the batch": lambda: nn.BatchNorm2d(16, track_running_stats=False),
}


def taken():
    """Enough for a plan."""
    return ConvNormAct(16, 16, 1), DiCEUnit(16, 16, (6, 5)), NormAct(16)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_plans_do_not_know(name, plans):
    net = randomise(nn.Sequential(*taken(), UNKNOWN[name]()))
    x = picture(9, 16, 6, 5)
    assert_same(optimize_for_inference(net)(x), plain(net, x))
    assert len(plans) == 1


class NoTrace(nn.Module):
    """Looks at the numbers in a map, which a trace cannot."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layers(x) if x.mean() > 0 else self.layers(-x)


@pytest.mark.parametrize("sign", [1, -1])
def test_children_of_what_cannot_be_traced(sign, plans):
    net = randomise(NoTrace(*taken(), NoTrace(*taken()), nn.GELU(), *taken()))
    x = sign * picture(9, 16, 6, 5).abs()
    assert_same(optimize_for_inference(net)(x), plain(net, x), EXACT)
    assert plans  # those of the innermost


def test_methods_of_what_cannot_be_traced():
    class Named(nn.Sequential):
        bias = 3.0

        def backwards(self, x):
            for layer in reversed(list(self)):
                x = layer(x)
            return x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Named(*taken())

        def forward(self, x):
            return self.part.backwards(x) + self.part.bias if x.sum() > 0 else self.part(x)

    net = randomise(Net())
    for x in (picture(9, 16, 6, 5).abs(), -picture(9, 16, 6, 5).abs()):
        assert_same(optimize_for_inference(net)(x), plain(net, x), EXACT)


def test_layers_that_somebody_listens_to():
    net = randomise(nn.Sequential(*taken(), *taken()))
    heard = []
    net[4].register_forward_hook(lambda module, args, out: heard.append(out))
    x = picture(9, 16, 6, 5)
    fast = optimize_for_inference(net)
    assert_same(fast(x), plain(net, x), EXACT)
    mine, its = heard
    assert_same(mine, its, EXACT)


def test_module_that_is_used_twice(plans):
    layer = ConvNormAct(16, 16, 1)
    check(
        randomise(nn.Sequential(layer, DiCEUnit(16, 16, (6, 5)), layer, nn.MaxPool2d(3, 2, 1), layer)),
        picture(9, 16, 6, 5),
    )
    assert len(plans) == 1


def test_a_split_with_a_module_on_one_way(plans):
    def function(m, x):
        left, right = m[0](x).tensor_split([20], dim=1)
        return m[3](m[2](shuffle(left, F.gelu(m[1](right)))))

    net = of(function, ConvNormAct(16, 40, 1), DiCEUnit(20, 20, (6, 5)), ConvNormAct(40, 8, 1), NormAct(8))
    check(net, picture(9, 16, 6, 5))
    assert plans


def test_sizes_that_a_plan_refuses_run_as_modules():
    net = of(lambda m, x: m[1](m[0](x) + x), ConvNormAct(16, 1, 1), NormAct(16))  # a broadcast sum
    check(net, picture(9, 16, 6, 5))
    wrong = randomise(nn.Sequential(*taken()))
    fast = optimize_for_inference(wrong)
    with pytest.raises(RuntimeError) as expected:
        plain(wrong, picture(1, 15, 6, 5))
    with pytest.raises(RuntimeError) as found:
        fast(picture(1, 15, 6, 5))
    assert str(found.value) == str(expected.value)


def test_optional_inputs(plans):
    class Net(nn.Sequential):
        def forward(self, x, skip=None):
            y = super().forward(x)
            return y if skip is None else y + skip

    net, x = randomise(Net(nn.Sequential(*taken()))), picture(9, 16, 6, 5)
    skip = torch.ones_like(plain(net, x))
    fast = optimize_for_inference(net)
    for arguments in ((x,), (x, None), (x, skip)):
        assert_same(fast(*arguments), plain(net, *arguments), EXACT)
    assert plans


@pytest.mark.parametrize("name", ["fused_0", "fused_head", "plan_0"])
def test_children_of_any_name(name, plans):
    net = nn.Sequential(*taken())
    net.add_module(name, nn.Sequential(nn.Conv2d(16, 16, 3, bias=False), nn.GELU()))
    check(randomise(net), picture(9, 16, 6, 5))
    assert plans


@pytest.mark.parametrize("first", [[], [nn.Conv2d(3, 24, 3, 2, 1)]], ids=["pool", "stem and pool"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pools_keep_what_is_no_number(first, value):
    channels = 24 if first else 3
    net = randomise(nn.Sequential(*first, nn.MaxPool2d(3, 2, 1), ConvNormAct(channels, channels, 1)))
    x = picture(2, 3, 22, 26)
    x[1, 1, 9, 8] = value
    x[1, 1, 9, 9] = -value
    found, expected = optimize_for_inference(net)(x), plain(net, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_defaults_of_the_process_do_not_matter():
    net, x = randomise(nn.Sequential(*taken())), picture(9, 16, 6, 5)
    expected = plain(net, x)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            found = optimize_for_inference(net)(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(found, expected, EXACT)


def test_plans_of_the_last_sizes_are_kept(plans):
    net = randomise(nn.Sequential(*(ConvNormAct(16, 16, 1) for _ in range(3))))
    fast = optimize_for_inference(net)
    sizes = range(1, MOST_PLANS + 2)
    for side in sizes:
        x = picture(1, 16, side, 2)
        assert_same(fast(x), plain(net, x), EXACT)
        fast(picture(1, 16, 1, 2))  # one that is used all the time
    assert len(plans) == len(sizes)
    (part,) = (module for module in fast.runner.modules() if isinstance(module, PlannedPart))
    assert len(part.plans) == MOST_PLANS
    fast(picture(1, 16, 1, 2))
    assert len(plans) == len(sizes)
    fast(picture(1, 16, 2, 2))  # the one used least lately
    assert len(plans) == len(sizes) + 1


# -- anything together


def random_network(chance, size):
    """A graph of known operations over maps of several sizes and channels."""
    layers, program = [], []
    maps = [(16, *size)]

    def add(operation, sources, shape, *modules):
        program.append((operation, sources, len(layers)))
        layers.extend(modules)
        maps.append(shape)

    for _ in range(chance.randint(4, 14)):
        source = chance.randrange(len(maps))
        c, h, w = maps[source]
        alike = [number for number, shape in enumerate(maps) if shape[1:] == (h, w)]
        equal = [number for number, shape in enumerate(maps) if shape == (c, h, w)]
        half = ((h + 1) // 2, (w + 1) // 2)
        out = chance.choice([4, 8, 16, 17, 24, 48, 50])
        kind = chance.choice(["conv", "depth", "down", "unit", "pool", "add", "cat", "shuffle", "split", "norm"])
        if kind == "conv":
            add("layer", [source], (out, h, w), ConvNormAct(c, out, 1))
        elif kind == "depth":
            add("layer", [source], maps[source], ConvNormAct(c, c, 3, groups=c))
        elif kind == "down":
            add("layer", [source], (c, *half), ConvNormAct(c, c, 3, 2, groups=c))
        elif kind == "unit" and c >= 4:
            sides = (h, w) if chance.random() < 0.6 else (chance.randint(1, 9), chance.randint(1, 9))
            add("layer", [source], maps[source], DiCEUnit(c, c, sides))
        elif kind == "pool":
            pool = chance.choice([nn.MaxPool2d, nn.AvgPool2d])(3, 2, 1)
            add("layer", [source], (c, *half), pool)
        elif kind == "norm":
            add("layer", [source], maps[source], NormAct(c))
        elif kind == "add":
            add("add", [source, chance.choice(equal)], maps[source])
        elif kind == "cat":
            others = [source, *chance.choices(alike, k=chance.randint(1, 2))]
            add("cat", others, (sum(maps[number][0] for number in others), h, w))
        elif kind == "shuffle":
            add("shuffle", [source, chance.choice(equal)], (2 * c, h, w))
        elif kind == "split" and c > 1:
            add("split", [source, border := chance.randrange(1, c)], (border, h, w))
    results = sorted({len(maps) - 1, *chance.choices(range(1, len(maps)), k=2)})

    def function(m, x):
        values = [x]
        for operation, sources, layer in program:
            first = values[sources[0]]
            if operation == "layer":
                values.append(m[layer](first))
            elif operation == "add":
                values.append(first + values[sources[1]])
            elif operation == "cat":
                values.append(torch.cat([values[number] for number in sources], 1))
            elif operation == "shuffle":
                values.append(shuffle(first, values[sources[1]]))
            else:
                values.append(first.tensor_split([sources[1]], 1)[0])
        return [values[number] for number in results]

    return of(function, *layers)


@pytest.mark.parametrize("seed", range(60))
def test_random_networks(seed):
    chance = random.Random(seed)
    size = chance.choice([(5, 3), (8, 8), (9, 8), (17, 12)])  # on both sides of where images go in groups
    assert GROUPED_PIXELS == 8 * 8
    net = random_network(chance, size)
    x = picture(9, 16, *size)
    fast = optimize_for_inference(net)
    expected = plain(net, x)
    found = fast(x)
    for mine, its in zip(found, expected, strict=True):
        assert (mine - its).abs().max() <= EXACT * its.abs().max()
    for mine, its in zip(fast(x[:3]), found, strict=True):
        assert (mine - its[:3]).abs().max() <= EXACT * its.abs().max()
