"""Renaming state dicts of other implementations to ours, by name (their orders differ)."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class KeyMap(NamedTuple):
    """How another implementation calls things.

    ``mark`` is a pattern that only its keys match. ``renames`` are (pattern, ours), applied in turn to every
    key; a pattern matches whole parts of a dotted name.
    """

    name: str
    mark: str
    renames: tuple[tuple[str, str], ...]

    def matches(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict comes from this implementation."""
        return any(re.search(self.mark, key) for key in state)

    def rename(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under our names."""
        return {self._rename(key): value for key, value in state.items()}

    def _rename(self, key: str) -> str:
        for pattern, ours in self.renames:
            key = re.sub(rf"(?<![^.]){pattern}(?![^.])", ours, key)
        return key
