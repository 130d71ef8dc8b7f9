"""What the tasks of networks on a feature pyramid share: two rates, and parts that stay as they are."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from dicenet.errors import ConfigError
from dicenet.models.pyramid import PyramidNetwork
from dicenet.tasks.task import Optimisation, Task

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True, kw_only=True)
class PyramidOptimisation(Optimisation):
    """How the weights are changed; weight decay is on all parameters, as in the official code.

    Attributes:
        lr: of the backbone; the head's is ``lr_mult`` times that.
        freeze_backbone: train the head only; the backbone's norms keep their statistics.
        freeze_norms: keep the statistics and affine parameters of all norms. The official code means to, but goes on
            to update the statistics.
    """

    lr_mult: float = 1.0
    schedule: str = "hybrid"
    freeze_backbone: bool = False
    freeze_norms: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_mult <= 0:
            raise ConfigError(f"lr_mult must be above 0, got {self.lr_mult}")


class PyramidTask(Task):
    """Trains and judges a network on a feature pyramid. Subclasses call :meth:`freeze` when they are complete."""

    net: PyramidNetwork
    optimisation: PyramidOptimisation

    def on_train_epoch_start(self) -> None:
        """Set the mode of each part: Lightning keeps the one that it finds, and warns of frozen parts before this."""
        self.train()

    def _frozen_parts(self) -> list[nn.Module]:
        frozen = list(self.net.backbone.modules()) if self.optimisation.freeze_backbone else []
        if self.optimisation.freeze_norms:
            frozen += [module for module in self.net.modules() if isinstance(module, NORMS)]
        return frozen

    def freeze(self) -> None:
        """Take the frozen parts out of training."""
        for part in self._frozen_parts():
            for parameter in part.parameters(recurse=False):  # timm's norms may hold an activation that learns
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "PyramidTask":
        """Training mode for all but the frozen parts."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The backbone, and the head at a rate of its own; what is frozen is left out."""
        o = self.optimisation
        parts = ((self.net.backbone, o.lr), (self.net.head_part(), o.lr * o.lr_mult))
        groups = [{"params": [p for p in part.parameters() if p.requires_grad], "lr": rate} for part, rate in parts]
        return [group for group in groups if group["params"]]
