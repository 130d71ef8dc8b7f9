"""Whose checkpoint is this? Any known state dict, under our names."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from dicenet.errors import WeightsError
from dicenet.weights.edgenets import BACKBONE_PREFIX, EDGENETS, EDGENETS_ESPNETV2
from dicenet.weights.key_map import KeyMap
from dicenet.weights.pytorchcv import PYTORCHCV

OWN = KeyMap("dicenet", r"(^|\.)(dim_conv\.weight_depth|eesp\.branches\.0\.weight)$", ())
FORMATS = (OWN, EDGENETS, EDGENETS_ESPNETV2, PYTORCHCV)

#: Of networks of several parts: ours (timm wraps what gives feature maps, as "model"), and EdgeNets'.
_BACKBONES = ("backbone.model.", "backbone.", BACKBONE_PREFIX)
#: What the head is called, and of which task it is.
_HEADS = {"decoder.": "segment", "head.": "detect"}


class Recognised(NamedTuple):
    """A state dict under our names.

    Attributes:
        format: whose it was.
        state: the backbone, or the whole network where there is nothing else.
        head: what stands on the backbone; empty for classifiers, whose classifier belongs to the network.
        task: ``segment`` or ``detect``, as the head is for; None if there is none.
        other_parts: names of what belongs to neither.
    """

    format: str
    state: dict[str, Tensor]
    head: dict[str, Tensor]
    task: str | None
    other_parts: tuple[str, ...]


def in_parts(format_name: str, state: Mapping[str, Tensor]) -> Recognised:
    """A state dict under our names, its parts told apart."""
    prefix = next((p for p in _BACKBONES if any(key.startswith(p) for key in state)), None)
    if prefix is None:
        return Recognised(format_name, dict(state), {}, None, ())
    head = next((h for h in _HEADS if any(key.startswith(h) for key in state)), None)
    found: dict[str, dict[str, Tensor]] = {prefix: {}, **({head: {}} if head else {})}
    others = []
    for key, value in state.items():
        part = next((p for p in found if key.startswith(p)), None)
        if part is None:
            others.append(key)
        else:
            found[part][key.removeprefix(part)] = value
    return Recognised(format_name, found[prefix], found[head] if head else {}, _HEADS.get(head or ""), tuple(others))


def recognise(state: Mapping[str, Tensor], name: str = "the state dict") -> Recognised:
    """Rename a state dict of ours, of EdgeNets or of pytorchcv to our names.

    Raises:
        WeightsError: it holds no DiCE unit and no EESP unit of any of them.
    """
    for key_map in FORMATS:
        if key_map.matches(state):
            break
    else:
        raise WeightsError(
            f"{name} holds no DiCE or EESP units of dicenet, EdgeNets or pytorchcv: it is of another network"
        )
    renamed = key_map.rename(state)
    # ESPNetv2's classifier is a linear layer there and a 1x1 convolution here
    renamed = {
        key: value[:, :, None, None] if key == "classifier.weight" and value.dim() == 2 else value
        for key, value in renamed.items()
    }
    return in_parts(key_map.name, renamed)
