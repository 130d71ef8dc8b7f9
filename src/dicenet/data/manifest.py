"""``manifest.json``: what a prepared data set consists of, so that it can be read where folders cannot be listed."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dicenet.data.parts import PART_FOLDERS
from dicenet.errors import DataError

MANIFEST_FILE = "manifest.json"
#: Its name until all shards are written.
UNFINISHED_FILE = "unfinished.json"
_FORMAT = 1
#: Names become parts of URLs and commands: nothing in them may have a meaning there.
_SHARD_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard, and the pictures that were left out of it.

    Attributes:
        name: of the file in the folder of its part.
        samples: pictures in it.
        bytes: size of the file.
        sha256: of the file.
        left_out: pictures that could not be read (``path``, relative to the source, and ``reason``).
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    left_out: Sequence[dict[str, str]] = ()


@dataclass(frozen=True)
class Manifest:
    """A prepared data set.

    Attributes:
        arguments: that decide what is written.
        source: the pictures that it was made from: how many (``pictures``), and ``sha256`` of their names and sizes.
        classes: name of class n.
        parts: shards of each part, in order.
    """

    arguments: dict[str, Any]
    source: dict[str, Any]
    classes: list[str]
    parts: dict[str, list[ShardEntry]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        parts = {
            part: {
                "samples": sum(shard.samples for shard in shards),
                "left_out": sum(len(shard.left_out) for shard in shards),
                "shards": [asdict(shard) for shard in shards],
            }
            for part, shards in self.parts.items()
        }
        return {"format": _FORMAT, **asdict(self), "parts": parts}


def manifest_in(content: bytes, where: str) -> Manifest:
    """The manifest in the content of a file, which messages call ``where``.

    Raises:
        DataError: it is none, of a newer format, or names files that could not lie in the folder of a part.
    """
    try:
        value = json.loads(content)
        if value["format"] > _FORMAT:
            raise DataError(f"{where} was written by a newer dicenet (format {value['format']}): update dicenet")
        parts = {part: [ShardEntry(**entry) for entry in value["parts"][part]["shards"]] for part in value["parts"]}
        manifest = Manifest(value["arguments"], value["source"], value["classes"], parts)
        sound = all(isinstance(name, str) for name in manifest.classes) and all(
            part in PART_FOLDERS and _SHARD_NAME.fullmatch(entry.name) and entry.samples >= 0 and entry.bytes > 0
            for part, entries in parts.items()
            for entry in entries
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is not a manifest of 'dicenet prepare': {error}") from error
    if not sound:
        raise DataError(f"{where} names parts or files that cannot be: it is not one of 'dicenet prepare'")
    return manifest
