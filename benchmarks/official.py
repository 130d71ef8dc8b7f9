"""Networks with other people's weights: an official segmentation backbone, and accelerate on pytorchcv's network.

    python benchmarks/official.py results/official.csv --weights ../shared/weights
    python benchmarks/official.py results/official_2_threads.csv --weights ../shared/weights --threads 2

The official weights hold denormal values; random ones do not. Three fresh processes, medians of ratios, as
operators.py. Outputs are compared before anything is timed.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from processes import Rows, prepare, ratios, run
from pytorchcv.model_provider import get_model
from torch import Tensor, nn

import dicenet
from dicenet.analysis.speed.timing import Pace
from dicenet.ops import flush_denormals, use_backend

WEIGHTS = "dicenet_s_1.0_pascal_384x384.pth"
TOLERANCE = 1e-4


def check(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Outputs equal within 1e-4 of the largest value."""
    for a, b in zip(ours, theirs, strict=True):
        off = float((a - b).abs().max() / b.abs().max())
        assert off <= TOLERANCE, f"outputs differ by {off:.1e}"


def reference(net: nn.Module, x: Tensor) -> Callable[[], object]:
    """The network by torch's own operators."""

    def call() -> object:
        with use_backend("reference"):
            return net(x)

    return call


@torch.inference_mode()
def inference(official: nn.Module, random: nn.Module) -> Rows:
    """The pyramid at 384x384, optimized against not; official against random weights."""
    x = torch.randn(1, 3, 384, 384)
    fast, fast_random = dicenet.optimize_for_inference(official), dicenet.optimize_for_inference(random)
    with use_backend("reference"):
        check(fast(x), official(x))
    pace = Pace(trials=15, warmup=2, shortest=0.1, seed=0)
    members = {"optimized": lambda: fast(x), "reference, NCHW": reference(official, x), "eager": lambda: official(x)}
    rows = ratios("dicenet_100 pyramid at 384x384, official weights", members, pace)
    pair = {"official weights": lambda: fast(x), "random weights": lambda: fast_random(x)}
    return rows + ratios("dicenet_100 pyramid at 384x384, optimized", pair, pace)


@torch.inference_mode()
def accelerated() -> Rows:
    """pytorchcv's network as it is, and after accelerate."""
    net = get_model("dicenet_w2").eval()
    x = torch.randn(1, 3, 224, 224)
    fast = dicenet.accelerate(net)
    check([fast(x)], [net(x)])
    members = {"accelerated": lambda: fast(x), "as it was": lambda: net(x)}
    return ratios("pytorchcv dicenet_w2 at 224x224", members, Pace(trials=15, warmup=2, shortest=0.1, seed=0))


def training(official: nn.Module, random: nn.Module) -> Rows:
    """A step of the pyramid (forward, sum of the maps, backward, SGD), as the trainer runs it."""
    x = torch.randn(4, 3, 192, 256).contiguous(memory_format=torch.channels_last)

    def step_of(net: nn.Module) -> Callable[[], object]:
        net = net.train().to(memory_format=torch.channels_last)
        # so small that the weights stay what they are
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-12)

        @flush_denormals()
        def step() -> None:
            optimizer.zero_grad()
            sum(m.square().mean() for m in net(x)).backward()  # type: ignore[union-attr]
            optimizer.step()

        return step

    members = {"official weights": step_of(official), "random weights": step_of(random)}
    return ratios("dicenet_100 pyramid, training step at 192x256", members, Pace(12, 2, 0.1, 0))


def measure() -> Rows:
    prepare(int(os.environ["DICENET_BENCHMARK_THREADS"]))
    path = Path(os.environ["DICENET_BENCHMARK_WEIGHTS"]) / WEIGHTS
    official = dicenet.load_edgenets(path, features_only=True).eval()
    torch.manual_seed(0)
    random = dicenet.load_edgenets(path, features_only=True).eval()
    for module in random.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return [*inference(official, random), *accelerated(), *training(official, random)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", help="CSV to write")
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights"), help="folder of the checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    variables = {
        "DICENET_BENCHMARK_WEIGHTS": str(arguments.weights),
        "DICENET_BENCHMARK_THREADS": str(arguments.threads),
    }
    run(__file__, arguments.path, measure, variables)


if __name__ == "__main__":
    main()
