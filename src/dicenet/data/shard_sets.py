"""Data sets of shards that no folder is listed for: remote ones, and shards chosen by a pattern."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

import webdataset as wds

from dicenet.data.manifest import MANIFEST_FILE, manifest_in
from dicenet.data.parts import CLASSES_FILE, PART_FOLDERS, names_in
from dicenet.data.shards import Shards
from dicenet.data.streams import Address, NotThereError, below, beside, is_remote, read_bytes
from dicenet.errors import DataError

_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")


def open_remote(base: str) -> dict[str, Shards]:
    """The parts of a prepared data set, read from where it lies.

    Args:
        base: URL of the folder, or address with ``{}`` where the name of a file is to stand, such as
            ``https://host/imagenet``, ``https://host/{}?key=1``, ``pipe:ssh host cat imagenet/{}``.

    Raises:
        DataError: its manifest cannot be read.
    """
    address = below(base, MANIFEST_FILE)
    try:
        content = read_bytes(address)
    except NotThereError as error:
        raise DataError(f"{error}: 'dicenet prepare' writes it; or name shards by a pattern") from error
    manifest = manifest_in(content, address)
    return {
        part: Shards(
            [below(base, f"{part}/{entry.name}") for entry in entries],
            manifest.classes,
            [entry.samples for entry in entries],
        )
        for part, entries in manifest.parts.items()
    }


def is_pattern(path: str) -> bool:
    """Whether a path or URL stands for several: braces with a range or a list; in a path also ``*``, ``?``, ``[``.

    Commands are none: their braces are the shell's.
    """
    if path.startswith("pipe:"):
        return False
    return bool(_BRACES.search(path)) or (not is_remote(path) and glob.has_magic(path))


def open_pattern(pattern: str) -> dict[str, Shards]:
    """Shards by a pattern, in parts by the names of their folders or files (``train/..``, ``train-000.tar``).

    ``classes.txt`` lies beside the first shard or one folder above; ``sizes.json`` (of local shards: if there is one)
    beside each.

    Raises:
        DataError: it fits no file, some of the files are of no part, or what lies beside them is missing.
    """
    addresses: list[Address] = []
    for text in wds.shardlists.expand_urls(pattern):
        addresses += [text] if is_remote(text) else [Path(file) for file in _local(text)]
    if not addresses:
        raise DataError(f"data path {pattern} fits no file")
    names = _class_names(addresses[0])
    by_part: dict[str, list[Address]] = {}
    for address in addresses:
        by_part.setdefault(_part_of(address), []).append(address)
    if "all" in by_part and len(by_part) > 1:
        raise DataError(
            f"{by_part['all'][0]} is of no part, other shards of {pattern} are: name its folder or all alike"
        )
    return {part: Shards(by_part[part], names) for part in (*PART_FOLDERS, "all") if part in by_part}


def _local(text: str) -> Sequence[str]:
    if glob.has_magic(text):
        return sorted(glob.glob(text))
    if not Path(text).is_file():
        raise DataError(f"{text} does not exist")
    return [text]


def _class_names(shard: Address) -> list[str]:
    for up in (0, 1):
        address = beside(shard, CLASSES_FILE, up)
        try:
            return names_in(read_bytes(address), str(address))
        except NotThereError:
            continue
    raise DataError(f"neither {beside(shard, CLASSES_FILE)} nor one a folder above names the classes")


def _part_of(address: Address) -> str:
    folder, name = str(Path(address).absolute() if isinstance(address, Path) else address).split("/")[-2:]
    word = re.split(r"[-_.]", name)[0]
    return next((part for part, known in PART_FOLDERS.items() if folder in known or word in known), "all")
