"""A trained segmentation network, as evaluation and prediction need it."""

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from dicenet.data.masks import MOST_CLASSES, resized_labels
from dicenet.data.transforms import Preprocessing, evaluation_transform, to_tensor
from dicenet.errors import ConfigError, WeightsError
from dicenet.models.loading import check_task, load
from dicenet.models.segmentation import SegmentationNetwork
from dicenet.tasks.segment.inference import sliding_labels
from dicenet.tasks.segment.task import TASK


def class_names_of(net: SegmentationNetwork) -> list[str]:
    """Names of the classes: those saved with the weights, or else numbers."""
    return list(net.pretrained_cfg.get("label_names") or map(str, range(net.num_classes)))


def load_segmenter(weights: str, img_size: int | tuple[int, int] | None) -> tuple[SegmentationNetwork, Preprocessing]:
    """A segmentation network ready to be used, and how its pictures are prepared.

    Raises:
        WeightsError: the weights are of another network.
        ConfigError: neither the weights nor ``img_size`` say for which size of pictures they are.
    """
    check_task(weights, TASK)
    net = load(weights)
    assert isinstance(net, SegmentationNetwork)
    if net.num_classes > MOST_CLASSES:
        raise WeightsError(f"{weights} has {net.num_classes} classes: masks can tell {MOST_CLASSES} apart")
    if img_size is not None:
        net.set_input_size(img_size)
    if net.input_size is None:
        raise ConfigError(
            f"{weights} does not say for which size of pictures it was trained: give --img-size, or the file its "
            "official name"
        )
    return net.eval().to(memory_format=torch.channels_last), Preprocessing.of(net.pretrained_cfg)


class Segmenter:
    """Gives the map of classes of a picture, at the picture's own size.

    Args:
        net: on its device.
        preprocessing: how pictures are prepared.
        device: of the network.
        mode: ``whole``: the picture is resized to the input size, and the map of classes back; ``sliding``: windows of
            the input size are judged at the picture's own resolution.
    """

    def __init__(self, net: nn.Module, preprocessing: Preprocessing, device: torch.device, mode: str = "whole") -> None:
        self.net = net.to(device)  # Lightning takes a network back to the CPU when it is done
        self.window = preprocessing.input_size
        self.device = device
        self.dtype = next(net.parameters()).dtype
        self.sliding = mode == "sliding"
        self.prepare = v2.Compose(to_tensor(preprocessing)) if self.sliding else evaluation_transform(preprocessing)

    def __call__(self, picture: Image.Image) -> Tensor:
        """Classes (H, W) of 8 bits, on the CPU."""
        with torch.inference_mode():
            image = self.prepare(picture).to(self.device, self.dtype)
            if self.sliding:
                return sliding_labels(self.net, image, self.window).cpu()
            labels = self.net(image[None].contiguous(memory_format=torch.channels_last))[0].argmax(0)
            return resized_labels(labels, (picture.height, picture.width)).cpu()
