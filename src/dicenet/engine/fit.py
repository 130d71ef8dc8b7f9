"""Running a training: the Lightning trainer, checkpoints that are whole or absent, resume, and how it can end."""

import logging
import os
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from dicenet.data.samples import ResumableLoader
from dicenet.engine.bar import RunBar
from dicenet.engine.callbacks import Chance, EpochLines, MetricsTable
from dicenet.engine.checkpoints import LastCheckpoint, WholeCheckpoints
from dicenet.engine.console import say
from dicenet.engine.pace import Pace
from dicenet.engine.run_folder import LAST, METRICS
from dicenet.errors import ConfigError, DataError, TrainingError
from dicenet.ops import flush_denormals

DEVICES = ("auto", "cpu", "cuda", "mps")


def check_device(device: str) -> str:
    """Lightning's name for a device. Raises ConfigError if it is unknown or not there."""
    if device not in DEVICES:
        raise ConfigError(f"device {device!r} is unknown: choose one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda is not available here: use --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps is not available here: use --device cpu")
    return device


def quiet_lightning() -> None:
    """Keep Lightning's notes on hardware and tips out of the way; its warnings stay, but for some."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # it tells of a process that died, before it kills the others
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    # Lightning 2.6 uses a name that torch 2.14 deprecates; users can do nothing about it
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated", module=r"lightning\.pytorch")
    # of depth-wise kernels: the strides of their dimension of one differ, their memory does not
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # our shards give each reading process its own part and know their length
    warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__`", module=r"lightning\.pytorch")


def make_trainer(**arguments: Any) -> L.Trainer:
    """A Lightning trainer without a summary; contradictions between its arguments become ConfigError."""
    quiet_lightning()
    try:
        return L.Trainer(enable_model_summary=False, **arguments)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        L.fabric.utilities.exceptions.MisconfigurationException,
    ) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _processes(devices: int | str) -> dict[str, Any]:
    """Arguments of the trainer that say how many processes there are: as asked, or as torchrun started them.

    Raises:
        ConfigError: torchrun started others than those that were asked for.
    """
    if not TorchElasticEnvironment.detect():
        return {"devices": devices}
    here, all_of_them = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if str(devices) not in ("auto", str(here)):
        raise ConfigError(
            f"torchrun started {here} processes on this machine, --devices or the recipe asks for {devices}: give "
            "--devices auto"
        )
    return {"devices": here, "num_nodes": all_of_them // here}


def _check_share(train: "DataLoader[Any]", processes: int) -> None:
    """Raise DataError if a process would have no whole batch; Lightning would wait for it for ever."""
    if not isinstance(train, ResumableLoader) or processes == 1:
        return
    pictures, batch = train.order.pictures, train.order.batch_size
    if pictures < processes * batch:
        raise DataError(
            f"too few pictures to train on ({pictures}) for {processes} processes with batches of {batch}: "
            "give fewer --devices or a smaller --batch-size"
        )


def _lost_another(error: RuntimeError) -> bool:
    """Whether an error is of the exchange between processes: gloo's have no class of their own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _how_to_go_on(last: Path) -> str:
    return f"go on with --resume {last.parent}" if last.exists() else "no checkpoint was written yet"


def _say_batch(console: Console, train: "DataLoader[Any]", processes: int, accumulate: int) -> None:
    """Say how many pictures a step is of, where it is not those of one batch: learning rates are chosen for it."""
    if isinstance(train, ResumableLoader) and processes * accumulate > 1:
        batch = train.order.batch_size
        parts = f"batches of {batch} x {processes} processes x {accumulate} for each step"
        say(console, f"{parts}: {batch * processes * accumulate} pictures a step")


@dataclass(frozen=True)
class FitSettings:
    """How a training is run.

    Attributes:
        epochs: passes over the training pictures.
        ema: decay of the exponential average of weights that is validated and saved, see :func:`moving_average`; 0:
            none.
        device: auto, cpu, cuda or mps.
        accumulate: batches per optimiser step.
        clip: largest norm of the gradient; None: any.
        devices, strategy, precision: Lightning's; of processes that torchrun started devices are their number.
        seed: of the chance in training steps.
        save_every: optimiser steps from one checkpoint to the next within an epoch; 0: only behind each epoch.
    """

    epochs: int
    ema: float = 0.0
    device: str = "auto"
    devices: int | str = "auto"
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate: int = 1
    clip: float | None = None
    seed: int = 0
    save_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema < 1 or (self.clip is not None and self.clip <= 0):
            raise ConfigError(f"ema must lie from 0 to below 1 and clip above 0, got {self.ema} and {self.clip}")
        if self.save_every < 0:
            raise ConfigError(f"save_every must be 0 or a number of steps, got {self.save_every}")
        check_device(self.device)


