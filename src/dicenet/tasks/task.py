"""What all tasks share: a network that learns from batches of pictures, and is judged."""

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from dicenet.engine.schedules import DECAY, MILESTONES, OFFICIAL, Schedule, scheduler
from dicenet.errors import ConfigError, DataError, TrainingError
from dicenet.models.loading import AnyNetwork, describe
from dicenet.weights.files import METADATA_KEY

#: Where a checkpoint keeps what an unfinished epoch gave.
_EPOCH = "dicenet_epoch"


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How the weights are changed.

    Attributes:
        optimizer: one of ``OPTIMIZERS``; ``sgd`` and ``momentum`` are the same, SGD without Nesterov's momentum.
        lr, weight_decay, momentum: of the optimiser; the schedule multiplies the rate.
        decay_all: whether the weight decay is on all parameters, as in the official code, or spares norms, slopes and
            biases.
        schedule, cycled, milestones, lr_decay: see :class:`dicenet.engine.schedules.Schedule`.
        warmup: likewise; if not given, ``WARMUP`` for our schedules, and none for the official ones, whose rates it
            would change.
    """

    OPTIMIZERS: ClassVar[tuple[str, ...]] = ("sgd", "momentum", "adamw")
    WARMUP: ClassVar[float] = 0.0

    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    decay_all: bool = True
    schedule: str = "linear"
    warmup: float | None = None
    cycled: int | None = None
    milestones: Sequence[int] = MILESTONES
    lr_decay: float = DECAY

    def __post_init__(self) -> None:
        if self.optimizer not in self.OPTIMIZERS:
            raise ConfigError(f"optimizer {self.optimizer!r} is unknown: choose one of {', '.join(self.OPTIMIZERS)}")
        self.plan()
        if self.lr <= 0 or self.weight_decay < 0:
            raise ConfigError(f"lr must be above 0 and weight_decay not below, got {self.lr} and {self.weight_decay}")
        if not 0 < self.momentum < 1:
            raise ConfigError(f"momentum must lie between 0 and 1, got {self.momentum}")

    def plan(self) -> Schedule:
        """How the rate goes over the run. Raises ConfigError if there is no such schedule."""
        usual = 0.0 if self.schedule in OFFICIAL else self.WARMUP
        return Schedule(
            name=self.schedule,
            warmup=usual if self.warmup is None else self.warmup,
            cycled=self.cycled,
            milestones=self.milestones,
            decay=self.lr_decay,
        )


def sparing_groups(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of parameters, each split so that norms, slopes and biases (all that have one axis) have no decay."""
    split = []
    for group in groups:
        parameters = list(group["params"])
        for spared in (False, True):
            chosen = [p for p in parameters if (p.ndim <= 1) == spared]
            if chosen:
                split.append({**group, "params": chosen, **({"weight_decay": 0.0} if spared else {})})
    return split


def loss_metric() -> MeanMetric:
    """The mean of a loss over an epoch. What is no number stays in it: it must be noticed.

    The mean of a batch is given to it once for each picture: torchmetrics 1.9 drops weights where it lets be what is no
    number.
    """
    return MeanMetric(nan_strategy="disable")


