"""The official checkpoints: their names, addresses and hashes, and fetching one of them."""

import csv
import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dicenet.errors import WeightsError, nearest
from dicenet.weights.files import download_verified

ORIGIN = "https://github.com/sacmehta/EdgeNets"
LICENCE = "mit"
IN1K_TAG = "edgenets_in1k"
#: What the official ImageNet networks expect, in timm's words: shorter side to 256, centre 224, bilinear.
PREPROCESSING = {
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
_COMMIT = "2b232d3f7fb60658755dad1ebca0ffc895cc795e"
_NETWORKS = ("dicenet", "espnetv2")


class Entry(NamedTuple):
    """One official file. Metric and cost are what its authors published."""

    name: str  # architecture.tag
    task: str
    input_size: str  # WIDTHxHEIGHT
    git_blob_sha1: str
    metric: str
    cost: str
    path: str

    @property
    def licence(self) -> str:
        """Licence of the repository that the file comes from."""
        return LICENCE

    @property
    def architecture(self) -> str:
        """Name of the network, without the tag."""
        return self.name.split(".")[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        width, height = map(int, self.input_size.split("x"))
        return height, width

    @property
    def url(self) -> str:
        """Public address. ``DICENET_WEIGHTS_URL`` replaces the host and commit, for mirrors."""
        base = os.environ.get("DICENET_WEIGHTS_URL", f"{ORIGIN}/raw/{_COMMIT}")
        return f"{base.rstrip('/')}/{self.path}"

    @property
    def loadable(self) -> bool:
        """Whether dicenet has the network and can read the format."""
        return self.path.endswith(".pth") and self.architecture.split("_")[0] in _NETWORKS


@cache
def entries() -> tuple[Entry, ...]:
    """All 63 official files."""
    text = resources.files(__package__).joinpath("edgenets.tsv").read_text(encoding="utf-8")
    rows = csv.reader((line for line in text.splitlines() if not line.startswith("#")), delimiter="\t")
    next(rows)  # the header
    return tuple(Entry(*row) for row in rows)


def find(name: str) -> Entry | None:
    """The entry called ``name`` (architecture.tag), or None."""
    return next((entry for entry in entries() if entry.name == name), None)


def find_file(path: str) -> Entry | None:
    """The entry whose file has the name of ``path``, or None."""
    return next((entry for entry in entries() if Path(entry.path).name == Path(path).name), None)


def cache_dir() -> Path:
    """Where downloads are kept: torch's hub cache, which timm and torchvision use too."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(name: str, progress: bool = True, folder: Path | None = None) -> Path:
    """Path of the official checkpoint ``name``, downloaded into the cache if need be and verified in any case.

    ``folder`` replaces :func:`cache_dir`.

    Raises:
        WeightsError: no such entry, not loadable, no connection, or a file with another hash (nothing that was
            there is deleted).
    """
    entry = find(name)
    if entry is None:
        near = nearest(name, (e.name for e in entries() if e.loadable), most=3)
        raise WeightsError(f"no official checkpoint is called {name}{near} ('dicenet models --checkpoints' lists all)")
    if not entry.loadable:
        raise WeightsError(f"{name} is listed for completeness but dicenet cannot load it ({Path(entry.path).name})")
    return download_verified(entry.url, (folder or cache_dir()) / Path(entry.path).name, entry.git_blob_sha1, progress)
