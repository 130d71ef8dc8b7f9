"""A trained classifier, as evaluation and prediction need it."""

from collections.abc import Sequence

import torch
from timm.data import ImageNetInfo

from dicenet.data.transforms import Preprocessing
from dicenet.engine.console import some
from dicenet.errors import ConfigError, WeightsError
from dicenet.models.loading import check_task, load
from dicenet.models.network import Network

#: Its word on the command line.
TASK = "classify"
IMAGENET_CLASSES = 1000


def class_names_of(net: Network) -> list[str]:
    """Names of the classes: those saved with the weights, ImageNet's for 1000 classes, or else numbers."""
    if names := net.pretrained_cfg.get("label_names"):
        return list(names)
    if net.num_classes == IMAGENET_CLASSES:
        return ImageNetInfo("imagenet-1k").label_descriptions()
    return [str(index) for index in range(net.num_classes)]


def same_classes(net: Network, names: Sequence[str]) -> bool:
    """Whether a network's classes are these, in this order (for ImageNet's also by WordNet id)."""
    if net.num_classes == IMAGENET_CLASSES and list(names) == ImageNetInfo("imagenet-1k").label_names():
        return "label_names" not in net.pretrained_cfg
    return class_names_of(net) == list(names)


def class_order(data_names: Sequence[str], net: Network, weights: str, advice: str) -> list[int]:
    """For each class of the data the class of the network with the same name (or WordNet id).

    Raises:
        ConfigError: the network lacks some; the message names ``weights`` and ends with ``advice``.
    """
    names = class_names_of(net)
    known = {name: index for index, name in enumerate(names)}
    if net.num_classes == IMAGENET_CLASSES and "label_names" not in net.pretrained_cfg:
        known |= {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    unknown = [name for name in data_names if name not in known]
    if unknown:
        raise ConfigError(
            f"{weights} was trained for {len(names)} classes ({some(names)}), the data has {len(data_names)}, among "
            f"them unknown ones: {some(unknown)}. {advice}"
        )
    return [known[name] for name in data_names]


def load_classifier(weights: str, img_size: int | tuple[int, int] | None) -> tuple[Network, Preprocessing]:
    """A classifier ready to be used, and how its pictures are prepared. Raises WeightsError if it has no classes."""
    check_task(weights, TASK)
    net = load(weights)
    assert isinstance(net, Network)
    if net.num_classes == 0:
        raise WeightsError(f"{weights} has no classifier")
    if img_size is not None:
        net.set_input_size(img_size)
    return net.eval().to(memory_format=torch.channels_last), Preprocessing.of(net.pretrained_cfg)
