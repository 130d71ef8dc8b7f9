"""Steps and their places: by brute force, and by plans worked out by hand."""

import random

import pytest
import torch
from optimize_cases import network, picture, plain, randomise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dicenet import optimize_for_inference
from dicenet.layers import ConvNormAct, DiCEUnit
from dicenet.ops import cpu
from dicenet.optimize.steps import (
    ARENA_FIELDS,
    FIELDS,
    GROUP,
    GROUPED_PIXELS,
    NOWHERE,
    PAD,
    Kind,
    Map,
    Place,
    PlanBuilder,
    at,
    grouped,
    merged,
    padded,
    place_buffers,
)

needs_cpp = pytest.mark.skipif(not cpu.available, reason="plans are run by the C++ operators")


# -- places


@pytest.mark.parametrize("seed", range(50))
def test_buffers_in_use_at_one_time_do_not_overlap(seed):
    chance = random.Random(seed)
    count = chance.randint(1, 25)
    sizes = [chance.choice([0, 16, 16, 32, 48, chance.randint(1, 300)]) for _ in range(count)]
    spans = [sorted(chance.choices(range(12), k=2)) for _ in range(count)]
    offsets, arena = place_buffers(sizes, [tuple(span) for span in spans])
    for step in range(12):
        owner = {}
        for buffer, (first, last) in enumerate(spans):
            if first <= step <= last:
                for place in range(offsets[buffer], offsets[buffer] + sizes[buffer]):
                    assert owner.setdefault(place, buffer) == buffer, f"at step {step}"
                    assert 0 <= place < arena
    in_use = [sum(size for size, (a, b) in zip(sizes, spans, strict=True) if a <= step <= b) for step in range(12)]
    assert max(in_use) <= arena <= sum(sizes)


def test_places_by_hand():
    # the 30 lie first; the 20 are used beside them, the 10 only after them
    assert place_buffers([20, 30, 10], [(0, 2), (1, 1), (2, 3)]) == ([30, 0, 0], 50)
    assert place_buffers([], []) == ([], 0)


def test_parts_of_a_map():
    whole = PlanBuilder().new_map(32, 2, 3)
    assert whole.is_whole
    assert whole.stride == 32
    assert whole.part(0, 32).is_whole
    # 17 channels would be padded to 32 too, but these are not followed by zeros
    assert not whole.part(0, 17).is_whole
    assert not whole.part(16, 16).is_whole
    assert at(whole.part(0, 20).part(16, 4)) == Place(0, 16)
    assert [padded(n) for n in (1, 15, 16, 17, 64)] == [16, 16, 16, 32, 64]


# -- order


def random_program(chance):
    """Steps that read buffers written before, on maps of several sizes; some write into a buffer once more."""
    steps, written = [], []
    for number in range(chance.randint(1, 20)):
        side = chance.choice([2, 8, 9, 30])
        step = {"kind": number, "height": side, "width": side}  # the kind is a name here
        for name in ("x", "second", "gate", "third"):
            if written and chance.random() < 0.5:
                step[name] = Place(chance.choice(written), chance.choice([0, 16]))
        again = written and chance.random() < 0.2
        out = chance.choice(written) if again else len(set(written))
        if chance.random() < 0.9:  # the others store their results outside
            step["out"] = Place(out, 0)
            written.append(out)
        if chance.random() < 0.3:
            step["out_height"] = step["out_width"] = chance.choice([1, 4, 16])
        steps.append(step)
    return steps


def touched(step, names=ARENA_FIELDS):
    return {step[name].buffer for name in names if name in step}


def depends(later, earlier):
    """Whether the steps may not change places."""
    return bool(touched(later, ["out"]) & touched(earlier) or touched(earlier, ["out"]) & touched(later))


def largest(step):
    return max(step["height"] * step["width"], step.get("out_height", 1) * step.get("out_width", 1))


@pytest.mark.parametrize("seed", range(100))
def test_grouping_keeps_every_dependency(seed):
    steps = random_program(random.Random(seed))
    order, first_of_group = grouped(steps)
    assert sorted(step["kind"] for step in order) == list(range(len(steps)))
    place = {step["kind"]: number for number, step in enumerate(order)}
    for later in range(len(steps)):
        for earlier in range(later):
            if depends(steps[later], steps[earlier]):
                assert place[earlier] < place[later]
    assert all(largest(step) <= GROUPED_PIXELS for step in order[first_of_group:])
    # no small map waits in front that need not: what keeps it there is large, or waits itself
    for step in order[:first_of_group]:
        behind = [other for other in order[:first_of_group] if other["kind"] > step["kind"]]
        assert largest(step) > GROUPED_PIXELS or any(depends(other, step) for other in behind)


