"""What happens beside the training steps: tables, best weights, words for people."""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console

from dicenet.data.seeding import derived_seed, seed_chance
from dicenet.engine.console import say
from dicenet.engine.pace import TIMINGS, Pace, advice
from dicenet.weights.files import write_bytes

#: Digits that ``metrics.csv`` has of what depends on no metric.
_DIGITS = {"lr": "6g", "seconds": "1f", "pictures_per_second": "1f", "waiting": "3f"}


def _metrics(trainer: L.Trainer) -> dict[str, float]:
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


class MetricsTable(L.Callback):
    """Keeps ``metrics.csv``: one row per finished epoch, whose learning rate and times TensorBoard gets too.

    A resumed run goes on behind its last finished epoch. Columns of its table that are not known stay as they are, and
    new ones are empty in the rows of before.

    Args:
        path: of the table.
        columns: metrics that the task logs.
        pace: measures the epochs.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], pace: Pace) -> None:
        self.path = path
        self.columns = ("epoch", "step", *columns, "lr", *TIMINGS)
        self.pace = pace
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the rows of epochs that are finished; only now Lightning knows how many are."""
        if self.path.exists():
            with self.path.open(newline="") as file:
                table = csv.DictReader(file)
                self.columns += tuple(name for name in table.fieldnames or () if name not in self.columns)
                self.rows = [row for row in table if int(row["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the row of the epoch and write the table."""
        known = _metrics(trainer)
        found = {"lr": float(trainer.optimizers[0].param_groups[0]["lr"]), **self.pace.timings()}
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {column: f"{known[column]:.6g}" for column in self.columns if column in known}
        row |= {name: f"{value:.{_DIGITS[name]}}" for name, value in found.items()}
        self.rows.append(row)
        for logger in trainer.loggers:  # at the step of what Lightning logs of the epoch
            logger.log_metrics({name: float(row[name]) for name in found}, trainer.global_step - 1)
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_bytes(self.path, text.getvalue().encode())


#: Where a checkpoint keeps the state of the loader.
_LOADER = "dicenet_loader"


class Chance(L.Callback):
    """Makes chance a function of the seed and of where it is used, so that a resumed run goes on as it would have.

    The order of the pictures and their augmentation are the loader's, which is told the epoch. The chance in a step,
    such as of dropout, depends on the epoch, the step and the process.

    Args:
        seed: of the chance in steps.
        loader: of the pictures to train on.
    """

    def __init__(self, seed: int, loader: Any) -> None:
        self.seed = seed
        self.loader = loader

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the loader: Lightning keeps it too, but restores it only if nobody asked for its length."""
        checkpoint[_LOADER] = self.loader.state_dict()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the loader begin where it stopped; if it cannot, nothing is written yet."""
        if _LOADER in checkpoint:
            self.loader.load_state_dict(checkpoint[_LOADER])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell the loader the epoch. That of an epoch that goes on knows it from its state."""
        self.loader.order.set_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin the streams of chance anew."""
        seed_chance(derived_seed(self.seed, "step", trainer.current_epoch, batch_idx, trainer.global_rank))


class AtStart(L.Callback):
    """Calls a function when training really starts, after everything was checked; on the first process."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Call it."""
        if trainer.is_global_zero:
            self.function()


class BestWeights(L.Callback):
    """Writes the network when a validation metric is the best so far.

    Must stand before weight averaging in the list of callbacks, whose averaged weights it then sees.

    Args:
        metric: name of a metric of ``scores``, larger is better.
        write: writes the network; gets the epoch and the scores.
    """

    def __init__(self, metric: str, write: Callable[[int, dict[str, float]], None]) -> None:
        self.metric = metric
        self.write = write
        self.best: float | None = None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare and write."""
        scores = pl_module.validation_scores()  # on every process: they are gathered
        score = scores[self.metric]
        if self.best is None or score > self.best:
            self.best = score
            if trainer.is_global_zero:
                self.write(trainer.current_epoch + 1, scores)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the run stopped."""
        self.best = state_dict["best"]


def figures_line(figures: Mapping[str, float], columns: Sequence[str]) -> str:
    """Those of an epoch that are known, with their names."""
    return "  ".join(f"{column} {figures[column]:.4f}" for column in columns if column in figures)


class EpochLines(L.Callback):
    """Prints one line per epoch, which stays on the screen and in log files, and once what would make it faster."""

    def __init__(self, console: Console, columns: tuple[str, ...], pace: Pace) -> None:
        self.console = console
        self.columns = columns
        self.pace = pace
        self.advised = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line."""
        if not trainer.is_global_zero:
            return
        timings = self.pace.timings()
        words = [
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            figures_line(_metrics(trainer), self.columns),
            f"{timings['seconds']:.0f} s",
        ]
        if "waiting" in timings:
            words.append(f"{timings['pictures_per_second']:.0f} pictures/s, {timings['waiting']:.0%} waiting")
        say(self.console, "  ".join(filter(None, words)))
        if not self.advised:
            self.advised = True
            if words_of_advice := advice(self.pace, trainer.train_dataloader, os.cpu_count() or 1, pl_module.SMALLER):
                say(self.console, words_of_advice)
