"""Optimized DiCENets against the eager reference, and what else one may do with them."""

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from unsettled import assert_close, assert_equal, by_reference, flat, pictures, small_network, unsettle

import dicenet
from dicenet.models.dicenet import WIDTHS
from dicenet.ops import cpu
from dicenet.optimize import OptimizedNetwork, network, optimize_for_inference

pytestmark = pytest.mark.skipif(not cpu.available, reason="the C++ operators are not built here")

NAMES = [width.name for width in WIDTHS]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network_of(name="dicenet_020", img_size=32, seed=0, **arguments):
    torch.manual_seed(seed)
    net = timm.create_model(name, img_size=img_size, **{"num_classes": 7, **arguments})
    return unsettle(net, seed)


def check(net, *inputs):
    assert_close(optimize_for_inference(net)(*inputs), by_reference(net, *inputs))


def plans_made(monkeypatch):
    """Sizes of the plans that are made from now on, in order."""
    made = []
    lower = network.lower

    def counted(graph, sizes):
        made.append(sizes)
        return lower(graph, sizes)

    monkeypatch.setattr(network, "lower", counted)
    return made


# -- outputs


@pytest.mark.parametrize("name", NAMES)
def test_every_width(name):
    net = network_of(name, img_size=(32, 64))
    check(net, pictures(2, 3, 32, 64))


def test_official_size():
    check(network_of("dicenet_100", img_size=224), pictures(1, 3, 224, 224))


def test_all_of_a_network_is_one_plan(monkeypatch):
    made = plans_made(monkeypatch)
    fast = optimize_for_inference(network_of())
    fast(pictures(2, 3, 32, 32))
    assert made == [((3, 32, 32),)]
    assert [type(module) for module in fast.runner.children()] == [network.PlannedPart]


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (64, 128), (128, 64), (37, 101), (101, 37), (64, 61)])
def test_sizes_other_than_the_trained(size):
    net = network_of(img_size=64)
    check(net, pictures(2, 3, *size))


@pytest.mark.parametrize("images", [0, 1, 3, 7, 8, 9, 17])
def test_numbers_of_images(images):
    check(network_of(), pictures(images, 3, 32, 32))


def test_an_image_does_not_depend_on_its_batch():
    fast = optimize_for_inference(network_of(img_size=64))
    x = pictures(11, 3, 64, 64)
    alone = torch.cat([fast(image[None]) for image in x])
    for count in (2, 3, 8, 11):
        assert_close(fast(x[:count]), alone[:count], 1e-6)


def layouts(x):
    n, c, h, w = x.shape
    wide = torch.full((n + 1, c + 2, h + 3, 2 * w), torch.nan)
    wide[1:, 1:-1, 2:-1, ::2] = x
    return {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "sliced": wide[1:, 1:-1, 2:-1, ::2],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "images inside": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "flipped back": x.flip(3).flip(3),
    }


@pytest.mark.parametrize("channels", [3, 6])
def test_any_memory(channels):
    fast = optimize_for_inference(network_of(in_chans=channels))
    x = pictures(2, channels, 32, 32)
    expected = fast(x)
    for name, given in layouts(x).items():
        assert torch.equal(given, x), name
        assert_equal(fast(given), expected)


def test_expanded_picture():
    fast = optimize_for_inference(network_of())
    grey = pictures(2, 1, 32, 32)
    assert_equal(fast(grey.expand(-1, 3, -1, -1)), fast(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_pictures_of_other_channels(channels):
    net = network_of(in_chans=channels)
    check(net, pictures(2, channels, 32, 32))


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"global_pool": ""}, {"global_pool": "", "num_classes": 0}])
def test_without_classifier_and_pooling(arguments):
    check(network_of(img_size=64, **arguments), pictures(2, 3, 64, 64))


@pytest.mark.parametrize("pool", ["max", "avgmax", "catavgmax", "fast"])
def test_poolings_that_plans_do_not_know(pool):
    check(network_of(img_size=64, global_pool=pool), pictures(2, 3, 64, 64))


def test_small_stem():
    net = network_of(img_size=32, stem="small")
    check(net, pictures(2, 3, 32, 32))
    check(net, pictures(2, 3, 40, 33))


def test_rebased_network():
    net = network_of(img_size=32)
    net.rebase((64, 96))
    check(net, pictures(2, 3, 64, 96))


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (32, 61), (67, 131)])
def test_pyramid(size):
    net = network_of(img_size=64, features_only=True)
    fast = optimize_for_inference(net)
    x = pictures(2, 3, *size)
    maps = fast(x)
    assert len(maps) == 5
    assert_close(maps, by_reference(net, x))
    assert fast.feature_info.channels() == net.feature_info.channels()


def test_part_of_a_pyramid():
    net = network_of(img_size=64, features_only=True, out_indices=(1, 3))
    check(net, pictures(1, 3, 64, 96))


