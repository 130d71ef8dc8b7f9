"""From a checkpoint of any known format to a network with a head on a feature pyramid: segmentation, detection."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from dicenet.classes import CITYSCAPES, VOC, VOC_OBJECTS, coco_objects
from dicenet.errors import WeightsError
from dicenet.models.detection import (
    DEFAULT_HEAD,
    DetectionNetwork,
    check_head,
    detection_backbone,
)
from dicenet.models.detection_heads import HEADS
from dicenet.models.fitting import load_weights, recognise_checkpoint
from dicenet.models.priors import PriorSettings
from dicenet.models.pyramid import PyramidNetwork
from dicenet.models.restoring import model_args_of, restore_names, restore_preprocessing
from dicenet.models.segmentation import SegmentationNetwork, segmentation_backbone
from dicenet.weights import catalogue
from dicenet.weights.edgenets import EDGENETS, EDGENETS_ESPNETV2
from dicenet.weights.files import Checkpoint
from dicenet.weights.formats import Recognised

_logger = logging.getLogger("dicenet")
#: Arguments of a classifier that feature maps have no use for.
_HEAD_ONLY = ("num_classes", "drop_rate", "global_pool")


def _opened(checkpoint: Checkpoint, task: str) -> Recognised:
    """A checkpoint under our names, with its head if it is of a task."""
    recognised = recognise_checkpoint(checkpoint)
    if recognised.task is None and "stem.conv.weight" not in recognised.state:
        raise WeightsError(f"{checkpoint.name} holds no whole network; dicenet.load_edgenets() loads units and blocks")
    return recognised if recognised.task == task else recognised._replace(head={})


def _decoder_sizes(recognised: Recognised, name: str) -> tuple[int | None, int | None]:
    """Classes, and channels of a branch, of the decoder in a checkpoint; None where there is none."""
    if not recognised.head:
        return None, None
    # a decoder has one part more for each further map of its pyramid: the last has the classes
    last = max(int(key.split(".")[1]) for key in recognised.head if key.startswith("pools."))
    expand = recognised.head.get(f"pools.{last}.expand.weight")
    if expand is None or expand.dim() != 4:
        raise WeightsError(f"{name} holds a damaged decoder: its last convolution is missing")
    return expand.shape[0], expand.shape[1]


def _input_size_of(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """(height, width) of pictures for a network with a head: as its file says, or the catalogue of official ones."""
    if checkpoint.metadata:
        height, width = checkpoint.metadata["input_size"]
        return height, width
    entry = catalogue.find_file(checkpoint.name)
    return entry.size if entry is not None else None


def _load_backbone(net: PyramidNetwork, checkpoint: Checkpoint, recognised: Recognised) -> None:
    network = net.backbone_network()
    if network is not None:
        load_weights(network, checkpoint, recognised._replace(head={}, other_parts=()))
        return
    try:
        # timm wraps some networks as "model" for their maps, and rebuilds others; the prefix is off the names
        cast(nn.Module, getattr(net.backbone, "model", net.backbone)).load_state_dict(recognised.state)
    except RuntimeError as error:
        raise WeightsError(f"{checkpoint.name} does not fit {net.architecture}: {error}") from error


def _load_decoder(net: SegmentationNetwork, state: Mapping[str, Tensor], name: str) -> None:
    """The decoder, all but its last convolution if that is of other classes."""
    own = net.decoder.state_dict()
    last = f"pools.{len(net.decoder.pools) - 1}.expand."
    fitting = {
        key: value
        for key, value in state.items()
        if not (key.startswith(last) and key in own and own[key].shape != value.shape)
    }
    try:
        missing = net.decoder.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{name} holds another decoder than this network: {error}") from error
    fresh = [key for key in missing.missing_keys if not key.startswith(last)]
    if fresh or missing.unexpected_keys:
        raise WeightsError(f"{name} holds another decoder than this network: {(fresh + missing.unexpected_keys)[0]}")
    if missing.missing_keys:
        _logger.info("%s: the last convolution is fresh, for %d classes", name, net.num_classes)


def restore_segmentation(checkpoint: Checkpoint, overrides: dict[str, Any]) -> SegmentationNetwork:
    """A segmentation network: whole, or a fresh decoder behind the backbone of another network."""
    recognised = _opened(checkpoint, "segment")
    given = {key: value for key, value in overrides.items() if value is not None}
    stored_classes, stored_channels = _decoder_sizes(recognised, checkpoint.name)
    num_classes = given.pop("num_classes", stored_classes)
    if num_classes is None:
        raise WeightsError(f"{checkpoint.name} is no segmentation network: pass num_classes= to use it as the backbone")
    img_size = given.pop("img_size", None) or (_input_size_of(checkpoint) if recognised.head else None)
    channels = given.pop("decoder_channels", stored_channels)
    if stored_channels is not None and channels != stored_channels:
        raise WeightsError(
            f"{checkpoint.name} holds a decoder of {stored_channels} channels a branch, not of {channels}: leave out "
            "decoder_channels"
        )
    architecture, args = model_args_of(recognised, checkpoint, given.get("stem"))
    backbone_args = {key: value for key, value in (args | given).items() if key not in _HEAD_ONLY}
    in_chans = backbone_args.pop("in_chans", 3)
    backbone = segmentation_backbone(architecture, in_chans=in_chans, **backbone_args)
    net = SegmentationNetwork(architecture, backbone, num_classes, None, channels, in_chans, backbone_args)
    _load_backbone(net, checkpoint, recognised)
    if recognised.head:
        _load_decoder(net, recognised.head, checkpoint.name)
    if img_size is not None:
        net.set_input_size(img_size)
    _restore_config(net, checkpoint, recognised, {len(names): names for names in (VOC, CITYSCAPES)})
    return net


def _restore_config(
    net: PyramidNetwork, checkpoint: Checkpoint, recognised: Recognised, official: Mapping[int, Sequence[str]]
) -> None:
    """Give a network the preprocessing and class names of its file; official ones are told by their number."""
    restore_preprocessing(net.pretrained_cfg, checkpoint.metadata)
    # the backbone of a classifier was fed in another way
    net.pretrained_cfg |= {"crop_pct": 1.0, "crop_mode": "squash"}
    if not recognised.head:  # else the names are of another task
        return
    restore_names(net.pretrained_cfg, checkpoint.metadata, net.num_classes)
    if recognised.format in (EDGENETS.name, EDGENETS_ESPNETV2.name) and net.num_classes in official:
        net.pretrained_cfg["label_names"] = tuple(official[net.num_classes])


def _stored_head(checkpoint: Checkpoint, recognised: Recognised) -> dict[str, Any]:
    """What a checkpoint says of its detector: head, classes, priors' ratios and scales. Empty if it is of none."""
    if not recognised.head:
        return {}
    if checkpoint.metadata:
        head = dict(checkpoint.metadata["head"])
        known = {"head": str, "num_classes": int, "ratios": list, "scales": list | None}
        if wrong := [key for key, kind in known.items() if not isinstance(head.get(key), kind)]:
            raise WeightsError(f"{checkpoint.name} has a damaged description of its head: {wrong[0]}")
        return head
    scores, boxes = (recognised.head.get(f"predictors.{kind}.0.weight") for kind in ("scores", "boxes"))
    if scores is None or boxes is None:
        raise WeightsError(f"{checkpoint.name} holds a damaged detector: its predictors are missing")
    ratios = HEADS["espnet"].ratios
    return {"head": "espnet", "num_classes": 4 * len(scores) // len(boxes) - 1, "ratios": ratios, "scales": None}


def restore_detection(checkpoint: Checkpoint, overrides: dict[str, Any]) -> DetectionNetwork:
    """A detector: whole, or a fresh head behind the backbone of another network."""
    recognised = _opened(checkpoint, "detect")
    given = {key: value for key, value in overrides.items() if value is not None}
    stored = _stored_head(checkpoint, recognised)
    num_classes = given.pop("num_classes", stored.get("num_classes"))
    if num_classes is None:
        raise WeightsError(f"{checkpoint.name} is no detector: pass num_classes= to use it as the backbone")
    head = check_head(given.pop("head", stored.get("head", DEFAULT_HEAD)))
    if stored and head != stored["head"]:
        raise WeightsError(f"{checkpoint.name} holds the head {stored['head']}, not {head}: leave out head")
    img_size = given.pop("img_size", None) or (_input_size_of(checkpoint) if stored else HEADS[head].img_size)
    if img_size is None:
        raise WeightsError(f"{checkpoint.name} does not say for which size of pictures it was trained: pass img_size=")
    scales = given.pop("scales", stored.get("scales"))
    settings = PriorSettings(
        tuple(tuple(ratios) for ratios in stored.get("ratios", HEADS[head].ratios)),
        None if scales is None else tuple(scales),
    )
    architecture, args = model_args_of(recognised, checkpoint, given.get("stem"))
    backbone_args = {key: value for key, value in (args | given).items() if key not in _HEAD_ONLY}
    in_chans = backbone_args.pop("in_chans", 3)
    backbone = detection_backbone(architecture, head, in_chans=in_chans, **backbone_args)
    net = DetectionNetwork(architecture, backbone, num_classes, img_size, head, settings, in_chans, backbone_args)
    _load_backbone(net, checkpoint, recognised)
    if stored:
        _load_head(net, recognised.head, checkpoint.name)
    _restore_config(net, checkpoint, recognised, {len(names): names for names in (VOC_OBJECTS, coco_objects())})
    return net


def _load_head(net: DetectionNetwork, state: Mapping[str, Tensor], name: str) -> None:
    """The head, all but what gives scores if that is of other classes."""
    own = net.head.state_dict()
    others = {
        key
        for key, value in own.items()
        if key.startswith("predictors.scores.") and key in state and state[key].shape != value.shape
    }
    try:
        missing = net.head.load_state_dict(
            {key: value for key, value in state.items() if key not in others}, strict=False
        )
    except RuntimeError as error:
        raise WeightsError(f"{name} holds another head than this network: {error}") from error
    fresh = [key for key in missing.missing_keys if key not in others]
    if fresh or missing.unexpected_keys:
        raise WeightsError(f"{name} holds another head than this network: {(fresh + missing.unexpected_keys)[0]}")
    if others:
        _logger.info("%s: the convolutions that give scores are fresh, for %d classes", name, net.num_classes)
