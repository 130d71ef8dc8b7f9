"""Fitting a checkpoint to a network: recognised, checked, adapted to other classes and channels, loaded."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dicenet.errors import WeightsError
from dicenet.weights.files import Checkpoint, read_checkpoint, unwrap
from dicenet.weights.formats import OWN, Recognised, in_parts, recognise

if TYPE_CHECKING:
    from dicenet.models.network import Network

_logger = logging.getLogger("dicenet")

Source = str | Path | Mapping[str, Tensor] | Checkpoint


@dataclass(frozen=True)
class LoadReport:
    """What loading a checkpoint did.

    Attributes:
        format: whose names the checkpoint used.
        left_out: entries of the checkpoint that the network has no use for.
        initialised: parameters of the network that the checkpoint does not hold; they keep their fresh values.
        adapted: what was changed to fit, in words.
    """

    format: str
    left_out: tuple[str, ...]
    initialised: tuple[str, ...]
    adapted: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"weights of {self.format} loaded", *self.adapted]
        if self.left_out:
            parts.append(f"left out: {_summary(self.left_out)}")
        if self.initialised:
            parts.append(f"not in the checkpoint, fresh: {_summary(self.initialised)}")
        return "; ".join(parts)


def _summary(keys: tuple[str, ...]) -> str:
    """The modules that keys belong to: names of one or two parts, each once."""
    names = dict.fromkeys(".".join(key.split(".")[: 2 if key.startswith("stages.") else 1]) for key in keys)
    return ", ".join(names) + f" ({len(keys)} tensors)"


def open_source(source: Source) -> Checkpoint:
    """A checkpoint from a path, or from a state dict that is in memory already."""
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, str | Path):
        return read_checkpoint(source)
    return Checkpoint(unwrap(dict(source), "the state dict"), {}, "the state dict")


def recognise_checkpoint(checkpoint: Checkpoint, model: "Network | None" = None) -> Recognised:
    """A checkpoint under our names. One that describes itself, or has the names of ``model``, is ours.

    Raises:
        WeightsError: neither, and it holds no unit of anybody that is known.
    """
    if checkpoint.metadata or (model is not None and model.state_dict().keys() >= checkpoint.state.keys()):
        return in_parts(OWN.name, checkpoint.state)
    return recognise(checkpoint.state, checkpoint.name)


def adapt_in_channels(weight: Tensor, in_channels: int) -> Tensor:
    """First convolution (out, in, k, k) for another number of picture channels, keeping its response's scale.

    The channels are repeated in turn (or, for one channel, summed), as timm does for three.
    """
    stored = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    index = torch.arange(in_channels) % stored
    return weight[:, index] * (stored / in_channels)


def _check_fit(model: "Network", state: Mapping[str, Tensor], checkpoint: Checkpoint, stem: str | None) -> None:
    """Raise WeightsError if the checkpoint is of another width, trained size or stem (None: not known)."""
    own, name, metadata = model.state_dict(), checkpoint.name, checkpoint.metadata
    if stem not in (None, model.stem_type):
        raise WeightsError(
            f"{name} was made with the {stem} stem, this network has the {model.stem_type} one: pass stem={stem!r}"
        )
    for key, value in state.items():
        if key not in own or own[key].shape == value.shape or key.startswith("classifier."):
            continue
        if key in model.picture_convolutions():
            continue
        if key.endswith(("weight_height", "weight_width")):
            size = metadata.get("model_args", {}).get("img_size") or trained_size_of(state, model.stem_type)
            of, argument = (f" of {size[0]}x{size[1]}", tuple(size)) if size else (" of another size", "theirs")
            raise WeightsError(
                f"{name} holds height and width kernels trained for pictures{of}, this network's "
                f"are for {model.trained_size[0]}x{model.trained_size[1]}: build it with img_size={argument}, then "
                "call set_input_size() (scales the maps) or rebase() (resizes the kernels)"
            )
        raise WeightsError(
            f"{name} is of another width than {model.architecture}: {key} is {tuple(value.shape)} there and "
            f"{tuple(own[key].shape)} here; load it with dicenet.load(), which builds the right one"
        )


def stem_of(format_name: str, metadata: Mapping[str, Any]) -> str | None:
    """The stem of a checkpoint: as its file says; the standard one of other implementations; None if not known."""
    if metadata:
        return metadata["model_args"].get("stem", "standard")
    return None if format_name == OWN.name else "standard"


def trained_size_of(state: Mapping[str, Tensor], stem: str) -> tuple[int, int] | None:
    """Picture size (height, width) that a DiCENet was built for: its first stage's maps times their stride.

    Maps are rounded up, so that sizes a little smaller have the same maps; this is the largest of them. None for other
    networks.
    """
    unit = "stages.0.0.right.1.dim_conv"
    if f"{unit}.weight_height" not in state:
        return None
    stride = 2 if stem == "small" else 8
    return stride * len(state[f"{unit}.weight_height"]), stride * len(state[f"{unit}.weight_width"])


def load_weights(model: "Network", source: Source, recognised: Recognised | None = None) -> LoadReport:
    """Load a checkpoint of ours, of EdgeNets or of pytorchcv into a network, adapting what can be adapted.

    Another class count leaves the classifier out; another channel count adapts the first convolution; of
    segmentation networks and detectors the backbone is taken. All of it is in the report (and logged if it leaves
    more than the classifier without weights).

    Args:
        model: the network.
        source: path, state dict or checkpoint.
        recognised: the checkpoint under our names, where that is known already.

    Raises:
        WeightsError: unreadable, of another network or width, of another trained size or stem.
    """
    checkpoint = open_source(source)
    recognised = recognised or recognise_checkpoint(checkpoint, model)
    state = dict(recognised.state)
    own = model.state_dict()
    if "stem.conv.weight" not in state:
        raise WeightsError(f"{checkpoint.name} is a single unit or block, not a network: use dicenet.load_edgenets()")
    _check_fit(model, state, checkpoint, stem_of(recognised.format, checkpoint.metadata))

    adapted = []
    stored_channels = state["stem.conv.weight"].shape[1]
    if stored_channels != model.in_chans:
        for key in set(model.picture_convolutions()) & state.keys():
            state[key] = adapt_in_channels(state[key], model.in_chans)
        adapted.append(f"first convolution adapted from {stored_channels} to {model.in_chans} channels")
    left_out = [*recognised.other_parts, *(f"head.{key}" for key in recognised.head)]
    classifier = [key for key in state if key.startswith("classifier.")]
    if classifier and model.num_classes != len(state[classifier[0]]):
        adapted.append(f"classifier of {len(state[classifier[0]])} classes not used")
        left_out += classifier
    left_out += [key for key in state if key not in own and key not in left_out]
    state = {key: value for key, value in state.items() if key not in left_out}
    missing = model.load_state_dict(state, strict=False).missing_keys
    report = LoadReport(recognised.format, tuple(left_out), tuple(missing), tuple(adapted))
    more_than_classifier = any(not key.startswith("classifier.") for key in missing)
    _logger.log(logging.WARNING if more_than_classifier else logging.INFO, "%s: %s", checkpoint.name, report)
    return report
