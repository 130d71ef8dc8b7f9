"""What the training of classifiers shares: which network is trained, at which size, and how pictures are prepared."""

from collections.abc import Callable, Sequence

import timm
from rich.console import Console
from torch import nn

from dicenet.data.classification import SMALL_SIDE, small_input
from dicenet.data.transforms import Augmentation, Preprocessing
from dicenet.engine.console import say
from dicenet.errors import ConfigError, WeightsError
from dicenet.models.loading import load, task_of
from dicenet.models.network import Network
from dicenet.models.pyramid import PyramidNetwork
from dicenet.models.registry import check_model_name
from dicenet.models.restoring import set_task
from dicenet.tasks.classifier import same_classes

_DEFAULT_MODEL = "dicenet_100"


def model_and_weights(model: str | None, weights: str | None) -> tuple[str | None, str | None]:
    """Both as asked; a model's tag names official weights. Raises ConfigError if two weights are named."""
    if model and "." in check_model_name(model):
        if weights:
            raise ConfigError(f"--model {model} names weights, and so does --weights {weights}: give one of them")
        return model.split(".")[0], model
    return model, weights


def check_drop_rate(drop_rate: float | None) -> None:
    """Raise ConfigError for what is no probability of dropout."""
    if drop_rate is not None and not 0 <= drop_rate < 1:
        raise ConfigError(f"drop_rate must lie from 0 to below 1, got {drop_rate}")


def input_for(
    median_side: Callable[[], int],
    img_size: int | tuple[int, int] | None,
    stem: str | None,
    weights: str | None,
    console: Console,
) -> tuple[int | tuple[int, int] | None, str | None]:
    """Input size and stem: as asked; else those of the weights; else chosen by the size of the pictures."""
    if weights is not None:
        return img_size, stem
    small = small_input(median_side())
    if small is None or (stem and img_size is not None):
        return img_size, stem
    size = small if img_size is None else img_size
    if stem is None and min((size, size) if isinstance(size, int) else size) < SMALL_SIDE:
        stem = "small"
    say(console, f"small pictures: input size {size}, {stem or 'standard'} stem (--img-size and --stem override)")
    return size, stem


def network_to_train(
    task: str,
    model: str | None,
    weights: str | None,
    class_names: Sequence[str],
    in_chans: int | None,
    img_size: int | tuple[int, int] | None,
    stem: str | None,
    drop_rate: float | None,
    console: Console,
) -> Network:
    """The network to train, with fresh or given weights; a fresh classifier starts near zero."""
    if weights is None:
        net = timm.create_model(
            model or _DEFAULT_MODEL,
            num_classes=len(class_names),
            in_chans=in_chans or 3,
            **({} if img_size is None else {"img_size": img_size}),
            stem=stem or "standard",
            drop_rate=drop_rate,
        )
        set_task(net.pretrained_cfg, task)
        _start_small(net.get_classifier())
        return net
    loaded = load(weights)
    # of networks on a feature pyramid the backbone is taken
    stored = loaded.backbone_network() if isinstance(loaded, PyramidNetwork) else loaded
    if not isinstance(stored, Network):
        raise WeightsError(f"{weights} holds no network that classifies: its backbone is timm's {loaded.architecture}")
    if model and stored.architecture != model:
        raise WeightsError(
            f"{weights} is a checkpoint of {stored.architecture}, not of {model}: give --model {stored.architecture}"
        )
    if stem and stem != stored.stem_type:
        raise WeightsError(f"{weights} was made with the {stored.stem_type} stem, not the {stem} one: leave out --stem")
    net = load(weights, task=task, num_classes=len(class_names), in_chans=in_chans, drop_rate=drop_rate)
    assert isinstance(net, Network)
    if task_of(weights) == task and same_classes(stored, class_names):
        say(console, f"weights {weights}, with their classifier")
    else:
        net.reset_classifier(len(class_names))
        net.pretrained_cfg.pop("label_names", None)
        _start_small(net.get_classifier())
        say(console, f"weights {weights}; fresh classifier for {len(class_names)} classes")
    if img_size is not None:
        net.set_input_size(img_size)
    return net


def _start_small(classifier: nn.Module) -> None:
    """Begin with almost equal logits: the official initialisation starts few classes at a loss far above chance."""
    if isinstance(classifier, nn.Conv2d):
        nn.init.normal_(classifier.weight, std=0.01)


def training_preprocessing(net: Network, crop_mode: str | None = None) -> Preprocessing:
    """How pictures become inputs; kept in the network's configuration, so that it is saved with the weights.

    Args:
        net: the network.
        crop_mode: another one than that of its configuration, see :class:`dicenet.data.transforms.Preprocessing`.
    """
    cfg = dict(net.pretrained_cfg)
    if crop_mode is not None:
        cfg |= {"crop_mode": crop_mode, "crop_pct": 1.0}
    if net.stem_type == "small":
        cfg["crop_pct"] = 1.0  # a small picture is shown whole
    preprocessing = Preprocessing.of(cfg)
    net.pretrained_cfg = net.default_cfg = cfg | preprocessing.as_config()
    return preprocessing


def check_batch(net: Network, pictures: int, batch_size: int) -> None:
    """Raise ConfigError if a batch gives a batch norm one value, of which there is no variance."""
    reduction = net.feature_info[-1]["reduction"]
    if min(pictures, batch_size) == 1 and max(net.input_size) <= reduction:
        side = f"{net.input_size[0]}x{net.input_size[1]}"
        few = "there is one to train on: add pictures" if pictures == 1 else "give a larger --batch-size"
        raise ConfigError(f"batch norms need two pictures of {side}, {few} or give a larger --img-size")


def augmentation_for(
    net: Network, kind: str | None, min_scale: float | None, hflip: float, policy: str | None = None
) -> Augmentation:
    """What training does to pictures by chance: as asked, else by the stem and the network's width."""
    small = net.stem_type == "small"
    return Augmentation(
        kind or ("shift" if small else "resized-crop"),
        net.min_crop if min_scale is None else min_scale,
        hflip,
        policy,
    )
