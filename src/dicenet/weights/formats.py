"""Whose checkpoint is this? Any known state dict, under our names."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from dicenet.errors import WeightsError
from dicenet.weights.edgenets import BACKBONE_PREFIX, EDGENETS, backbone_of
from dicenet.weights.key_map import KeyMap
from dicenet.weights.pytorchcv import PYTORCHCV

OWN = KeyMap("dicenet", r"(^|\.)dim_conv\.weight_depth$", ())
FORMATS = (OWN, EDGENETS, PYTORCHCV)


class Recognised(NamedTuple):
    """A state dict under our names, where it came from, and which of its entries belong to no backbone."""

    format: str
    state: dict[str, Tensor]
    other_parts: tuple[str, ...]


def recognise(state: Mapping[str, Tensor], name: str = "the state dict") -> Recognised:
    """Rename a state dict of ours, of EdgeNets or of pytorchcv to our names.

    Of official segmentation and detection networks the backbone is taken, the rest named in ``other_parts``.

    Raises:
        WeightsError: it holds no DiCE unit of any of them.
    """
    for key_map in FORMATS:
        if key_map.matches(state):
            break
    else:
        raise WeightsError(f"{name} holds no DiCE units of dicenet, EdgeNets or pytorchcv: it is of another network")
    other_parts: tuple[str, ...] = ()
    if any(key.startswith(BACKBONE_PREFIX) for key in state):
        other_parts = tuple(key for key in state if not key.startswith(BACKBONE_PREFIX))
        state = backbone_of(state)
    return Recognised(key_map.name, key_map.rename(state), other_parts)
