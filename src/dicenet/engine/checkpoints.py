"""Checkpoints that are whole or absent, when they are written, and how SIGTERM ends a training."""

import io
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from dicenet.errors import StoppedError, TrainingError
from dicenet.weights.files import write_bytes

#: Seconds behind SIGTERM from which on another one ends the training at once: before, it may be the same, sent by the
#: scheduler and passed on by torchrun.
_IMPATIENT = 5.0


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that have their final name only when they are complete and on disk.

    Lightning writes to a temporary folder and moves, which is not one step between file systems.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write beside the final place, then rename."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_bytes(Path(path), content.getvalue())


class LastCheckpoint(Checkpoint):
    """Saves all that a resumed run needs: behind every epoch, within epochs now and then, and before SIGTERM ends it.

    Within an epoch it saves behind steps of the optimiser, as gradients are not kept, but not behind the last, where
    Lightning would take the epoch for finished and leave out its validation. Lightning runs it behind all other
    callbacks.

    Args:
        path: of the checkpoint, which takes the place of the one before.
        every: optimiser steps from one to the next within an epoch; 0: none.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self.stopping = False
        self.asked = 0.0
        self.group: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for SIGTERM, in place of Lightning, which stops at once. It puts the usual way back at the end."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._stop)
        if trainer.world_size > 1:  # of its own and on the CPU: a question at each step must not wait for the device
            self.group = torch.distributed.new_group(backend="gloo")

    def _stop(self, number: int, frame: Any) -> None:
        if not self.stopping:
            self.stopping, self.asked = True, time.monotonic()
        elif time.monotonic() - self.asked > _IMPATIENT:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def _asked_to_stop(self, trainer: L.Trainer) -> bool:
        """Whether any process was: all must stop behind the same step."""
        if trainer.world_size == 1:
            return self.stopping
        asked = torch.tensor(int(self.stopping))
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, self.group)
        return bool(asked)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time."""
        batches = batch_idx + 1
        if batches % trainer.accumulate_grad_batches or batches >= trainer.num_training_batches:
            return
        stopping, steps = self._asked_to_stop(trainer), batches // trainer.accumulate_grad_batches
        if stopping or (self.every and steps % self.every == 0):
            self._save(trainer, pl_module)
        if stopping:
            self._end(trainer, f"in epoch {trainer.current_epoch + 1} behind step {steps}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save."""
        self._save(trainer, pl_module)
        if self._asked_to_stop(trainer):
            self._end(trainer, f"behind epoch {trainer.current_epoch + 1}")

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        state = (*pl_module.parameters(), *pl_module.buffers())
        if not all(tensor.isfinite().all() for tensor in state):
            raise TrainingError(
                f"weights became infinite or no numbers in epoch {trainer.current_epoch + 1} before step "
                f"{trainer.global_step}: use a smaller --lr or a longer --warmup"
            )
        trainer.save_checkpoint(self.path)

    def _end(self, trainer: L.Trainer, where: str) -> None:
        raise StoppedError(f"stopped by SIGTERM {where}: go on with --resume {self.path.parent}")
