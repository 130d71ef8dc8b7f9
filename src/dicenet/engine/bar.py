"""The bar of a training on a terminal."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from dicenet.engine.console import duration
from dicenet.engine.pace import Pace

#: How often numbers are read and the bar is drawn; each reading waits for the device.
_PER_SECOND = 4


class _Words(ProgressColumn):
    """Text of a row, which is not broken: the bar gives way, and then the figures behind all."""

    def __init__(self, words: Callable[[Task], str], style: str = "") -> None:
        super().__init__(Column(no_wrap=True))
        self.words = words
        self.style = style

    def render(self, task: Task) -> Text:
        """The text."""
        return Text(self.words(task), style=self.style)


class RunBar(RichProgressBar):
    """Lightning's bar with the epoch, pictures a second, the time that remains, the running loss and the score.

    Args:
        console: that words are printed to: they stay above the bar.
        pace: measures the run; stands before the bar in the list of callbacks.
        score: metric of the validation that is shown, such as ``val_top1``.
    """

    def __init__(self, console: Console, pace: Pace, score: str) -> None:
        super().__init__(refresh_rate=_PER_SECOND)
        self.words = console
        self.pace = pace
        self.score = score
        self.read_at = -math.inf
        self.figures: dict[str, Any] = {}
        self.speed = self.left = ""

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        """Epoch, bar, batches, speed, time; Lightning adds the figures."""
        # Lightning has just chosen rich's global console; words on another one would run into the bar
        self._console = self.words
        theme = self.theme
        return [
            _Words(self._name),
            CustomBarColumn(
                bar_width=24,
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            _Words(lambda task: f"{task.completed:.0f}/{task.total:.0f}"),
            _Words(lambda task: self.speed if self._trains(task) else ""),
            _Words(lambda task: self.left if self._trains(task) else "", style="dim"),
        ]

    def _trains(self, task: Task) -> bool:
        return task.id == self.train_progress_bar_id

    def _name(self, task: Task) -> str:
        return f"epoch {self.trainer.current_epoch + 1}/{self.trainer.max_epochs}" if self._trains(task) else "judging"

    def _due(self) -> bool:
        """Whether it is time to read numbers again."""
        now = self.pace.clock()
        if now - self.read_at < 1 / _PER_SECOND:
            return False
        self.read_at = now
        return True

    def _read_pace(self) -> None:
        timings, remaining = self.pace.timings(), self.pace.remaining()
        if "pictures_per_second" in timings:
            self.speed = f"{timings['pictures_per_second']:.0f} pictures/s"
        if remaining:
            self.left = f"{duration(remaining.epoch)} left, run {duration(remaining.run)}"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Lightning asks behind each step; the answer is that of before if it is younger than a frame."""
        if self._due():
            self._read_pace()
            shown, judged = pl_module.running(), trainer.progress_bar_metrics
            if self.score in judged:
                shown[self.score] = judged[self.score]
            self.figures = {name: f"{value:.3f}" for name, value in shown.items()}
        return self.figures

    def on_validation_batch_end(self, *arguments: Any, **options: Any) -> None:
        """Go on; the time that remains shrinks here too."""
        super().on_validation_batch_end(*arguments, **options)
        if self._due():
            self._read_pace()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave nothing on the screen: the lines of the epochs say all. After an error the bar stays where it was."""
        if self.progress is not None:
            self.progress.live.transient = True
