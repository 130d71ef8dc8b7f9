"""Learning rates over the steps of a run, as multiples of the rate that was asked for.

Schedules of one kind change with every step: they rise over a warm-up and fall to 0 at the end of the run. Those of the
official code stay as they are for a whole epoch; where both have the same curve, the official one's name ends in
``-epochs``, and both have the same rate at the first step of an epoch. The official code rounds rates to 5 or 6
decimals; here they are exact.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dicenet.errors import ConfigError

#: Exponent of ``poly``, and epochs of a cycle of ``cyclic`` and ``hybrid``: the official code's for segmentation.
POLY_POWER = 0.9
CYCLE_EPOCHS = 5
#: Part of a run in which ``hybrid`` cycles, unless it is told otherwise: the official 61 of 100 epochs.
CYCLED_PART = 0.61
#: Parts of a run behind which ``multistep`` divides the rate by 10: as torchvision's recipe for SSD (80 and 110 of 120
#: epochs).
STEPS = (2 / 3, 11 / 12)
#: Epochs at which ``cyclic`` and ``fixed`` decay unless told otherwise, and by what: the official code's for ImageNet.
MILESTONES = (51, 101, 131, 161, 191, 221, 251, 281)
DECAY = 0.5

#: Multiple of the rate when this part of the run behind the warm-up is done.
_CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "poly": lambda done: (1 - done) ** POLY_POWER,
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate goes over a run.

    Attributes:
        name: one of :data:`SCHEDULES`.
        warmup: part of the run in which the rate rises linearly.
        cycled: epochs in which ``hybrid`` cycles; 61 % of them if not given.
        milestones: epochs, counted from 0 and ascending, from which on ``cyclic`` and ``fixed`` are multiplied by
        decay: this, once more at each.
    """

    name: str = "linear"
    warmup: float = 0.0
    cycled: int | None = None
    milestones: Sequence[int] = MILESTONES
    decay: float = DECAY

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ConfigError(f"schedule {self.name!r} is unknown: choose one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a part of the run from 0 to below 1, got {self.warmup}")
        if self.cycled is not None and self.cycled < 1:
            raise ConfigError(f"cycled must be at least 1 epoch, got {self.cycled}")
        ascending = all(one < other for one, other in zip(self.milestones, self.milestones[1:], strict=False))
        if not ascending or any(milestone < 1 for milestone in self.milestones):
            raise ConfigError(f"milestones must be ascending epochs from 1 on, got {list(self.milestones)}")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay must be above 0 and up to 1, got {self.decay}")

    def decayed(self, epoch: int) -> float:
        """The decay of all milestones up to an epoch."""
        return self.decay ** sum(milestone <= epoch for milestone in self.milestones)

    def without_effect(self, epochs: int) -> list[str]:
        """What of it does nothing in a run of so many epochs, a line each."""
        lines = []
        if self.name == "hybrid" and self.cycled is not None and self.cycled > epochs:
            lines.append(
                f"--cycled {self.cycled} is above --epochs {epochs}: the rate cycles to the end, without the line down"
            )
        if self.name in ("cyclic", "fixed") and all(milestone >= epochs for milestone in self.milestones):
            first = f", the first at {self.milestones[0]}" if self.milestones else ""
            lines.append(
                f"no milestone of {self.name} lies within {epochs} epochs{first}: give --milestones for a decay"
            )
        return lines


def cycle(epoch: int) -> float:
    """Multiple of the base rate in an epoch from 0: once, then cycles of 5 epochs from 5 times down to once."""
    return 1.0 if epoch == 0 else float(CYCLE_EPOCHS - (epoch - 1) % CYCLE_EPOCHS)


def _cyclic(epoch: int, epochs: int, schedule: Schedule) -> float:
    """Cycles that shrink at the milestones, without starting anew there."""
    return cycle(epoch) * schedule.decayed(epoch)


def _fixed(epoch: int, epochs: int, schedule: Schedule) -> float:
    """The rate, smaller from each milestone on."""
    return schedule.decayed(epoch)


def _hybrid(epoch: int, epochs: int, schedule: Schedule) -> float:
    """Cycles at first, then a line that does not quite reach 0."""
    cycled = round(CYCLED_PART * epochs) if schedule.cycled is None else schedule.cycled
    return cycle(epoch) if epoch < cycled else 1 - (epoch - cycled + 1) / (epochs - cycled + 1)


def _held(curve: Callable[[float], float]) -> Callable[[int, int, Schedule], float]:
    """A curve whose value at the start of an epoch is kept for the epoch."""
    return lambda epoch, epochs, schedule: curve(epoch / epochs)


#: The official schedules: multiple of the base rate in an epoch from 0, of a number of epochs.
_OFFICIAL: dict[str, Callable[[int, int, Schedule], float]] = {
    "hybrid": _hybrid,
    "cyclic": _cyclic,
    "fixed": _fixed,
    **{f"{name}-epochs": _held(curve) for name, curve in _CURVES.items()},
}

#: Names of the official schedules, and of all.
OFFICIAL = tuple(_OFFICIAL)
SCHEDULES = (*_CURVES, "multistep", "constant", *OFFICIAL)


def learning_rate(step: int, schedule: Schedule, steps: int, epochs: int = 1) -> float:
    """Multiple of the rate at an optimiser step from 0.

    Args:
        step: of them.
        schedule: of the run.
        steps: of the whole run.
        epochs: of the run, for the official schedules.
    """
    warmup_steps = int(schedule.warmup * steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if official := _OFFICIAL.get(schedule.name):
        return official(min(epochs - 1, step * epochs // max(1, steps)), epochs, schedule)
    if schedule.name == "multistep":
        return 0.1 ** sum(step >= round(part * steps) for part in STEPS)
    if schedule.name == "constant":
        return 1.0
    return _CURVES[schedule.name](min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps)))


def scheduler(optimizer: Optimizer, schedule: Schedule, steps: int, epochs: int = 1) -> LambdaLR:
    """A scheduler that is stepped once per optimiser step; arguments as for :func:`learning_rate`."""
    return LambdaLR(optimizer, lambda step: learning_rate(step, schedule, steps, epochs))
