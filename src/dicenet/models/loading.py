"""Loading and saving whole networks: our files, official (EdgeNets) and pytorchcv checkpoints."""

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from dicenet.errors import ConfigError, WeightsError
from dicenet.layers import DiCEUnit, ShuffleBlock, StridedUnit
from dicenet.models import dicenet
from dicenet.models.fitting import Source, load_weights, open_source, recognise_checkpoint, stem_of, trained_size_of
from dicenet.models.network import Network
from dicenet.models.registry import ROWS
from dicenet.weights import catalogue
from dicenet.weights.edgenets import EDGENETS
from dicenet.weights.files import FILE_FORMAT, Checkpoint, write_safetensors
from dicenet.weights.formats import Recognised, recognise
from dicenet.weights.pytorchcv import PYTORCHCV

_logger = logging.getLogger("dicenet")
#: What is kept of timm's pretrained configuration: how pictures must be prepared.
PREPROCESSING_KEYS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def check_model_name(name: str) -> str:
    """The name of one of our networks, unchanged. Raises ConfigError, naming the nearest, for others."""
    if name.split(".")[0] in ROWS:
        return name
    # a width such as dicenet_110 is nearest to its neighbours in size, a misspelling to those in letters
    scale = re.search(r"(\d+)$", name)
    if name.startswith("dicenet") and scale:
        widths = [width.name for width in dicenet.WIDTHS]
        near = sorted(widths, key=lambda known: abs(int(known[-3:]) - int(scale[1])))[:2]
    else:
        near = difflib.get_close_matches(name, ROWS, n=2, cutoff=0.0)
    raise ConfigError(f"model {name!r} is unknown: the nearest are {' and '.join(near)} ('dicenet models' lists all)")