def test_grouping_by_hand():
    def step(kind, side, x=None, out=None):
        maps = {"x": None if x is None else Place(x, 0), "out": None if out is None else Place(out, 0)}
        return {"kind": kind, "height": side, "width": side, **{k: v for k, v in maps.items() if v}}

    # a pyramid: the large map is stored last, but the small ones do not wait for that
    steps = [step(0, 16, None, 0), step(1, 8, 0, 1), step(2, 8, 1, 2), step(3, 8, 2), step(4, 16, 0)]
    order, first = grouped(steps)
    assert [s["kind"] for s in order] == [0, 4, 1, 2, 3]
    assert first == 2
    # a small map that a large one is made from stays in front
    assert grouped([step(0, 8, None, 0), step(1, 16, 0, 1)])[1] == 2


# -- pairs


def stem_and_pool(**pool):
    return [
        {"kind": Kind.STEM, "input": 0, "kernel": 3, "out": Place(0, 0), "out_height": 8, "out_width": 9, "bias": 5},
        {"kind": Kind.MAX_POOL, "x": Place(0, 0), "out": Place(1, 0), "out_height": 4, "out_width": 5, **pool},
    ]


def test_stem_and_pool_become_one():
    one = {"kind": Kind.STEM_POOL, "input": 0, "kernel": 3, "out": Place(1, 0), "out_height": 4, "out_width": 5}
    assert merged(stem_and_pool()) == [{**one, "bias": 5}]


@pytest.mark.parametrize(
    "more",
    [
        [{"kind": Kind.STORE, "x": Place(0, 0)}],  # somebody else reads the stem's map
        [{"kind": Kind.STORE, "x": Place(1, 0)}, {"kind": Kind.ADD, "x": Place(1, 0), "second": Place(0, 0)}],
    ],
)
def test_stem_that_is_used_twice_stays(more):
    steps = [*stem_and_pool(), *more]
    assert merged(steps) == steps


def test_only_neighbours_and_known_pairs_merge():
    stem, pool = stem_and_pool()
    between = {"kind": Kind.LOAD, "input": 1, "out": Place(7, 0)}
    for steps in ([stem, between, pool], [stem, {**pool, "kind": Kind.AVERAGE_POOL}], [pool, stem]):
        assert merged(steps) == steps
    assert merged([]) == []


def conv_and_shuffle(channels=24, **shuffle):
    conv = {"kind": Kind.DEPTH_WISE, "x": Place(0, 0), "out": Place(1, 0), "count": 24, "out_stride": 32}
    halves = {"x": Place(2, 24), "x_stride": 48, "second": Place(1, 0), "second_stride": 32, "channels": channels}
    return [conv, {"kind": Kind.INTERLEAVE, **halves, "out": Place(3, 0), "out_stride": 48, **shuffle}]


def test_depth_wise_and_shuffle_become_one():
    assert merged(conv_and_shuffle()) == [
        {
            "kind": Kind.DEPTH_WISE,
            "x": Place(0, 0),
            "second": Place(2, 24),
            "second_stride": 48,
            "out": Place(3, 0),
            "out_stride": 48,
            "count": 24,
        }
    ]


@pytest.mark.parametrize(
    "shuffle",
    [
        {"x": Place(1, 0), "second": Place(2, 24)},  # the convolution's map is the left half
        {"x": Place(1, 0)},  # both halves are that map
        {"channels": 20},  # only some channels of it
        {"second": Place(1, 4)},  # others of it
    ],
)
def test_shuffles_of_another_kind_stay(shuffle):
    steps = conv_and_shuffle(**shuffle)
    assert merged(steps) == steps


def test_shuffle_of_a_map_that_is_used_elsewhere_stays():
    steps = [*conv_and_shuffle(), {"kind": Kind.STORE, "x": Place(1, 0)}]
    assert merged(steps) == steps
    gated = [*conv_and_shuffle(), {"kind": Kind.DEPTH_WISE, "x": Place(3, 0), "gate": Place(1, 0), "out": Place(4, 0)}]
    assert merged(gated) == gated


# -- whole plans


