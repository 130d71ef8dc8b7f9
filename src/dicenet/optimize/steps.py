"""The steps of a plan, and where their maps lie in its arena.

A plan is what the operator ``dicenet::run_plan`` runs: rows of whole numbers (one step each) and one tensor of
packed weights. The numbers and the order of fields are those of ``ops/cpu/csrc/plan.h``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

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


#: Fields of a step behind its kind, in order. Those in ARENA_FIELDS hold places in the arena.
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
    """

    buffer: int
    channels: int
    height: int
    width: int
    offset: int
    stride: int

    @property
    def is_whole(self) -> bool:
        """Whether the kernels may take it: aligned, and with zeros behind its channels."""
        return self.offset == 0 and self.stride == padded(self.channels)

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


@dataclass(frozen=True)
class Plan:
    """Arguments of ``run_plan`` for one input size.

    Attributes:
        program: (steps, fields), int64.
        weights: packed, float32.
        out_shapes: channels, height, width of each output; height 0 marks (N, channels).
        arena: floats of memory for one image.
        macs: multiply-adds for one image.
    """

    program: Tensor
    weights: Tensor
    out_shapes: list[int]
    arena: int
    macs: int

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs for (N, C, H, W) inputs of the plan's sizes."""
        return torch.ops.dicenet.run_plan(
            list(inputs), self.program, self.weights, self.out_shapes, self.arena, self.macs
        )


@dataclass
class PlanBuilder:
    """Collects steps, weights and buffers; ``finish`` gives the buffers places."""

    steps: list[dict[str, int | Place]] = field(default_factory=list)
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
        return Map(self.buffer(stride * height * width), channels, height, width, 0, stride)

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
        offsets, arena = self._place_buffers()
        rows = []
        for step in self.steps:
            row = [step["kind"]]
            for name in FIELDS:
                value = step.get(name, NOWHERE)
                row.append(offsets[value.buffer] + value.offset if isinstance(value, Place) else value)
            rows.append(row)
        return Plan(torch.tensor(rows, dtype=torch.int64), torch.cat(self.weights), self.out_shapes, arena, self.macs)

    def _lifetimes(self) -> list[tuple[int, int]]:
        """First and last step of every buffer."""
        spans: dict[int, tuple[int, int]] = {}
        for number, step in enumerate(self.steps):
            for name in ARENA_FIELDS:
                value = step.get(name)
                if isinstance(value, Place):
                    first, _ = spans.get(value.buffer, (number, number))
                    spans[value.buffer] = (first, number)
        return [spans.get(buffer, (0, 0)) for buffer in range(len(self.sizes))]

    def _place_buffers(self) -> tuple[list[int], int]:
        """Offsets such that no two buffers in use at a time overlap: largest first, each at the lowest free place."""
        spans = self._lifetimes()
        offsets = [0] * len(self.sizes)
        placed: list[int] = []
        for buffer in sorted(range(len(self.sizes)), key=lambda b: -self.sizes[b]):
            first, last = spans[buffer]
            taken = sorted(
                (offsets[other], offsets[other] + self.sizes[other])
                for other in placed
                if spans[other][0] <= last and first <= spans[other][1]
            )
            offset = 0
            for begin, end in taken:
                if offset + self.sizes[buffer] <= begin:
                    break
                offset = max(offset, end)
            offsets[buffer] = offset
            placed.append(buffer)
        arena = max((offsets[b] + self.sizes[b] for b in placed), default=0)
        return offsets, arena
