"""A trained detector, as evaluation and prediction need it."""

import torch
from PIL import Image
from torch import Tensor, nn

from dicenet.data.transforms import Preprocessing, evaluation_transform
from dicenet.errors import ConfigError
from dicenet.models.detection import DetectionNetwork, detections
from dicenet.models.loading import check_task, load
from dicenet.tasks.detect.task import TASK, Thresholds


def class_names_of(net: DetectionNetwork) -> list[str]:
    """Names of the classes: those saved with the weights, or else numbers."""
    return list(net.pretrained_cfg.get("label_names") or map(str, range(net.num_classes)))


def check_thresholds(score: float, nms: float) -> Thresholds:
    """Both as one. Raises ConfigError if they are no shares."""
    if not 0 <= score < 1 or not 0 < nms <= 1:
        raise ConfigError(f"score must lie from 0 to below 1, nms from above 0 to 1, got {score} and {nms}")
    return Thresholds(score, nms)


def load_detector(weights: str, img_size: int | tuple[int, int] | None) -> tuple[DetectionNetwork, Preprocessing]:
    """A detector ready to be used, and how its pictures are prepared. Raises WeightsError if it is none."""
    check_task(weights, TASK)
    net = load(weights, task=TASK, img_size=img_size)
    assert isinstance(net, DetectionNetwork)
    return net.eval().to(memory_format=torch.channels_last), Preprocessing.of(net.pretrained_cfg)


class Detector:
    """Finds the objects of a picture.

    Args:
        net: on its device.
        priors: of the network.
        preprocessing: how pictures are prepared.
        device: of the network.
        thresholds: which boxes count.
    """

    def __init__(
        self,
        net: nn.Module,
        priors: Tensor,
        preprocessing: Preprocessing,
        device: torch.device,
        thresholds: Thresholds,
    ) -> None:
        self.net = net.to(device)  # Lightning takes a network back to the CPU when it is done
        self.priors = priors.to(device)
        self.device = device
        self.dtype = next(net.parameters()).dtype
        self.thresholds = thresholds
        self.prepare = evaluation_transform(preprocessing)

    def __call__(self, picture: Image.Image) -> dict[str, Tensor]:
        """Boxes (n, 4) in pixels, labels (n,) and scores (n,), the surest first, on the CPU."""
        with torch.inference_mode():
            image = self.prepare(picture).to(self.device, self.dtype)
            scores, codes = self.net(image[None].contiguous(memory_format=torch.channels_last))
            size = picture.height, picture.width
            limits = self.thresholds
            (found,) = detections(scores, codes, self.priors, [size], limits.score, limits.nms)
            return {key: value.cpu() for key, value in found.items()}