def two_maps_added():
    """A plan by hand: large maps loaded and pooled, small ones added."""
    builder = PlanBuilder()
    big, small, total = builder.new_map(3, 15, 9), builder.new_map(3, 8, 5), builder.new_map(3, 8, 5)
    size = {"channels": 3, "height": 15, "width": 9}
    builder.add(Kind.LOAD, input=0, out=at(big), out_stride=PAD, **size)
    builder.add(Kind.MAX_POOL, x=at(big), **{**size, "channels": PAD}, out=at(small), out_height=8, out_width=5)
    size = {"height": 8, "width": 5}
    strides = {"x_stride": PAD, "second_stride": PAD, "out_stride": PAD}
    builder.add(Kind.ADD, x=at(small), second=at(small), out=at(total), channels=PAD, **strides, **size)
    builder.add(Kind.STORE, input=0, x=at(total), x_stride=PAD, channels=3, **size)
    builder.out_shapes += [3, 8, 5]
    builder.macs = 11
    return builder.finish()


def test_plan_by_hand():
    plan = two_maps_added()
    assert plan.group_from == 2
    assert plan.group == GROUP
    assert plan.macs == 11
    assert plan.program.shape == (4, 1 + len(FIELDS) + len(ARENA_FIELDS))
    big, small = 15 * 9 * PAD, 8 * 5 * PAD
    # while images are loaded one by one, the small maps of a whole group are kept; then the large one is not needed
    assert plan.arena == max(big + GROUP * small, 2 * GROUP * small)
    rows = [
        dict(zip(("kind", *FIELDS, *(f"{name}_image" for name in ARENA_FIELDS)), row, strict=True))
        for row in plan.program.tolist()
    ]
    load, pool, add, store = rows
    assert [row["kind"] for row in rows] == [Kind.LOAD, Kind.MAX_POOL, Kind.ADD, Kind.STORE]
    assert load["x"] == load["weight"] == store["out"] == NOWHERE
    assert (load["out_image"], pool["x_image"], pool["out_image"]) == (0, 0, small)
    assert add["x_image"] == add["second_image"] == add["out_image"] == store["x_image"] == small
    assert pool["out"] == add["x"] == add["second"] != add["out"] == store["x"]


@needs_cpp
@pytest.mark.parametrize("images", [0, 1, 3, GROUP, GROUP + 1])
def test_running_a_plan_by_hand(images):
    x = picture(images, 3, 15, 9)
    (actual,) = two_maps_added().run([x])
    assert actual.shape == (images, 3, 8, 5)
    if images:  # torch's pool takes no empty batches
        torch.testing.assert_close(actual, 2 * nn.functional.max_pool2d(x, 3, 2, 1), rtol=0, atol=0)


@needs_cpp
def test_plan_as_an_operator_of_torch():
    plan = two_maps_added()
    torch.library.opcheck(torch.ops.dicenet.run_plan.default, ([picture(2, 3, 15, 9)], *plan))


@needs_cpp
def test_operator_refuses_what_is_no_plan():
    plan = two_maps_added()
    x = [picture(2, 3, 15, 9)]
    for wrong in (
        ([], *plan),
        ([x[0].double()], *plan),
        (x, *plan._replace(program=plan.program[:, :-1])),
        (x, *plan._replace(program=plan.program.int())),
        (x, *plan._replace(group=0)),
        (x, *plan._replace(group_from=99)),
        (x, *plan._replace(out_shapes=[3, 8])),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.dicenet.run_plan(*wrong)


# -- work


def flops(net, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


@needs_cpp
def test_work_by_hand(plans):
    net = randomise(nn.Sequential(ConvNormAct(16, 8, 1), ConvNormAct(8, 8, 3, 2, groups=8), DiCEUnit(8, 8, (3, 4))))
    fast = optimize_for_inference(net)
    counted = flops(fast, picture(5, 16, 6, 7))
    ((_, plan),) = plans
    unit = 12 * 8 * (27 + 3 + 9) + 2 * 8 * 2  # three branches, their fusion, the spatial kernel; squeeze and excite
    assert plan.macs == 42 * 16 * 8 + 12 * 8 * 9 + unit
    assert counted == 2 * 5 * plan.macs


@needs_cpp
@pytest.mark.parametrize("size", [(64, 64), (96, 61), (33, 40)])
def test_work_is_that_of_the_network(size, plans):
    # no differences: scaled branches are counted at the size that they are computed at, block-diagonal matrices as
    # the grouped convolutions that they stand for, and both leave biases, norms and pooling out
    net = network("dicenet_075")
    x = picture(3, 3, *size)
    assert flops(optimize_for_inference(net), x) == plain(lambda x: flops(net, x), x)
    assert len(plans) == 1


def test_a_map_is_a_tuple_of_its_own():
    # lowering compares channels, height and width of maps by their places in the tuple
    assert Map._fields[1:4] == ("channels", "height", "width")
