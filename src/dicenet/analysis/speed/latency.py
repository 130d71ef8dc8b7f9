"""How long a network takes for a picture and for a batch: Table 5 of the paper."""

from pathlib import Path

import torch

from dicenet.analysis.speed.measure import Protocol, start
from dicenet.analysis.speed.modes import INFERENCE, inference_reference
from dicenet.analysis.speed.plots import latency_plot

LATENCY = Protocol("latency", INFERENCE, torch.inference_mode, inference_reference, latency_plot)
#: Compared if none are named.
MODELS = (
    *("dicenet_100", "dicenet_200", "dicenet_240", "dicenet_w2", "shufflenet_v2_x1_5", "mobilenet_v2"),
    *("mobilenet_v3_large", "mobilenetv4_conv_small", "mnasnet1_0", "mixnet_s", "fbnetc_100"),
)


def measure_latency(
    models: str | list[str] | None = None,
    modes: str | list[str] | None = None,
    batch_size: int | list[int] | str = "1,32,64",
    img_size: int | tuple[int, int] = 224,
    trials: int | list[int] | str = 100,
    warmup: int = 10,
    round_ms: float = 20.0,
    threads: int = 1,
    core: int | None = None,
    baseline: str | None = None,
    out: str | None = None,
    resume: str | None = None,
    device: str = "cpu",
    seed: int = 1882,
) -> Path:
    """Time networks in all the ways in which PyTorch can run them, in turn, and compare best with best.

    Args:
        models: networks, as a,b: names of dicenet, torchvision, timm or pytorchcv; library/name chooses the library.
        modes: ways to run them, as a,b: eager, reference, channels_last, compile, freeze, optimized, onnxruntime;
            all if not given.
        batch_size: pictures at a time, as 1,32: every size is measured by itself.
        img_size: side of the pictures in pixels, or [height, width].
        trials: measured rounds, in each of which every network in every mode is timed once; one number, or one for
            each batch size, as 100,25.
        warmup: calls before the first round.
        round_ms: a trial takes at least so many milliseconds: it is the mean of calls that follow each other.
        threads: that each network computes on.
        core: with one thread, the core to stay on; the one that it runs on if not given.
        baseline: what the others are compared with, a network in its best mode, or network:mode;
            shufflenet_v2_x1_5 if it is measured, else the first network.
        out: folder for the results, new or empty; runs/benchmark/latency-<date>-<time> if not given.
        resume: folder of a run: batch sizes that are finished are not measured again; only baseline can be changed.
        device: cpu, cuda or auto.
        seed: of weights, pictures and orders.

    Returns:
        The folder, with results.csv, table.md, latency.png and every trial of each batch size as JSON.
    """
    return start(measure_latency, LATENCY, MODELS, locals())