@contextmanager
def asked_of_all() -> Iterator[None]:
    """Where a metric is asked for by each process, also by one that had nothing to give to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*was called before the ``update`` method")
        yield


class Task(L.LightningModule):
    """Trains and judges a network.

    Batches are dicts; those without ``image`` hold no picture that could be read. Pictures that could not are collected
    in ``bad_pictures`` (name to reason).

    Args:
        net: the network.
        class_names: of its classes.
        optimisation: how it is trained.
    """

    #: How pictures are from which nothing can be learned.
    WITHOUT_TRUTH = "there are none"
    #: What helps where pictures come too slowly.
    SMALLER = "pictures made smaller before, if they are large"

    def __init__(self, net: AnyNetwork, class_names: Sequence[str], optimisation: Optimisation) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.class_names = list(class_names)
        self.optimisation = optimisation
        #: What gradients are of: this times the loss that is shown.
        self.loss_factor = 1.0
        self.train_loss = loss_metric()
        self.bad_pictures: dict[str, str] = {}
        self.learned = False

    # -- what each task says

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """Loss of a batch of pictures that could be read."""
        raise NotImplementedError

    def scores(self) -> dict[str, float]:
        """What was found in the epoch: ``loss``, and the task's own. Raises DataError if nothing could be judged."""
        raise NotImplementedError

    def reset_scores(self) -> None:
        """Forget them."""
        raise NotImplementedError

    def parameter_groups(self) -> Any:
        """What the optimiser is given."""
        raise NotImplementedError

    def has_truth(self, batch: dict[str, Any]) -> bool:
        """Whether there is something to learn from a batch."""
        return True

    def running(self) -> dict[str, float]:
        """What the epoch gave so far in this process, to be watched: ``train_loss``, once there is one."""
        pictures = float(self.train_loss.weight)
        return {"train_loss": float(self.train_loss.mean_value) / pictures} if pictures else {}

    # -- training

    def on_train_start(self) -> None:
        """Put a resumed schedule in its place, and the mode of each part: Lightning says nothing more of its epoch."""
        self.train()
        plan: Any = self.lr_schedulers()
        loop = self.trainer.fit_loop
        batches = loop.epoch_loop.batch_progress.current.processed if loop.restarted_mid_epoch else 0
        done = self.trainer.current_epoch * (int(self.trainer.estimated_stepping_batches) // self._epochs())
        done += batches // self.trainer.accumulate_grad_batches
        if plan.last_epoch != done:  # an epoch has other steps now: other data, or other processes
            plan.last_epoch = done - 1
            plan.step()

    def on_train_end(self) -> None:
        """Learn which pictures the other processes could not read."""
        self.bad_pictures = self._of_all()[0]

    def _of_all(self) -> tuple[dict[str, str], bool]:
        """Pictures that any process could not read, and whether any learned from one."""
        if self.trainer.world_size == 1:
            return dict(self.bad_pictures), self.learned
        found: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(found, (self.bad_pictures, self.learned))
        return {name: why for bad, _ in found for name, why in bad.items()}, any(learned for _, learned in found)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Loss of a batch. Raises TrainingError when it is no longer finite."""
        self.bad_pictures.update(batch["errors"])
        readable = "image" in batch
        # processes that train together need a gradient from each
        loss = self.batch_loss(batch) if readable else self._nothing()
        if readable:
            self.learned |= self.has_truth(batch)
            self._check_finite(loss, "loss")
            self.train_loss.update(loss.detach().expand(len(batch["image"])))
            self.log("train_loss_step", loss, prog_bar=True)
        # by each process, also by one that could read nothing: it is summed over all at the end of the epoch
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True)
        return self.loss_factor * loss

    def _nothing(self) -> Tensor:
        """A loss of 0 from which every parameter gets a gradient of 0."""
        return torch.stack([p.flatten()[:0].sum() for p in self.parameters() if p.requires_grad]).sum()

    def _check_finite(self, loss: Tensor, name: str) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the {name} became {value} in epoch {self.current_epoch + 1}, step {self.global_step + 1}: use a "
                f"smaller --lr than {self.optimisation.lr} or a longer --warmup"
            )

    def on_train_epoch_end(self) -> None:
        """Raise DataError if there was nothing to learn from."""
        learned = self.trainer.strategy.reduce(torch.tensor(float(self.learned), device=self.device), reduce_op="sum")
        if not learned:
            reason = next(iter(self.bad_pictures.values()), self.WITHOUT_TRUTH)
            raise DataError(f"there is nothing to learn from in the pictures: {reason}")

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the groups of parameters."""
        o = self.optimisation
        groups = self.parameter_groups() if o.decay_all else sparing_groups(self.parameter_groups())
        if o.optimizer != "adamw":
            return torch.optim.SGD(groups, o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
        return torch.optim.AdamW(groups, o.lr, weight_decay=o.weight_decay)

    def _epochs(self) -> int:
        return self.trainer.max_epochs or 1

    def configure_optimizers(self) -> Any:
        """The optimiser, and a schedule per step."""
        o, optimizer = self.optimisation, self.make_optimizer()
        steps = int(self.trainer.estimated_stepping_batches)
        plan = scheduler(optimizer, o.plan(), steps, self._epochs())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the network, so that a checkpoint can be used like the weights; keep what the epoch gave so far."""
        progress = self.trainer.fit_loop.epoch_progress.current
        within = progress.ready > progress.processed
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed if within else 0
        checkpoint[METADATA_KEY] = json.dumps(
            describe(self.net, self.class_names, epochs=progress.processed, batches=batches)
        )
        # each process has seen other pictures: the first goes on with the sum
        loss = torch.stack([self.train_loss.mean_value, self.train_loss.weight]) * within
        bad_pictures, learned = self._of_all()
        checkpoint[_EPOCH] = {
            "train_loss": self.trainer.strategy.reduce(loss, reduce_op="sum").tolist(),
            "learned": learned,
            "bad_pictures": bad_pictures,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what the epoch gave so far."""
        kept = checkpoint.get(_EPOCH)
        if kept is None:
            return
        self.learned = kept["learned"]
        self.bad_pictures.update(kept["bad_pictures"])
        if self.global_rank == 0:
            self.train_loss.mean_value, self.train_loss.weight = torch.tensor(kept["train_loss"], device=self.device)

    # -- judging

    def validation_scores(self) -> dict[str, float]:
        """The scores of an epoch. Raises TrainingError if the network gives no numbers any more."""
        found = self.scores()
        self._check_finite(torch.tensor(found["loss"]), "validation loss")
        return found

    def on_validation_epoch_end(self) -> None:
        """Log the scores and start anew."""
        for name, value in self.validation_scores().items():
            self.log(f"val_{name}", value, prog_bar=name != "loss", sync_dist=True)
        self.reset_scores()
