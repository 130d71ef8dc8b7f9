"""How much memory the maps of a network take while it runs."""

import copy
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Living(TorchDispatchMode):
    """Adds up the bytes of what operators make, as long as somebody holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.total = 0
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._hold(tensor, given)
        return result

    def _hold(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in given and key not in self._holders:  # a view of a parameter
            return
        if key not in self._holders:
            self.now += storage.nbytes()
            self.total += storage.nbytes()
            self.peak = max(self.peak, self.now)
        self._holders[key] += 1
        weakref.finalize(tensor, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.now -= size


class MapMemory(NamedTuple):
    """Bytes of maps for one picture: of the largest set that is alive at once in inference, and of all that are made.

    Training keeps most of the latter until the backward pass.
    """

    peak: int
    total: int


def map_memory(model: nn.Module, input_size: Sequence[int]) -> MapMemory:
    """How much memory the maps of a network take.

    The network runs without memory, in plain PyTorch operators, one by one. The picture and the weights do not count;
    results of norms and activations do, unless they overwrite their input.

    Args:
        model: the network; it is copied.
        input_size: (channels, height, width) of the picture.
    """
    model = copy.deepcopy(model).to("meta").eval()
    picture = torch.empty(1, *input_size, device="meta")
    with torch.no_grad(), _Living() as living:
        model(picture)
    return MapMemory(living.peak, living.total)
