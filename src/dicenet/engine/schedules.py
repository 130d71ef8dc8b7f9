"""Learning rates over the steps of a run, as multiples of the rate that was asked for."""

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dicenet.errors import ConfigError

SCHEDULES = ("linear", "cosine", "poly", "hybrid", "multistep", "constant")
#: Exponent of ``poly``, and epochs of a cycle of ``hybrid``: the official code's for segmentation.
POLY_POWER = 0.9
CYCLE_EPOCHS = 5
#: Part of a run in which ``hybrid`` cycles, unless it is told otherwise: the official 61 of 100 epochs.
CYCLED_PART = 0.61
#: Parts of a run behind which ``multistep`` divides the rate by 10: as torchvision's recipe for SSD (80 and 110 of 120
#: epochs).
STEPS = (2 / 3, 11 / 12)


def hybrid(epoch: int, epochs: int, cycled: int) -> float:
    """Multiple of the base rate in an epoch from 0, by the official code's hybrid schedule.

    The first epoch warms up at the base rate; then cycles of 5 epochs fall from 5 times to once the base rate; from
    epoch ``cycled`` on it falls linearly, not quite to 0.
    """
    if epoch == 0:
        return 1.0
    if epoch < cycled:
        return float(CYCLE_EPOCHS - (epoch - 1) % CYCLE_EPOCHS)
    return 1 - (epoch - cycled + 1) / (epochs - cycled + 1)


def learning_rate(
    step: int, name: str, steps: int, warmup_steps: int, epochs: int = 1, cycled: int | None = None
) -> float:
    """Multiple of the rate at a step from 0: rises linearly over the warm-up, then falls to 0 at ``steps``.

    Args:
        step: optimiser step.
        name: one of :data:`SCHEDULES`; ``constant`` does not fall, ``hybrid`` changes with the epochs, ``multistep``
            falls to a tenth twice.
        steps: of the whole run.
        warmup_steps: of them.
        epochs: of the run, for ``hybrid``.
        cycled: epochs in which ``hybrid`` cycles; 61 % of them if not given.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if name == "hybrid":
        epoch = min(epochs - 1, step * epochs // max(1, steps))
        return hybrid(epoch, epochs, round(CYCLED_PART * epochs) if cycled is None else cycled)
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    match name:
        case "linear":
            return 1 - done
        case "poly":
            return (1 - done) ** POLY_POWER
        case "multistep":
            return 0.1 ** sum(step >= round(part * steps) for part in STEPS)
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case _:
            return 1.0


def check_schedule(name: str) -> str:
    """The name, unchanged. Raises ConfigError if there is no such schedule."""
    if name not in SCHEDULES:
        raise ConfigError(f"schedule {name!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    return name


def scheduler(
    optimizer: Optimizer, name: str, steps: int, warmup_steps: int, epochs: int = 1, cycled: int | None = None
) -> LambdaLR:
    """A scheduler that is stepped once per optimiser step; arguments as for :func:`learning_rate`."""
    rate = partial(
        learning_rate, name=check_schedule(name), steps=steps, warmup_steps=warmup_steps, epochs=epochs, cycled=cycled
    )
    return LambdaLR(optimizer, rate)
