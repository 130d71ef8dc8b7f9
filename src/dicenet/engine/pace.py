"""How fast a training is, how long it waits for pictures, and how much time remains."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L

#: Columns of ``metrics.csv`` that depend on the machine and the moment: all others are the same in a run done again.
TIMINGS = ("seconds", "pictures_per_second", "waiting")

#: From which share of the training time, and how many seconds, waiting is worth a word: below, it may be that reading
#: processes had to start.
_MUCH, _LONG = 0.2, 10.0


class Remaining(NamedTuple):
    """Seconds to the end of the epoch and of the run, if all goes on as it went."""

    epoch: float
    run: float


class Pace(L.Callback):
    """Measures each epoch, from its start or from where a resumed run takes it up.

    Args:
        clock: gives seconds, from any zero.

    Attributes:
        batches: of the epoch, trained on so far.
        pictures: trained on so far, by all processes.
        trained: seconds from the start to the end of the last training step.
        waited: seconds of these in which the loader of this process had no batch ready.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.started = clock()
        #: Seconds of the epoch in the run that was cut off.
        self.before = 0.0
        self.batches = self.pictures = self.judged = 0
        self.trained = self.waited = 0.0
        self.judging_since: float | None = None
        #: Seconds of a training batch of the epoch before, and of a whole validation.
        self.per_batch: float | None = None
        self.judging = 0.0
        #: Batches to train on until the end of the epoch, in an epoch, and to judge by; epochs behind this one.
        self.left = self.of_epoch = self.to_judge = self.epochs = 0

    # -- measuring

    def _begin(self, trainer: L.Trainer) -> None:
        loader: Any = trainer.train_dataloader
        self.started, self._waited_before = self.clock(), loader.waited
        self.batches = self.pictures = self.judged = 0
        self.trained = self.waited = 0.0
        self.left = self.of_epoch = int(trainer.num_training_batches)
        self.to_judge = int(sum(trainer.num_val_batches))
        self.epochs = int(trainer.max_epochs or 1) - trainer.current_epoch - 1

    def state_dict(self) -> dict[str, Any]:
        """How long the epoch took so far."""
        return {"seconds": self.timings()["seconds"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self.before = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin: Lightning says nothing of the start of an epoch that goes on."""
        self._begin(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin an epoch."""
        self._begin(trainer)
        self.before = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        loader: Any = trainer.train_dataloader
        self.batches += 1
        self.pictures += len(batch.get("image", ())) * trainer.world_size
        self.trained = self.clock() - self.started
        self.waited = loader.waited - self._waited_before
        self.per_batch = self.trained / self.batches
        self.left = self.of_epoch - batch_idx - 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a validation."""
        self.judging_since, self.judged = self.clock(), 0

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        self.judged += 1
        assert self.judging_since is not None
        self.judging = (self.clock() - self.judging_since) * self.to_judge / self.judged

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Learn how long it took."""
        assert self.judging_since is not None
        self.judging, self.judging_since = self.clock() - self.judging_since, None
        self.judged = self.to_judge

    # -- what was found

    def timings(self) -> dict[str, float]:
        """Of the epoch so far, by :data:`TIMINGS`: seconds, pictures a second of training, part of it spent waiting.

        Seconds are of the whole epoch; the others leave out validation, and are absent before the first step.
        """
        seconds = {"seconds": self.before + self.clock() - self.started}
        if not self.trained:
            return seconds
        return {**seconds, "pictures_per_second": self.pictures / self.trained, "waiting": self.waited / self.trained}

    def remaining(self) -> Remaining | None:
        """Time to the end; None before the first step. A validation is not counted before the first has begun."""
        if self.per_batch is None:
            return None
        unjudged = 1 - self.judged / self.to_judge if self.to_judge else 0.0
        epoch = self.left * self.per_batch + unjudged * self.judging
        return Remaining(epoch, epoch + self.epochs * (self.of_epoch * self.per_batch + self.judging))


def advice(pace: Pace, loader: Any, cores: int, smaller: str) -> str | None:
    """What helps a training that waits long for pictures, in a line; None where it does not, or nothing would help.

    Args:
        pace: of an epoch.
        loader: what it waited for, see :class:`dicenet.data.samples.ResumableLoader`.
        cores: of the machine.
        smaller: what makes reading itself faster, if the pictures do not come in shards.
    """
    share = pace.timings().get("waiting", 0.0)
    if share < _MUCH or pace.waited < _LONG:
        return None
    ways = []
    if loader.num_workers < cores:
        ways.append(f"more --workers than {loader.num_workers} (there are {cores} cores)")
    if not loader.in_shards:
        ways.append(smaller)
    return f"{share:.0%} of the training time went by waiting for pictures: try {', or '.join(ways)}" if ways else None
