"""Learning rates over the steps of a run, as multiples of the peak rate."""

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dicenet.errors import ConfigError

SCHEDULES = ("linear", "cosine", "constant")


def learning_rate(step: int, name: str, steps: int, warmup_steps: int) -> float:
    """Multiple of the peak rate at a step from 0: rises linearly over the warm-up, then falls to 0 at ``steps``.

    ``name`` is one of :data:`SCHEDULES`; ``constant`` does not fall.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    match name:
        case "linear":
            return 1 - done
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case _:
            return 1.0


def check_schedule(name: str) -> str:
    """The name, unchanged. Raises ConfigError if there is no such schedule."""
    if name not in SCHEDULES:
        raise ConfigError(f"schedule {name!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    return name


def scheduler(optimizer: Optimizer, name: str, steps: int, warmup_steps: int) -> LambdaLR:
    """A scheduler that is stepped once per optimiser step."""
    return LambdaLR(
        optimizer, partial(learning_rate, name=check_schedule(name), steps=steps, warmup_steps=warmup_steps)
    )
