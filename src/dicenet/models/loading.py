"""Loading and saving whole networks: our files, official (EdgeNets) and pytorchcv checkpoints."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dicenet.errors import ConfigError, WeightsError
from dicenet.layers import DiCEUnit, ShuffleBlock, StridedUnit
from dicenet.models.fitting import Source, open_source, recognise_checkpoint
from dicenet.models.network import Network
from dicenet.models.pyramid import PyramidNetwork
from dicenet.models.restoring import MULTILABEL, PREPROCESSING_KEYS, restore_network
from dicenet.models.restoring_heads import restore_detection, restore_segmentation
from dicenet.weights import catalogue
from dicenet.weights.edgenets import EDGENETS
from dicenet.weights.files import FILE_FORMAT, Checkpoint, write_safetensors
from dicenet.weights.formats import recognise
from dicenet.weights.pytorchcv import PYTORCHCV

#: Networks of each task that a file can be loaded as.
TASKS = ("classify", "multilabel", "segment", "detect")

_RESTORE = {"segment": restore_segmentation, "detect": restore_detection}

AnyNetwork = Network | PyramidNetwork


def describe(net: AnyNetwork, class_names: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
    """What a file must say to rebuild a network and to use it: architecture, arguments, classes, preprocessing.

    Raises:
        ConfigError: nothing says for which size of pictures the network is.
    """
    cfg = net.pretrained_cfg
    if net.input_size is None:
        raise ConfigError("nothing says for which size of pictures the network is: call its set_input_size first")
    return {
        "format": FILE_FORMAT,
        "architecture": net.architecture,
        "model_args": net.model_args(),
        "input_size": list(net.input_size),
        "class_names": list(class_names if class_names is not None else cfg.get("label_names") or ()),
        "preprocessing": {key: cfg[key] for key in PREPROCESSING_KEYS},
        **({"head": net.head_args()} if isinstance(net, PyramidNetwork) else {}),
        **({"task": cfg["task"]} if "task" in cfg else {}),
        **more,
    }


def save(net: AnyNetwork, path: str | Path, class_names: Sequence[str] | None = None, **more: Any) -> None:
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


def _open(source: Source) -> Checkpoint:
    """A local file, a state dict, or the name of an official checkpoint."""
    if isinstance(source, Checkpoint):
        return source
    named = isinstance(source, str) and re.fullmatch(r"[a-z0-9]+_\d{3}\.(?!pth|ckpt|safetensors)\w+", source)
    if named and not Path(str(source)).exists():
        source = catalogue.fetch(str(source))
    return open_source(source)


def load(
    source: Source,
    *,
    task: str | None = None,
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
        task: ``"classify"``, ``"multilabel"``, ``"segment"`` or ``"detect"``: what the network should be; by default
            what the checkpoint holds. The backbone of one can start another.
        num_classes: another class count: the classifier (of a segmentation network its last convolution, of a detector
            what gives scores) is fresh then.
        in_chans: another number of picture channels: the first convolution is adapted.
        features_only: return a module that gives the feature maps as a list.
        out_indices: with ``features_only``, which levels.
        model_args: further arguments of the network, such as ``drop_rate``; for segmentation ``img_size`` (of pictures)
            and ``decoder_channels``, for detection ``img_size``, ``head`` and ``scales``.

    Returns:
        The network in training mode: a :class:`dicenet.models.network.Network`, a
        :class:`dicenet.models.segmentation.SegmentationNetwork` or a
        :class:`dicenet.models.detection.DetectionNetwork`. Class names (``label_names``) and preprocessing are
        in ``pretrained_cfg``.

    Raises:
        WeightsError: see :func:`dicenet.models.fitting.load_weights`.
    """
    if task not in (None, *TASKS):
        raise ConfigError(f"task {task!r} is unknown: choose one of {', '.join(TASKS)}")
    checkpoint = _open(source)
    overrides = {"num_classes": num_classes, "in_chans": in_chans, **model_args}
    if features_only and task in _RESTORE:
        raise ConfigError(f"features_only gives the maps of a backbone: leave out task={task!r}")
    wanted = task if task or features_only else recognise_checkpoint(checkpoint).task
    if wanted in _RESTORE:
        return _RESTORE[wanted](checkpoint, overrides)
    return restore_network(checkpoint, task, features_only, out_indices, overrides)


_KINDS = {
    "classify": "a classifier",
    "multilabel": "a multi-label classifier",
    "segment": "a segmentation network",
    "detect": "a detector",
}


def task_of(source: Source) -> str:
    """What a checkpoint was made for, one of :data:`TASKS`."""
    checkpoint = _open(source)
    multilabel = checkpoint.metadata.get("task") == MULTILABEL
    return recognise_checkpoint(checkpoint).task or (MULTILABEL if multilabel else "classify")


def check_task(source: Source, task: str) -> None:
    """Raise WeightsError if a checkpoint was made for another task than one of :data:`TASKS`."""
    checkpoint = _open(source)
    if (found := task_of(checkpoint)) != task:
        more = " of one class a picture" if (found, task) == ("classify", MULTILABEL) else ""
        raise WeightsError(
            f"{checkpoint.name} is {_KINDS[found]}{more}, not {_KINDS[task]}: use the command for {found}, or start a "
            "training from it with --weights"
        )


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

    A classifier or a segmentation network gives the network (``features_only=True``: the maps of its backbone); the
    state dict of a unit, strided unit or block that module.

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
        return load(checkpoint, **kwargs)
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


def convert(source: str, out: str) -> AnyNetwork:
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
    assert isinstance(net, AnyNetwork)
    if net.input_size is None:
        raise WeightsError(f"{source} does not say for which size of pictures it is: give it its official file name")
    save(net, out)
    return net
