"""The steps of a plan, and where their maps lie in its arena.

A plan is what the operator ``dicenet::run_plan`` runs: rows of whole numbers (one step each) and one tensor of
packed weights. The numbers and the order of fields are those of ``ops/cpu/csrc/plan.h``.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Channels of maps in the arena are padded with zeros to a multiple of this.
PAD = 16
#: Columns of one panel of a packed matrix.
PANEL = 48
NOWHERE = -1


class Kind(IntEnum):
    """What a step does."""

    LOAD = 0
    STORE = 1
    STEM = 2
    MAX_POOL = 3
    AVERAGE_POOL = 4
    GEMM = 5
    DEPTH_WISE = 6
    LOCAL = 7
    MEAN = 8
    SIGMOID = 9
    INTERLEAVE = 10
    COPY = 11
    NORM_ACT = 12
    ADD = 13
    MULTIPLY = 14
    RESIZE_ROWS = 15
    RESIZE_COLUMNS = 16
    DIM_CONV = 17
    STEM_POOL = 18


#: Maps of at most so many pixels are worked on for GROUP images at a time.
GROUPED_PIXELS = 64
GROUP = 8

#: Fields of a step behind its kind, in order. Those in ARENA_FIELDS hold places in the arena; behind all fields
#: follows how far apart the images of a group lie there, for each of them.
FIELDS = (
    "input",
    "x",
    "x_stride",
    "second",
    "second_stride",
    "out",
    "out_stride",
    "channels",
    "height",
    "width",
    "out_channels",
    "out_height",
    "out_width",
    "kernel",
    "stride",
    "padding",
    "count",
    "weight",
    "bias",
    "middle",
    "half",
    "gate",
    "third",
    "fourth",
)
ARENA_FIELDS = ("x", "second", "out", "gate", "third", "fourth")


def padded(channels: int) -> int:
    """Channels with their padding."""
    return -(-channels // PAD) * PAD


def pad_last(tensor: Tensor) -> Tensor:
    """Zeros behind the last axis, to the padded number of channels."""
    return F.pad(tensor, (0, padded(tensor.shape[-1]) - tensor.shape[-1]))


class Map(NamedTuple):
    """Channels of a map in the arena: a whole buffer, or a part of one.

    Attributes:
        buffer: which buffer.
        channels: without padding.
        height: of the map.
        width: of the map.
        offset: first channel in the buffer.
        stride: floats between pixels; the padded channels of the buffer.
        of: channels of the buffer, without padding.
    """

    buffer: int
    channels: int
    height: int
    width: int
    offset: int
    stride: int
    of: int

    @property
    def is_whole(self) -> bool:
        """Whether the kernels may take it: aligned, and with zeros behind its channels."""
        return self.channels == self.of

    def part(self, start: int, channels: int) -> "Map":
        """Some of the channels, as a view."""
        return self._replace(offset=self.offset + start, channels=channels)


class Place(NamedTuple):
    """A place in a buffer of the arena, until buffers have places of their own."""

    buffer: int
    offset: int


def at(map_: Map) -> Place:
    """Where a map begins."""
    return Place(map_.buffer, map_.offset)


class Plan(NamedTuple):
    """Arguments of ``run_plan`` for one input size, in its order.

    Attributes:
        program: (steps, fields), int64.
        weights: packed, float32.
        out_shapes: channels, height, width of each output; height 0 marks (N, channels).
        arena: floats of memory for one group of images.
        group: how many images that is.
        group_from: the first of the steps that a group of images goes through together.
        macs: multiply-adds for one image.
    """

    program: Tensor
    weights: Tensor
    out_shapes: list[int]
    arena: int
    group: int
    group_from: int
    macs: int

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs for (N, C, H, W) inputs of the plan's sizes."""
        return torch.ops.dicenet.run_plan(list(inputs), *self)


Step = dict[str, int | Place]


def _buffers(step: Step, fields: Sequence[str] = ARENA_FIELDS) -> set[int]:
    """Buffers that a step uses."""
    return {value.buffer for name in fields if isinstance(value := step.get(name), Place)}


def _pixels(step: Step) -> int:
    """Size of the larger of the maps that a step reads and writes."""
    sides = [step.get(name, 1) for name in ("height", "width", "out_height", "out_width")]
    return max(int(sides[0]) * int(sides[1]), int(sides[2]) * int(sides[3]))  # type: ignore[arg-type]


def merged(steps: Sequence[Step]) -> list[Step]:
    """The steps, with a pair of neighbours as one where a kernel does both and nobody else reads between them."""
    # a step that reads a buffer in two places counts twice
    readers = Counter(b for step in steps for name in ARENA_FIELDS if name != "out" for b in _buffers(step, [name]))
    result: list[Step] = []
    for step in steps:
        before: Step = result[-1] if result else {"kind": NOWHERE}
        pair = _PAIRS.get((before["kind"], step["kind"]))
        between = before.get("out")
        alone = isinstance(between, Place) and readers[between.buffer] == 1
        both = pair(before, step) if pair and alone else None
        if both:
            result[-1] = both
        else:
            result.append(step)
    return result


