"""From a checkpoint of any known format to the network that it is of, with its weights."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from dicenet.errors import WeightsError
from dicenet.models import dicenet, espnetv2
from dicenet.models.fitting import load_weights, recognise_checkpoint, stem_of, trained_size_of
from dicenet.models.network import Network
from dicenet.models.pyramid import check_backbone
from dicenet.models.registry import ROWS, check_model_name
from dicenet.weights.files import Checkpoint
from dicenet.weights.formats import Recognised

_logger = logging.getLogger("dicenet")
#: Whose backbone a checkpoint without a classifier is.
_HOLDERS = {"segment": "it is of a segmentation network", "detect": "it is of a detector", None: "and its last level"}
#: The task of networks that name all classes that a picture shows: their files and configurations say so, as nothing in
#: their weights tells them from classifiers of one class a picture.
MULTILABEL = "multilabel"
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
    "picture_to_last": bool,
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


def model_args_of(recognised: Recognised, checkpoint: Checkpoint, stem: str | None) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments that a state dict was made with: as its file says, or read off its shapes."""
    if checkpoint.metadata:
        name = checkpoint.metadata["architecture"]
        if not recognised.head:
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
    checkpoint: Checkpoint,
    task: str | None,
    features_only: bool,
    out_indices: int | Sequence[int] | None,
    overrides: dict[str, Any],
) -> nn.Module:
    """A classifier, or the feature maps of a backbone; arguments as for :func:`dicenet.load`."""
    recognised = recognise_checkpoint(checkpoint)
    state = recognised.state
    if "stem.conv.weight" not in state:
        raise WeightsError(f"{checkpoint.name} holds no whole network; dicenet.load_edgenets() loads units and blocks")
    architecture, args = model_args_of(recognised, checkpoint, overrides.get("stem"))
    check_model_name(architecture)
    # a backbone of a segmentation network lacks the last level, in files of all kinds
    last = "stages.3.0" if architecture.startswith("espnetv2") else "stages.2.0"
    has_last = any(key.startswith(last) for key in state) or (bool(checkpoint.metadata) and not recognised.head)
    if not ((has_last and not recognised.head) or features_only or overrides.get("num_classes")):
        raise WeightsError(
            f"{checkpoint.name} holds a backbone without its classifier ({_HOLDERS[recognised.task]}): pass "
            "features_only=True for its feature maps, or num_classes= to train the rest anew"
        )
    args |= {key: value for key, value in overrides.items() if value is not None}
    net: Network = timm.create_model(architecture, **args)
    result: Any = net
    if features_only:  # before loading: what is pruned needs no weights
        levels = len(net.feature_info) if has_last else len(net.feature_info) - 1
        taken, last = feature_take_indices(
            len(net.feature_info), tuple(range(levels)) if out_indices is None else out_indices
        )
        if last >= levels:
            raise WeightsError(f"{checkpoint.name} has no level {last}: it holds levels 0 to {levels - 1}")
        result = FeatureGetterNet(net, out_indices=tuple(taken))
    load_weights(net, checkpoint)
    _restore_config(net, checkpoint.metadata, task)
    result.pretrained_cfg = net.pretrained_cfg
    return result


def _restore_config(net: Network, metadata: Mapping[str, Any], task: str | None) -> None:
    """Give a network the input size, class names and preprocessing of its file, where timm's tools look for them."""
    cfg = dict(net.pretrained_cfg, num_classes=net.num_classes)
    stored = MULTILABEL if metadata.get("task") == MULTILABEL else "classify"
    set_task(cfg, task or stored)
    if "head" not in metadata and task in (None, stored):  # else pictures and classes are those of another task
        restore_preprocessing(cfg, metadata)
        restore_names(cfg, metadata, net.num_classes)
    net.pretrained_cfg = net.default_cfg = cfg
    net.set_input_size(net.trained_size if "head" in metadata else tuple(metadata.get("input_size", net.trained_size)))


def set_task(cfg: dict[str, Any], task: str) -> None:
    """Say in timm's configuration of a classifier whether it is one for several classes a picture."""
    cfg.pop("task", None)
    if task == MULTILABEL:
        cfg["task"] = task


def restore_preprocessing(cfg: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    """Put the preprocessing of a file into timm's configuration of a network."""
    for key in PREPROCESSING_KEYS:
        if key in metadata.get("preprocessing", {}):
            value = metadata["preprocessing"][key]
            cfg[key] = tuple(value) if isinstance(value, list) else value


def restore_names(cfg: dict[str, Any], metadata: Mapping[str, Any], num_classes: int) -> None:
    """Put the class names of a file there, if there are as many as classes."""
    names = metadata.get("class_names") or ()
    if names and len(names) == num_classes:
        cfg["label_names"] = tuple(names)
