"""How long a step of training takes."""

from contextlib import nullcontext
from pathlib import Path

from dicenet.analysis.speed.measure import Protocol, start
from dicenet.analysis.speed.modes import TRAINING, training_reference
from dicenet.analysis.speed.plots import training_plot

STEP = Protocol("training", TRAINING, nullcontext, training_reference, training_plot)
#: Compared if none are named.
MODELS = ("dicenet_200", "dicenet_240", "dicenet_w2", "shufflenet_v2_x1_5")


def measure_training(
    models: str | list[str] | None = None,
    modes: str | list[str] | None = None,
    batch_size: int | list[int] | str = 64,
    img_size: int | tuple[int, int] = 64,
    trials: int | list[int] | str = 21,
    warmup: int = 3,
    round_ms: float = 20.0,
    threads: int = 1,
    core: int | None = None,
    baseline: str | None = None,
    out: str | None = None,
    resume: str | None = None,
    device: str = "cpu",
    seed: int = 1882,
) -> Path:
    """Time a training step (forward, cross-entropy, backward, SGD) of networks in turn, and compare best with best.

    Args:
        models: networks, as a,b: names of dicenet, torchvision, timm or pytorchcv; library/name chooses the library.
        modes: as a,b: nchw, channels_last; of our networks reference, reference_channels_last (the reference
            backend), fast, fast_channels_last (the fastest backend); all if not given.
        batch_size: pictures of a step, as 8,64: every size is measured by itself.
        img_size: side of the pictures in pixels, or [height, width]; networks are built for it.
        trials: measured rounds, in each of which every network in every mode is timed once; one number, or one for
            each batch size, as 100,25.
        warmup: steps before the first round.
        round_ms: a trial takes at least so many milliseconds: it is the mean of steps that follow each other.
        threads: that each network computes on.
        core: with one thread, the core to stay on; the one that it runs on if not given.
        baseline: what the others are compared with, a network in its best mode, or network:mode;
            shufflenet_v2_x1_5 if it is measured, else the first network.
        out: folder for the results, new or empty; runs/benchmark/training-<date>-<time> if not given.
        resume: folder of a run: batch sizes that are finished are not measured again; only baseline can be changed.
        device: cpu, cuda or auto.
        seed: of weights, pictures and orders.

    Returns:
        The folder, with results.csv, table.md, training.png and every trial of each batch size as JSON.
    """
    return start(measure_training, STEP, MODELS, locals())
