"""Timing several things in turn, so that whatever else the machine does hits all of them alike."""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dicenet.analysis.speed.process import page_faults

Call = Callable[[], object]
#: A measurement whose median is this much above its minimum was disturbed: nothing can be concluded from it.
DISTURBED = 1.5
_MOST_CALLS = 100_000


class Pace(NamedTuple):
    """How much is measured.

    Attributes:
        trials: measured rounds.
        warmup: calls of each member before the first.
        shortest: seconds that a trial takes at least; short calls are repeated in it, and it gives their mean.
        seed: of the orders.
    """

    trials: int
    warmup: int
    shortest: float
    seed: int


class Trials(NamedTuple):
    """What one member took.

    Attributes:
        milliseconds: of a call, one value per trial.
        page_faults: of a call, one value per trial.
        calls: that a trial took the mean of.
    """

    milliseconds: list[float]
    page_faults: list[float]
    calls: int


class Summary(NamedTuple):
    """Milliseconds over all trials; ``std`` is the standard deviation of the sample."""

    minimum: float
    median: float
    mean: float
    std: float

    @property
    def disturbed(self) -> bool:
        """Whether something else was measured too."""
        return self.median > DISTURBED * self.minimum


def summarise(milliseconds: Sequence[float]) -> Summary:
    """Minimum, median, mean and deviation of at least two trials."""
    return Summary(
        min(milliseconds),
        statistics.median(milliseconds),
        statistics.mean(milliseconds),
        statistics.stdev(milliseconds),
    )


def _seconds(call: Call, count: int, wait: Callable[[], None]) -> float:
    """Of one call, the mean of ``count`` that follow each other."""
    wait()
    started = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - started) / count


def interleave(
    members: Sequence[Call],
    pace: Pace,
    wait: Callable[[], None] = lambda: None,
    after_round: Callable[[], None] = lambda: None,
) -> list[Trials]:
    """Time all members round by round, in an order drawn anew for each round.

    Where any member is so short that a trial repeats it, every trial of every member begins with one call that is
    not measured: what ran before has left its own data in the caches.

    Args:
        members: what to time.
        pace: how much is measured.
        wait: waits for the device.
        after_round: called between rounds, outside of all measurements.
    """
    quickest = [min(_seconds(member, 1, wait) for _ in range(pace.warmup)) for member in members]
    counts = [min(_MOST_CALLS, max(1, math.ceil(pace.shortest / seconds))) for seconds in quickest]
    results = [Trials([], [], count) for count in counts]
    lead = max(counts, default=1) > 1
    order = list(range(len(members)))
    generator = random.Random(pace.seed)
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is there now need not be looked through between rounds
    gc.disable()
    try:
        for _ in range(pace.trials):
            generator.shuffle(order)
            for index in order:
                if lead:
                    members[index]()
                faults = page_faults()
                seconds = _seconds(members[index], counts[index], wait)
                results[index].page_faults.append((page_faults() - faults) / counts[index])
                results[index].milliseconds.append(1000 * seconds)
            gc.collect()
            after_round()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return results
