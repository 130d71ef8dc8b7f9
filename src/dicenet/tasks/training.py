"""The course of a training, the same for all tasks: taken up or begun, run, and how it ends."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lightning as L
from rich.console import Console
from torch.utils.data import DataLoader

from dicenet.data.samples import pictures_of
from dicenet.engine.callbacks import AtStart, BestWeights
from dicenet.engine.console import say, say_pairs, say_what_was_left_out
from dicenet.engine.fit import FitSettings, fit
from dicenet.engine.run_folder import (
    BEST,
    LAST,
    METRICS,
    check_command,
    check_free,
    check_unchanged,
    default_run_folder,
    new_run_folder,
    process_rank,
    read_config,
    record_start,
    resumed_folder,
    sweep,
    write_config,
)
from dicenet.errors import ConfigError, WeightsError
from dicenet.models.loading import AnyNetwork, load, save
from dicenet.tasks.arguments import with_changes
from dicenet.tasks.drawing import png, read_metrics, training_curves
from dicenet.tasks.summary import summary
from dicenet.tasks.task import Task
from dicenet.weights.files import read_checkpoint, write_bytes

#: Arguments that may differ in a resumed run.
CHANGEABLE = (
    "epochs",
    "data",
    "workers",
    "device",
    "devices",
    "strategy",
    "precision",
    "compile",
    "save_every",
)

_Net = TypeVar("_Net")


@dataclass(frozen=True)
class Judging:
    """What epochs are compared by: a score (larger is better), how it is called, and the columns of the table."""

    score: str
    label: str
    columns: tuple[str, ...]

    @property
    def column(self) -> str:
        """The one with the score."""
        return f"val_{self.score}"


class Progress(NamedTuple):
    """How far a run is: finished epochs, and batches of the one behind them."""

    epochs: int = 0
    batches: int = 0


@dataclass(frozen=True)
class Run:
    """A training that begins or goes on.

    Attributes:
        task: its word on the command line.
        config: its arguments, as they are written to its folder.
        judging: see :class:`Judging`.
        settings: how it is run.
        out: folder, new or empty; or
        resume: a run folder.
        console: where words go; only the first of several processes speaks.
    """

    task: str
    config: Mapping[str, Any]
    judging: Judging
    settings: FitSettings
    out: str | None = None
    resume: str | None = None
    console: Console = field(default_factory=lambda: Console(quiet=process_rank() > 0))

    def __post_init__(self) -> None:
        check_free(self.out)

    def stored_network(self, kind: type[_Net], class_names: Sequence[str]) -> tuple[_Net | None, Progress]:
        """The network of the last checkpoint, and how far the run was; None if there is none.

        Raises:
            WeightsError: the checkpoint is of no run of this task.
            ConfigError: the data has other classes.
        """
        checkpoint = None if self.resume is None else resumed_folder(self.resume) / LAST
        if checkpoint is None or not checkpoint.exists():
            return None, Progress()
        metadata = read_checkpoint(checkpoint).metadata
        if not metadata:
            raise WeightsError(f"{checkpoint} is not of a dicenet run: it cannot be resumed from")
        if metadata["class_names"] != list(class_names):
            raise ConfigError(
                f"the run was of {len(metadata['class_names'])} classes, the data has {len(class_names)} or others: "
                "start a new run with --weights instead"
            )
        net = load(checkpoint)
        if not isinstance(net, kind):
            raise WeightsError(f"{checkpoint} is of another task: resume it with the command that it began with")
        return net, Progress(int(metadata["epochs"]), int(metadata.get("batches", 0)))

    def go(self, task: Task, train: "DataLoader[Any]", val: "DataLoader[Any]", done: Progress, described: str) -> Path:
        """Train behind what is done, keep the best weights, draw the curves, say how it went.

        Returns:
            The run folder.
        """
        folder = resumed_folder(self.resume) if self.resume else self._new_folder()
        say(self.console, f"{described}; run folder {folder}")
        epochs = self.settings.epochs
        for line in task.optimisation.plan().without_effect(epochs):
            say(self.console, line)
        if self.resume is not None:
            sweep(folder)
            within = f" and {done.batches} of {len(train)} batches" if done.batches else ""
            words = f"resuming behind epoch {done.epochs} of {epochs}{within}"
            say(self.console, words if any(done) else "no checkpoint was written: anew")
        if done.epochs >= epochs:
            say(self.console, f"all {epochs} epochs are finished: give more --epochs to go on")
            return folder
        net: AnyNetwork = task.net

        def write_best(epoch: int, scores: dict[str, float]) -> None:
            save(net, folder / BEST, task.class_names, training={"epoch": epoch, **scores})

        callbacks: list[L.Callback] = [
            AtStart(partial(self._write_start, folder)),
            BestWeights(self.judging.score, write_best),
        ]
        fit(
            task,
            train,
            val,
            folder,
            columns=self.judging.columns,
            score=self.judging.column,
            callbacks=callbacks,
            console=self.console,
            settings=self.settings,
        )
        if task.global_rank == 0:
            self._finish(folder, task, (pictures_of(train), pictures_of(val)))
        return folder

    def _write_start(self, folder: Path) -> None:
        write_config(folder, self.config, f"train {self.task}")
        record_start(folder, sys.argv)

    def _new_folder(self) -> Path:
        return new_run_folder(self.out, default_run_folder(self.task, "train"))

    def _finish(self, folder: Path, task: Task, pictures: tuple[int, int]) -> None:
        say_what_was_left_out(self.console, task.bad_pictures)
        rows, column, label = read_metrics(folder / METRICS), self.judging.column, self.judging.label
        write_bytes(folder / "curves.png", png(training_curves(rows, column, f"validation {label}")))
        say_pairs(self.console, summary(task.net, pictures, rows, column, self.judging.columns, folder))
        best = max(rows, key=lambda row: row[column])
        say(
            self.console,
            f"best epoch {best['epoch']:.0f}: {label} {100 * best[column]:.2f} %; weights in {folder / BEST}",
        )


def taken_up(
    task: str,
    function: Callable[..., Any],
    config: Mapping[str, Any],
    resume: str,
    out: str | None,
    changeable: Sequence[str] = CHANGEABLE,
) -> dict[str, Any] | None:
    """The arguments to call ``function`` with when a run is resumed from its folder alone; None if they are complete.

    Raises:
        ConfigError: it is no run folder of this function, or what cannot change has changed.
    """
    if out is not None:
        raise ConfigError("a resumed run goes on in its own folder: leave out --out")
    folder = resumed_folder(resume)
    check_command(folder, f"train {task}")
    if config["data"] is None:
        return {**with_changes(function, folder, config), "resume": resume}
    check_unchanged(read_config(folder), config, changeable)
    return None


def chosen_parts(
    dataset: Any,
    train_split: str | None,
    val_split: str | None,
    val_fraction: float,
    hold_out: Callable[[Any], tuple[Any, Any]],
    console: Console,
) -> tuple[Any, Any, str]:
    """The parts to train on and to judge by, and in words what the second is. Says so if they share pictures.

    Args:
        dataset: of any task whose data has ``parts``, ``training_part`` and ``evaluation_part``.
        train_split, val_split: names of parts, if they are given.
        val_fraction: what is held out where there is nothing to judge by.
        hold_out: makes two parts of one.
        console: where words go.
    """
    name, train_part = dataset.training_part(train_split)
    candidates = [val_split] if val_split else [part for part in ("val", "test") if part in dataset.parts]
    if not candidates:
        return *hold_out(train_part), f"{val_fraction:.0%} of {name} held out"
    val_part = dataset.evaluation_part(candidates[0])[1]
    shared = {sample.name for sample in train_part.samples} & {sample.name for sample in val_part.samples}
    if shared:
        say(console, f"{len(shared)} of the {len(val_part)} pictures to judge by are trained on too: scores flatter")
    return train_part, val_part, f"{candidates[0]} part"


def check_seed(seed: int) -> int:
    """The seed, unchanged. Raises ConfigError if torch takes no such number."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must lie from 0 to below 2^32, got {seed}")
    return seed