def _stem_and_pool(stem: Step, pool: Step) -> Step | None:
    if pool["x"] != stem["out"]:
        return None
    after = {name: pool[name] for name in ("out", "out_height", "out_width")}
    return {**stem, **after, "kind": int(Kind.STEM_POOL)}


def _depth_wise_and_interleave(conv: Step, shuffle: Step) -> Step | None:
    # the shuffle may take some channels of the convolution only
    pairs = shuffle["channels"]
    if shuffle["second"] != conv["out"] or "second" in conv or pairs != conv["count"] or int(pairs) < PAD:  # type: ignore[arg-type]
        return None
    other = {"second": shuffle["x"], "second_stride": shuffle["x_stride"]}
    return {**conv, **other, "out": shuffle["out"], "out_stride": shuffle["out_stride"]}


_PAIRS: dict[tuple[Any, Any], Callable[[Step, Step], Step | None]] = {
    (Kind.STEM, Kind.MAX_POOL): _stem_and_pool,
    (Kind.DEPTH_WISE, Kind.INTERLEAVE): _depth_wise_and_interleave,
}


def grouped(steps: Sequence[Step]) -> tuple[list[Step], int]:
    """The steps in an order in which those that a group of images takes together are last, and the first of these.

    They are the steps on small maps that nothing else waits for.
    """
    uses, writes = [_buffers(step) for step in steps], [_buffers(step, ["out"]) for step in steps]
    first: list[int] = []
    for number in reversed(range(len(steps))):
        in_the_way = any(writes[number] & uses[other] or writes[other] & uses[number] for other in first)
        if _pixels(steps[number]) > GROUPED_PIXELS or in_the_way:
            first.append(number)
    last = [number for number in range(len(steps)) if number not in first]
    return [steps[number] for number in [*reversed(first), *last]], len(first)


@dataclass
class PlanBuilder:
    """Collects steps, weights and buffers; ``finish`` gives the buffers places."""

    steps: list[Step] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    out_shapes: list[int] = field(default_factory=list)
    macs: int = 0
    _weight_floats: int = 0

    def buffer(self, floats: int) -> int:
        """A new buffer of the arena."""
        self.sizes.append(floats)
        return len(self.sizes) - 1

    def new_map(self, channels: int, height: int, width: int) -> Map:
        """A new map of its own."""
        stride = padded(channels)
        return Map(self.buffer(stride * height * width), channels, height, width, 0, stride, channels)

    def weight(self, tensor: Tensor) -> int:
        """Pack a weight; returns its place."""
        flat = pad_last(tensor.detach().to(torch.float32).reshape(1, -1)).flatten()
        place = self._weight_floats
        self.weights.append(flat)
        self._weight_floats += flat.numel()
        return place

    def add(self, kind: Kind, **fields: int | Place) -> None:
        """Append a step."""
        self.steps.append({"kind": int(kind), **fields})

    def finish(self) -> Plan:
        """The plan."""
        steps, group_from = grouped(merged(self.steps))
        shared = set().union(*map(_buffers, steps[group_from:]))
        sizes = [size * (GROUP if buffer in shared else 1) for buffer, size in enumerate(self.sizes)]
        offsets, arena = place_buffers(sizes, _lifetimes(steps, group_from, len(sizes)))
        rows = []
        for step in steps:
            row = [step["kind"]]
            for name in FIELDS:
                value = step.get(name, NOWHERE)
                row.append(offsets[value.buffer] + value.offset if isinstance(value, Place) else value)
            for name in ARENA_FIELDS:
                value = step.get(name, NOWHERE)
                apart = isinstance(value, Place) and value.buffer in shared
                row.append(self.sizes[value.buffer] if apart else 0)  # type: ignore[union-attr]
            rows.append(row)
        return Plan(
            torch.tensor(rows, dtype=torch.int64),
            torch.cat([torch.empty(0, dtype=torch.float32), *self.weights]),  # a part may have no weights at all
            self.out_shapes,
            arena,
            GROUP,
            group_from,
            self.macs,
        )


def _lifetimes(steps: Sequence[Step], group_from: int, buffers: int) -> list[tuple[int, int]]:
    """First and last step of every buffer."""
    spans: dict[int, tuple[int, int]] = {}
    for number, step in enumerate(steps):
        for buffer in _buffers(step):
            first, _ = spans.get(buffer, (number, number))
            if first < group_from <= number:
                first = 0  # it holds the group's images while the first steps run for each
            spans[buffer] = (first, number)
    return [spans.get(buffer, (0, 0)) for buffer in range(buffers)]


def place_buffers(sizes: Sequence[int], spans: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Offsets such that no two buffers in use at a time overlap: largest first, each at the lowest free place.

    Args:
        sizes: of the buffers.
        spans: first and last step of each.

    Returns:
        The offsets, and the size of the whole.
    """
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for buffer in sorted(range(len(sizes)), key=lambda b: -sizes[b]):
        first, last = spans[buffer]
        taken = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in placed
            if spans[other][0] <= last and first <= spans[other][1]
        )
        offset = 0
        for begin, end in taken:
            if offset + sizes[buffer] <= begin:
                break
            offset = max(offset, end)
        offsets[buffer] = offset
        placed.append(buffer)
    return offsets, max((offsets[b] + sizes[b] for b in placed), default=0)
