"""From a checkpoint of any known format to the network that it is of, with its weights."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import timm
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from dicenet.classes import CITYSCAPES, VOC
from dicenet.errors import WeightsError
from dicenet.models import dicenet, espnetv2
from dicenet.models.fitting import load_weights, recognise_checkpoint, stem_of, trained_size_of
from dicenet.models.network import Network
from dicenet.models.pyramid import check_backbone
from dicenet.models.registry import ROWS, check_model_name
from dicenet.models.segmentation import SegmentationNetwork, segmentation_backbone
from dicenet.weights import catalogue
from dicenet.weights.edgenets import EDGENETS, EDGENETS_ESPNETV2
from dicenet.weights.files import Checkpoint
from dicenet.weights.formats import Recognised

_logger = logging.getLogger("dicenet")
#: Arguments of a classifier that feature maps have no use for.
_HEAD_ONLY = ("num_classes", "drop_rate", "global_pool")
#: Classes of the official segmentation networks, by their number.
_OFFICIAL_CLASSES = {len(names): names for names in (VOC, CITYSCAPES)}
#: What is kept of timm's pretrained configuration: how pictures must be prepared.
PREPROCESSING_KEYS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def _row_of(state: Mapping[str, Tensor], name: str) -> dicenet.Width | espnetv2.ESPNetv2Row:
    """The row of a family's table that has the shapes of a state dict."""
    stem = len(state["stem.conv.weight"])
    if "stages.0.0.act.weight" in state:
        first = len(state["stages.0.0.act.weight"])
        for row in espnetv2.NETWORKS:
            if (row.stem_channels, row.first_channels) == (stem, first):
                return row
        raise WeightsError(f"{name} is an ESPNetv2 of no known width: stem {stem}, first level {first}")
    halves = [len(state[f"stages.{stage}.2.transform.0.conv.weight"]) for stage in (0, 1)]
    for width in dicenet.NETWORKS:
        if width.stem_channels == stem and [c // 2 for c in width.stage_channels[:2]] == halves:
            return width
    raise WeightsError(f"{name} is a DiCENet of no known width: stem {stem}, levels {[2 * half for half in halves]}")


#: What files of ours may say of a network, and of what type it must be: they may come from anywhere.
_ARGUMENT_TYPES = {
    "num_classes": int,
    "in_chans": int,
    "img_size": list,
    "stem": str,
    "drop_rate": float | int,
    "global_pool": str,
    "unit": str,
    "channels": int,
    "first_layer": str,
    "layout": str,
}


#: Arguments of timm that would fetch or read something else than the file.
_NOT_FROM_FILES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def _is_known(architecture: str, key: str, value: Any) -> bool:
    if key in _ARGUMENT_TYPES:
        return isinstance(value, _ARGUMENT_TYPES[key])
    # backbones of timm have arguments of their own
    return architecture not in ROWS and key not in _NOT_FROM_FILES and isinstance(value, str | int | float | None)


def _described_args(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Arguments of a network from a file's description; nothing else in it reaches the network."""
    args = metadata["model_args"]
    for key, value in args.items():
        if not _is_known(metadata["architecture"], key, value):
            raise WeightsError(f"{name} has a damaged description of its network: {key} is {value!r}")
    return dict(args)


def _model_args(recognised: Recognised, checkpoint: Checkpoint, stem: str | None) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments that a state dict was made with: as its file says, or read off its shapes."""
    if checkpoint.metadata:
        name = checkpoint.metadata["architecture"]
        if not recognised.decoder:
            check_model_name(name)
        check_backbone(name)
        return name, _described_args(checkpoint.metadata, checkpoint.name)
    state = recognised.state
    known_stem = stem_of(recognised.format, {})
    if known_stem is None and stem is None:
        _logger.warning(
            "%s does not say which stem it was made with: taken for the standard one (pass stem= to choose)",
            checkpoint.name,
        )
    stem = known_stem or stem or "standard"
    classifier = state.get("classifier.weight")
    return _row_of(state, checkpoint.name).name, {
        "num_classes": 0 if classifier is None else len(classifier),
        "in_chans": state["stem.conv.weight"].shape[1],
        "img_size": trained_size_of(state, stem) or (224, 224),
        "stem": stem,
    }


def restore_network(
    checkpoint: Checkpoint, features_only: bool, out_indices: int | Sequence[int] | None, overrides: dict[str, Any]
) -> nn.Module:
    """A classifier, or the feature maps of a backbone; arguments as for :func:`dicenet.load`."""
    recognised = recognise_checkpoint(checkpoint)
    state = recognised.state
    if "stem.conv.weight" not in state:
        raise WeightsError(f"{checkpoint.name} holds no whole network; dicenet.load_edgenets() loads units and blocks")
    architecture, args = _model_args(recognised, checkpoint, overrides.get("stem"))
    check_model_name(architecture)
    # a backbone of a segmentation network lacks the last level, in files of all kinds
    last = "stages.3.0" if architecture.startswith("espnetv2") else "stages.2.0"
    complete = not recognised.decoder and (bool(checkpoint.metadata) or any(key.startswith(last) for key in state))
    if not (complete or features_only or overrides.get("num_classes")):
        raise WeightsError(
            f"{checkpoint.name} holds a backbone without its last level and classifier (a segmentation network): "
            "pass features_only=True for its feature maps, or num_classes= to train the rest anew"
        )
    args |= {key: value for key, value in overrides.items() if value is not None}
    net: Network = timm.create_model(architecture, **args)
    result: Any = net
    if features_only:  # before loading: what is pruned needs no weights
        levels = len(net.feature_info) if complete else len(net.feature_info) - 1
        taken, last = feature_take_indices(
            len(net.feature_info), tuple(range(levels)) if out_indices is None else out_indices
        )
        if last >= levels:
            raise WeightsError(f"{checkpoint.name} has no level {last}: it holds levels 0 to {levels - 1}")
        result = FeatureGetterNet(net, out_indices=tuple(taken))
    load_weights(net, checkpoint)
    _restore_config(net, checkpoint.metadata)
    result.pretrained_cfg = net.pretrained_cfg
    return result


def _decoder_sizes(recognised: Recognised, name: str) -> tuple[int | None, int | None]:
    """Classes, and channels of a branch, of the decoder in a checkpoint; None where there is none."""
    if not recognised.decoder:
        return None, None
    # a decoder has one part more for each further map of its pyramid: the last has the classes
    last = max(int(key.split(".")[1]) for key in recognised.decoder if key.startswith("pools."))
    expand = recognised.decoder.get(f"pools.{last}.expand.weight")
    if expand is None or expand.dim() != 4:
        raise WeightsError(f"{name} holds a damaged decoder: its last convolution is missing")
    return expand.shape[0], expand.shape[1]


def _input_size_of(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """(height, width) of pictures for a segmentation network: as its file says, or the catalogue of official ones."""
    if checkpoint.metadata:
        height, width = checkpoint.metadata["input_size"]
        return height, width
    entry = catalogue.find_file(checkpoint.name)
    return entry.size if entry is not None else None


def _load_backbone(net: SegmentationNetwork, checkpoint: Checkpoint, recognised: Recognised) -> None:
    network = net.backbone_network()
    if network is not None:
        load_weights(network, checkpoint, recognised._replace(decoder={}, other_parts=()))
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
    recognised = recognise_checkpoint(checkpoint)
    if not recognised.decoder and "stem.conv.weight" not in recognised.state:
        raise WeightsError(f"{checkpoint.name} holds no whole network; dicenet.load_edgenets() loads units and blocks")
    given = {key: value for key, value in overrides.items() if value is not None}
    stored_classes, stored_channels = _decoder_sizes(recognised, checkpoint.name)
    num_classes = given.pop("num_classes", stored_classes)
    if num_classes is None:
        raise WeightsError(f"{checkpoint.name} is no segmentation network: pass num_classes= to use it as the backbone")
    img_size = given.pop("img_size", None) or (_input_size_of(checkpoint) if recognised.decoder else None)
    channels = given.pop("decoder_channels", stored_channels)
    if stored_channels is not None and channels != stored_channels:
        raise WeightsError(
            f"{checkpoint.name} holds a decoder of {stored_channels} channels a branch, not of {channels}: leave out "
            "decoder_channels"
        )
    architecture, args = _model_args(recognised, checkpoint, given.get("stem"))
    backbone_args = {key: value for key, value in (args | given).items() if key not in _HEAD_ONLY}
    in_chans = backbone_args.pop("in_chans", 3)
    backbone = segmentation_backbone(architecture, in_chans=in_chans, **backbone_args)
    net = SegmentationNetwork(architecture, backbone, num_classes, None, channels, in_chans, backbone_args)
    _load_backbone(net, checkpoint, recognised)
    if recognised.decoder:
        _load_decoder(net, recognised.decoder, checkpoint.name)
    _restore_segmentation_config(net, checkpoint.metadata, img_size)
    if recognised.decoder:  # else the names are a classifier's
        _restore_names(net.pretrained_cfg, checkpoint.metadata, net.num_classes)
    official = recognised.format in (EDGENETS.name, EDGENETS_ESPNETV2.name)
    if official and num_classes == stored_classes and num_classes in _OFFICIAL_CLASSES:
        net.pretrained_cfg["label_names"] = _OFFICIAL_CLASSES[num_classes]
    return net


def _restore_segmentation_config(
    net: SegmentationNetwork, metadata: Mapping[str, Any], img_size: tuple[int, int] | None
) -> None:
    _restore_preprocessing(net.pretrained_cfg, metadata)
    # the backbone of a classifier was fed in another way
    net.pretrained_cfg |= {"crop_pct": 1.0, "crop_mode": "squash"}
    if img_size is not None:
        net.set_input_size(img_size)


def _restore_config(net: Network, metadata: Mapping[str, Any]) -> None:
    """Give a network the input size, class names and preprocessing of its file, where timm's tools look for them."""
    cfg = dict(net.pretrained_cfg, num_classes=net.num_classes)
    if "head" not in metadata:  # else pictures and classes are those of another task
        _restore_preprocessing(cfg, metadata)
        _restore_names(cfg, metadata, net.num_classes)
    net.pretrained_cfg = net.default_cfg = cfg
    net.set_input_size(net.trained_size if "head" in metadata else tuple(metadata.get("input_size", net.trained_size)))


def _restore_preprocessing(cfg: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    """Put the preprocessing of a file into timm's configuration of a network."""
    for key in PREPROCESSING_KEYS:
        if key in metadata.get("preprocessing", {}):
            value = metadata["preprocessing"][key]
            cfg[key] = tuple(value) if isinstance(value, list) else value


def _restore_names(cfg: dict[str, Any], metadata: Mapping[str, Any], num_classes: int) -> None:
    names = metadata.get("class_names") or ()
    if names and len(names) == num_classes:
        cfg["label_names"] = tuple(names)