def describe(net: Network, class_names: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
    """What a file must say to rebuild a network and to use it: architecture, arguments, classes, preprocessing."""
    cfg = net.pretrained_cfg
    return {
        "format": FILE_FORMAT,
        "architecture": net.architecture,
        "model_args": net.model_args(),
        "input_size": list(net.input_size),
        "class_names": list(class_names if class_names is not None else cfg.get("label_names") or ()),
        "preprocessing": {key: cfg[key] for key in PREPROCESSING_KEYS},
        **more,
    }


def save(net: Network, path: str | Path, class_names: Sequence[str] | None = None, **more: Any) -> None:
    """Write a network as safetensors, whole or not at all, with all that :func:`load` needs in its metadata.

    Args:
        net: the network.
        path: of the file.
        class_names: names of the classes, in order; by default those that the network was loaded with.
        more: anything that JSON can hold, kept in the metadata.

    Raises:
        ConfigError: as many names as classes are needed; a pruned network cannot be saved.
        DicenetError: the file cannot be written.
    """
    metadata = describe(net, class_names, **more)
    if net.pruned:
        raise ConfigError("a network that was pruned to its feature maps cannot be saved as a whole one")
    count = len(metadata["class_names"])
    if count not in (0, net.num_classes):
        raise ConfigError(f"{count} class names were given for a network of {net.num_classes} classes")
    write_safetensors(Path(path), net.state_dict(), metadata)


def _width_of(state: Mapping[str, Tensor], name: str) -> dicenet.Width:
    """The width whose table row has the shapes of a state dict."""
    stem = len(state["stem.conv.weight"])
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


def _described_args(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Arguments of a network from a file's description; nothing else in it reaches the network."""
    args = metadata["model_args"]
    for key, value in args.items():
        if key not in _ARGUMENT_TYPES or not isinstance(value, _ARGUMENT_TYPES[key]):
            raise WeightsError(f"{name} has a damaged description of its network: {key} is {value!r}")
    return dict(args)


def _model_args(recognised: Recognised, checkpoint: Checkpoint, stem: str | None) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments that a state dict was made with: as its file says, or read off its shapes."""
    if checkpoint.metadata:
        name = check_model_name(checkpoint.metadata["architecture"])
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
    return _width_of(state, checkpoint.name).name, {
        "num_classes": 0 if classifier is None else len(classifier),
        "in_chans": state["stem.conv.weight"].shape[1],
        "img_size": trained_size_of(state, stem),
        "stem": stem,
    }


def _load_network(
    checkpoint: Checkpoint, features_only: bool, out_indices: int | Sequence[int] | None, overrides: dict[str, Any]
) -> nn.Module:
    recognised = recognise_checkpoint(checkpoint)
    state = recognised.state
    if "stem.conv.weight" not in state:
        raise WeightsError(f"{checkpoint.name} holds no whole network; dicenet.load_edgenets() loads units and blocks")
    architecture, args = _model_args(recognised, checkpoint, overrides.get("stem"))
    # a backbone without its end is found in foreign files only; in them a network of ours is a DiCENet
    complete = bool(checkpoint.metadata) or "stages.2.0.left.0.conv.weight" in state
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


def _restore_config(net: Network, metadata: Mapping[str, Any]) -> None:
    """Give a network the input size, class names and preprocessing of its file, where timm's tools look for them."""
    cfg = dict(net.pretrained_cfg, num_classes=net.num_classes)
    for key in PREPROCESSING_KEYS:
        if key in metadata.get("preprocessing", {}):
            value = metadata["preprocessing"][key]
            cfg[key] = tuple(value) if isinstance(value, list) else value
    names = metadata.get("class_names") or ()
    if names and len(names) == net.num_classes:
        cfg["label_names"] = tuple(names)
    net.pretrained_cfg = net.default_cfg = cfg
    net.set_input_size(tuple(metadata.get("input_size", net.trained_size)))


def _open(source: Source) -> Checkpoint:
    """A local file, a state dict, or the name of an official checkpoint."""
    named = isinstance(source, str) and re.fullmatch(r"[a-z0-9]+_\d{3}\.(?!pth|ckpt|safetensors)\w+", source)
    if named and not Path(str(source)).exists():
        source = catalogue.fetch(str(source))
    return open_source(source)


def load(
    source: Source,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **model_args: Any,
) -> nn.Module:
    """A network with its weights: from a file that training or :func:`save` wrote, or any other known checkpoint.

    Args:
        source: path of a .safetensors, .pth or .ckpt file, a state dict, or the name of an official checkpoint
            (such as ``dicenet_100.edgenets_in1k``, fetched and verified).
        num_classes: another class count: the classifier is fresh then.
        in_chans: another number of picture channels: the first convolution is adapted.
        features_only: return a module that gives the feature maps as a list.
        out_indices: with ``features_only``, which levels.
        model_args: further arguments of the network, such as ``drop_rate``.

    Returns:
        The network in training mode. Class names (``label_names``) and preprocessing are in ``pretrained_cfg``.

    Raises:
        WeightsError: see :func:`dicenet.models.fitting.load_weights`.
    """
    overrides = {"num_classes": num_classes, "in_chans": in_chans, **model_args}
    return _load_network(_open(source), features_only, out_indices, overrides)


def _expect(source: Source, wanted: str) -> Checkpoint:
    checkpoint = _open(source)
    found = recognise(checkpoint.state, checkpoint.name).format
    if found != wanted:
        raise WeightsError(f"{checkpoint.name} is a checkpoint of {found}, not of {wanted}: use dicenet.load()")
    return checkpoint


def load_pytorchcv(source: Source | nn.Module, **kwargs: Any) -> nn.Module:
    """A network with the weights of a pytorchcv ``dicenet_*``: its file, state dict or module.

    Width, classes and trained size are recognised (its ``dicenet_w7d8`` is width 1.75). Keyword arguments as
    for :func:`load`.
    """
    if isinstance(source, nn.Module):
        source = source.state_dict()
    return load(_expect(source, PYTORCHCV.name), **kwargs)


def load_edgenets(
    source: Source, *, interleave: bool = True, dilation: tuple[int, int, int] = (1, 1, 1), **kwargs: Any
) -> nn.Module:
    """Whatever an official (EdgeNets) checkpoint or state dict holds, recognised by its names and shapes.

    A classifier gives the network; a segmentation checkpoint its backbone (pass ``features_only=True``, or
    ``num_classes``); the state dict of a unit, strided unit or block that module.

    Args:
        source: path or state dict.
        interleave: for a unit whose channels were not interleaved (no network is made so).
        dilation: for a unit with dilated kernels (likewise): depth, height, width.
        kwargs: for networks, as for :func:`load`.

    Raises:
        WeightsError: not of EdgeNets, or see :func:`load`.
    """
    checkpoint = _expect(source, EDGENETS.name)
    state = recognise(checkpoint.state, checkpoint.name).state
    if "stem.conv.weight" in state:
        return _load_network(checkpoint, kwargs.pop("features_only", False), kwargs.pop("out_indices", None), kwargs)
    if kwargs:
        raise ConfigError(f"{checkpoint.name} holds a unit or block, for which {', '.join(kwargs)} mean nothing")
    module = _module_for(state, interleave, dilation)
    module.load_state_dict(state)
    return module


def _feature_size(state: Mapping[str, Tensor], unit: str) -> tuple[int, int]:
    return len(state[f"{unit}dim_conv.weight_height"]), len(state[f"{unit}dim_conv.weight_width"])


def _module_for(state: Mapping[str, Tensor], interleave: bool, dilation: tuple[int, int, int]) -> nn.Module:
    """A fresh unit or block with the shapes of a state dict under our names."""
    if "right.1.dim_conv.weight_depth" in state:
        return StridedUnit(len(state["left.0.conv.weight"]), _feature_size(state, "right.1."))
    if "transform.0.conv.weight" in state:
        computed, rest = state["transform.0.conv.weight"].shape[:2]
        # half of the input was kept; all official blocks have an even number of input channels
        return ShuffleBlock(2 * rest, computed + rest, _feature_size(state, "transform.1."))
    kernel = state["dim_conv.weight_depth"]
    return DiCEUnit(
        len(kernel),
        len(state["dim_fuse.spatial.conv.weight"]),
        _feature_size(state, ""),
        kernel.shape[-1],
        dilation,
        interleave,
    )


def convert(source: str, out: str) -> Network:
    """Turn a checkpoint of EdgeNets, pytorchcv or our training into one safetensors file of ours.

    Args:
        source: the checkpoint: .pth, .ckpt or .safetensors, or the name of an official one.
        out: the file to write, which must not exist.

    Returns:
        The network that the file holds.
    """
    if Path(out).exists():
        raise ConfigError(f"--out {out} exists: name a new file")
    if Path(out).suffix != ".safetensors":
        raise ConfigError(f"--out {out} must end with .safetensors")
    net = load(source)
    assert isinstance(net, Network)
    save(net, out)
    return net