def test_methods_of_the_network():
    net = network_of(img_size=64)
    fast = optimize_for_inference(net)
    x = pictures(2, 3, 64, 64)
    with dicenet.ops.use_backend("reference"), torch.no_grad():
        features = net.forward_features(x)
        logits = net.forward_head(features)
    assert_close(fast.forward_features(x), features)
    assert_close(fast.forward_head(features), logits)
    assert fast.num_classes == 7
    assert fast.trained_size == (64, 64)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = fast.nonsense


# -- inputs that plans do not take


def test_other_types_run_the_modules():
    net = network_of()
    x = pictures(2, 3, 32, 32)
    double, half = copy.deepcopy(net).double(), copy.deepcopy(net).bfloat16()
    assert_close(optimize_for_inference(double)(x.double()), by_reference(double, x.double()), 1e-12)
    assert_close(optimize_for_inference(half)(x.bfloat16()), by_reference(half, x.bfloat16()), 0.05)


def test_the_reference_backend_runs_the_modules(monkeypatch):
    made = plans_made(monkeypatch)
    net = network_of()
    x = pictures(2, 3, 32, 32)
    assert_equal(by_reference(optimize_for_inference(net), x), by_reference(net, x))
    assert made == []


@pytest.mark.parametrize("shape", [(2, 4, 32, 32), (2, 2, 32, 32), (2, 3, 0, 5), (32, 32)])
def test_wrong_shapes_fail_as_in_the_network(shape):
    net = network_of()
    with pytest.raises(RuntimeError) as expected:
        by_reference(net, pictures(*shape))
    with pytest.raises(RuntimeError) as found:
        optimize_for_inference(net)(pictures(*shape))
    assert str(found.value) == str(expected.value)


def test_a_single_pixel():
    check(network_of(), pictures(2, 3, 1, 1))


# -- plans


def test_one_plan_for_each_size(monkeypatch):
    made = plans_made(monkeypatch)
    fast = optimize_for_inference(network_of())
    for images, height in ((1, 32), (4, 32), (2, 40), (0, 32), (1, 40)):
        fast(pictures(images, 3, height, 32))
    assert made == [((3, 32, 32),), ((3, 40, 32),)]


def test_results_do_not_depend_on_what_ran_before():
    fast, other = optimize_for_inference(network_of(img_size=64)), optimize_for_inference(network_of("dicenet_010"))
    sizes = [(2, 3, 96, 96), (1, 3, 32, 32), (9, 3, 64, 64), (3, 3, 33, 47)]
    first = {}
    for size in sizes:
        first[size] = fast(pictures(*size))
    other(torch.full((3, 3, 64, 64), torch.nan))  # leaves no number in the memory that the next call takes
    for size in [*reversed(sizes), *sizes]:
        assert_equal(fast(pictures(*size)), first[size])


def test_a_plan_made_in_inference_mode_is_used_outside():
    net = network_of()
    fast = optimize_for_inference(net)
    x = pictures(2, 3, 32, 32)
    with torch.inference_mode():
        expected = fast(x)
    found = fast(x)
    assert not found.is_inference()
    assert_equal(found, expected)


def test_no_gradients():
    fast = optimize_for_inference(network_of())
    out = fast(pictures(2, 3, 32, 32).requires_grad_())
    assert not out.requires_grad
    assert not any(parameter.requires_grad for parameter in fast.parameters())


# -- copies, and what an optimized network refuses


def by_pickle(fast):
    return pickle.loads(pickle.dumps(fast))


def by_torch_save(fast):
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [by_pickle, by_torch_save, copy.deepcopy, copy.copy])
def test_copies(copied, monkeypatch):
    fast = optimize_for_inference(network_of())
    x = pictures(2, 3, 32, 32)
    expected = fast(x)
    made = plans_made(monkeypatch)
    again = copied(fast)
    assert isinstance(again, OptimizedNetwork)
    assert_equal(again(x), expected)
    assert made == [((3, 32, 32),)]
    assert_equal(fast(x), expected)


def test_a_copied_part_makes_plans_of_its_own():
    fast = optimize_for_inference(network_of())
    x = pictures(2, 3, 32, 32)
    expected = fast(x)
    runner = copy.deepcopy(fast.runner)
    with torch.no_grad():
        for parameter in runner.parameters():
            parameter.mul_(1.5)
        assert_close(runner(x), by_reference(runner, x))
    assert_equal(fast(x), expected)


def test_state_dict_is_the_originals():
    net = network_of()
    fast = optimize_for_inference(net)
    fast(pictures(2, 3, 32, 32))
    mine, its = fast.state_dict(), net.state_dict()
    assert list(mine) == list(its)
    for name, value in its.items():
        assert torch.equal(mine[name], value), name


