"""The operators against torch's: dice_local against ONE depth-wise 3x3, dim_conv against the reference.

    taskset -c 0 python benchmarks/operators.py results/operators.csv
    taskset -c 0 python benchmarks/operators.py results/operators_avx2.csv --avx2

Three fresh processes; in each all members are timed in turn, and the verdict is the median of the three ratios of
minima. A process in which a comparator's median lies above 1.5 times its minimum is void, logged, and repeated.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from processes import Rows, prepare, ratios, run
from torch import Tensor, nn

import dicenet
from dicenet.analysis.speed.timing import Pace
from dicenet.layers import DiCEUnit
from dicenet.ops import dim_conv, use_backend
from dicenet.ops.unit import norm_arguments

LOCAL = [(batch, channels, side) for batch in (1, 32) for channels, side in ((139, 28), (278, 14), (556, 7))]
DIM_CONV = ((64, 139, 8), (64, 278, 4), (64, 556, 2), (8, 139, 28))


def local_members(batch: int, channels: int, side: int) -> dict[str, Any]:
    """dice_local and a channels-last depth-wise convolution of the same map."""
    unit = DiCEUnit(channels, channels, (side, side)).eval()
    parts = unit.parts()
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    conv = conv.to(memory_format=torch.channels_last)
    table = torch.ops.dicenet.fold_local(
        parts.weight_depth,
        *norm_arguments(parts.norm),
        parts.slope,
        parts.norm.eps,
        parts.join,
        *norm_arguments(parts.joined_norm),
        parts.joined_slope,
        parts.joined_norm.eps,
    )
    return {
        "dice_local": lambda: torch.ops.dicenet.dice_local(x, table, parts.weight_height, parts.weight_width),
        "depth-wise 3x3": lambda: conv(x),
    }


def dim_conv_members(batch: int, channels: int, side: int) -> dict[str, Any]:
    """dim_conv forward and backward (input and kernels), C++ and reference."""
    planes = (channels, side, side)
    x = torch.randn(batch, channels, side, side)
    inputs: list[Tensor] = [x, *(torch.randn(p, 1, 3, 3) for p in planes)]
    inputs = [t.requires_grad_() for t in inputs]
    fast = [t.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for t in inputs]

    def step(backend: str, tensors: list[Tensor], grad: Tensor) -> None:
        with use_backend(backend):
            torch.autograd.grad(dim_conv(*tensors), tensors, grad)

    grad = torch.randn(batch, 3 * channels, side, side)
    grad_fast = grad.contiguous(memory_format=torch.channels_last)
    return {
        "dim_conv": lambda: step("cpp", fast, grad_fast),
        "reference": lambda: step("reference", inputs, grad),
        "reference channels-last": lambda: step("reference", fast, grad_fast),
    }


def measure() -> Rows:
    """All cases in this process."""
    prepare()
    pace = Pace(trials=21, warmup=3, shortest=0.02, seed=0)
    rows: Rows = []
    for case in LOCAL:
        with torch.inference_mode():
            rows += ratios("dice_local " + name(*case), local_members(*case), pace)
    for case in DIM_CONV:
        rows += ratios("dim_conv " + name(*case), dim_conv_members(*case), pace)
    return rows


def name(batch: int, channels: int, side: int) -> str:
    return f"{batch}x{channels}x{side}x{side}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", help="CSV to write")
    parser.add_argument("--avx2", action="store_true", help="both sides without AVX-512")
    arguments = parser.parse_args()
    assert dicenet.ops.cpu.available, "the C++ operators were not built"
    avx2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    run(__file__, arguments.path, measure, avx2 if arguments.avx2 else {})


if __name__ == "__main__":
    main()