@torch.no_grad()
def moving_average(decay: float, averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
    """Move averages towards the weights of another step, as :class:`torch.optim.swa_utils.AveragedModel` asks for it.

    The n-th step moves them by 1 - min(decay, (1 + n) / (10 + n)), as TensorFlow does: else the weights of the
    start, which mean nothing, would be part of the average for 1 / (1 - decay) steps and more.

    Args:
        decay: from 0 to below 1.
        averages: changed in place.
        weights: of the step.
        count: n, steps so far.
    """
    n = int(count)
    kept = min(decay, (1 + n) / (10 + n))
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, weights, 1 - kept)
    else:  # counts of batches in norms
        torch._foreach_copy_(averages, weights)


@flush_denormals()
def fit(
    task: L.LightningModule,
    train: "DataLoader[Any]",
    val: "DataLoader[Any]",
    folder: Path,
    *,
    columns: tuple[str, ...],
    score: str,
    callbacks: Sequence[L.Callback],
    console: Console,
    settings: FitSettings,
) -> None:
    """Train a task, from the last checkpoint if ``folder`` has one.

    Denormal numbers count as zero meanwhile: with trained weights they make a step twice as slow on the CPU.

    Args:
        task: the module; ``columns`` are names of metrics that it logs.
        train: batches to learn from.
        val: batches to judge by, after every epoch.
        folder: of the run: gets ``last.ckpt``, ``metrics.csv`` and TensorBoard logs.
        columns: metrics for the table and the line of each epoch.
        score: the one of them that the bar on a terminal shows.
        callbacks: of the task, before those of the run.
        console: where words go.
        settings: how it is run.

    Raises:
        KeyboardInterrupt: Ctrl-C; the last checkpoint is kept.
        StoppedError: SIGTERM; a checkpoint of that moment is kept.
        TrainingError: see the task, it names the last good checkpoint; or another of several processes ended.
    """
    pace = Pace()
    run_callbacks: list[L.Callback] = [
        *callbacks,
        pace,
        MetricsTable(folder / METRICS, columns, pace),
        EpochLines(console, columns, pace),
        Chance(settings.seed, train),
        LastCheckpoint(folder / LAST, settings.save_every),
    ]
    if settings.ema:
        run_callbacks.append(WeightAveraging(multi_avg_fn=partial(moving_average, settings.ema)))
    if console.is_terminal:
        run_callbacks.append(RunBar(console, pace, score))
    trainer = make_trainer(
        accelerator=check_device(settings.device),
        **_processes(settings.devices),
        strategy=settings.strategy,
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip,
        max_epochs=settings.epochs,
        callbacks=run_callbacks,
        logger=TensorBoardLogger(str(folder), name="", version="tensorboard"),
        default_root_dir=str(folder),
        plugins=[WholeCheckpoints()],
        use_distributed_sampler=False,  # our loaders share the pictures out
        num_sanity_val_steps=0,
        enable_progress_bar=console.is_terminal,
        log_every_n_steps=min(10, len(train)),
    )
    _check_share(train, trainer.world_size)
    _say_batch(console, train, trainer.world_size, settings.accumulate)
    last = folder / LAST
    try:
        trainer.fit(task, train, val, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    except TrainingError as error:
        if not last.exists():
            raise
        raise type(error)(f"{error}; the last good checkpoint is {last}") from error
    except RuntimeError as error:
        if trainer.world_size == 1 or not _lost_another(error):
            raise
        raise TrainingError(
            f"another of the {trainer.world_size} processes ended or cannot be reached (its message is above, if it "
            f"had one; here it is: {str(error).splitlines()[0]}): {_how_to_go_on(last)}"
        ) from error
    except SystemExit:
        if not trainer.interrupted:
            raise
        # Lightning turns Ctrl-C into an exit with code 1 and blocks further ones
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt(f"go on with: dicenet train TASK --resume {folder}") from None