REFUSED = {
    "load_state_dict": lambda fast: fast.load_state_dict(fast.state_dict()),
    "train": lambda fast: fast.train(),
    "train(True)": lambda fast: fast.train(True),
    "reset_classifier": lambda fast: fast.reset_classifier(3),
    "rebase": lambda fast: fast.rebase(64),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    fast = optimize_for_inference(network_of())
    x = pictures(2, 3, 32, 32)
    expected = fast(x)
    with pytest.raises(dicenet.ConfigError, match="change the original and optimize it again") as error:
        REFUSED[name](fast)
    assert "\n" not in str(error.value)
    assert not fast.eval().training
    assert_equal(fast(x), expected)


def test_what_is_no_network():
    with pytest.raises(dicenet.ConfigError, match="takes a network, not str"):
        optimize_for_inference("dicenet_100")


def test_twice_is_once():
    fast = optimize_for_inference(network_of())
    assert optimize_for_inference(fast) is fast


def test_the_original_still_trains():
    net = network_of().train()
    before = copy.deepcopy(net.state_dict())
    x = pictures(4, 3, 64, 64)
    expected = by_reference(copy.deepcopy(net).eval(), x)
    fast = optimize_for_inference(net)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    net(x).square().mean().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad)
    assert_close(fast(x), expected)


# -- threads


def test_several_python_threads():
    fast = optimize_for_inference(network_of(img_size=64))
    shapes = [(1, 3, 64, 64), (5, 3, 64, 64), (2, 3, 40, 72), (9, 3, 33, 64)]
    jobs = [pictures(*shape, seed=seed) for seed, shape in enumerate(shapes * 3)]
    expected = [optimize_for_inference(fast.network)(x) for x in jobs]
    together = threading.Barrier(4)

    def work(start):
        together.wait()
        order = [(start + step) % len(jobs) for step in range(len(jobs))]
        return {number: fast(jobs[number]) for number in order}

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                for results in pool.map(work, range(4)):
                    for number, result in results.items():
                        assert_equal(result, expected[number])
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("images", [1, 2, 3, 8, 19])
def test_results_do_not_depend_on_threads(images):
    fast = optimize_for_inference(network_of("dicenet_100", img_size=64))
    x = pictures(images, 3, 64, 64)
    one = fast(x)
    torch.set_num_threads(2)
    two = fast(x)
    assert_close(two, one, 1e-5)
    assert_equal(fast(x), two)


# -- work


def counted(function, *arguments):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
def test_flops_are_those_of_the_network(size):
    net = network_of(num_classes=3)
    x = pictures(2, 3, *size)
    fast = optimize_for_inference(net)
    assert counted(fast, x) == counted(by_reference, net, x)


def test_flops_worked_out_by_hand():
    net = small_network(classes=5, size=(16, 12))
    # multiply-adds for one picture: maps of 8x6, then 4x3
    stem = 8 * 3 * 9 * 8 * 6
    dice = 4 * 3 * 8 * (27 + 3 + 9) + 2 * 8 * 2
    strided = 4 * 3 * (8 * 9 + 8 * 8) + dice + 4 * 3 * 8 * 8
    block = 4 * 3 * 8 * 16 + 4 * 3 * 16 * (27 + 3 + 9) + 2 * 16 * 4
    head = 32 * 24 // 4 + 5 * 32
    x = pictures(3, 3, 16, 12)
    assert_close(optimize_for_inference(net)(x), by_reference(net, x))
    assert counted(optimize_for_inference(net), x) == 2 * 3 * (stem + strided + block + head)


def test_every_tensor_of_a_pyramid_is_its_own():
    fast = optimize_for_inference(network_of(img_size=64, features_only=True))
    maps = flat(fast(pictures(2, 3, 64, 64)))
    assert len({value.data_ptr() for value in maps}) == len(maps)
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in maps)


def test_modules_of_the_copy_are_in_evaluation():
    fast = optimize_for_inference(network_of().train())
    assert not any(module.training for module in fast.modules() if isinstance(module, nn.BatchNorm2d))


LEVEL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import test_optimized as t
level = torch.ops.dicenet.cpu_level()
if level == sys.argv[2]:
    torch.set_num_threads(1)
    net = t.network_of("dicenet_075", img_size=64)
    t.check(net, t.pictures(2, 3, 64, 64))
    t.check(net, t.pictures(9, 3, 61, 37))
print(level)
"""


# narrower vectors end at other channels: a shuffle that wrote past its map was right at the widest level alone
@pytest.mark.parametrize("level", ["avx512", "avx2", "baseline"])
def test_every_level(level):
    environment = {**os.environ, "DICENET_CPU": level}
    command = [sys.executable, "-c", LEVEL, str(Path(__file__).parent), level]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = done.stdout.split()[-1]
    if found != level:
        pytest.skip(f"this machine, or this build, lacks the level {level}: it runs {found}")
