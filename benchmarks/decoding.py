"""How many training inputs a second one process makes of JPEGs: from folders and shards, as they are and resized.

    python benchmarks/decoding.py ../shared results/decoding.csv

Pictures are those of VOC and COCO in the shared data, about as large as ImageNet's. Every way makes 224x224 training
inputs (random resized crop, mirroring, tensor) of all of them, with the same chance. Ways are taken in turn in an
order drawn anew for each round, so that whatever else the machine does hits all alike; medians are given, and the
ratios are of seconds of processor time, which waiting for other processes does not count in. Files are in the disk
cache: what a slow disk adds is not measured. ``draft`` lets the JPEG decoder scale by powers of two, to no less than a
shorter side; of so many pictures (``changed``) it changes the inputs, on average by ``difference`` grey levels of 255,
with the crops that the whole pictures have.
"""

import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image

from dicenet.data.classification import open_classification_data
from dicenet.data.pictures import read_size
from dicenet.data.samples import Sample, SampleList, prepared
from dicenet.data.seeding import derived_seed, seed_chance
from dicenet.data.shards import Shards
from dicenet.data.transforms import Augmentation, Preprocessing, training_transform
from dicenet.engine.machine import machine, write_csv
from dicenet.tasks.classify import prepare

ROUNDS = 15
RESIZED = 256
SOURCES = ("voc2012_mini/JPEGImages", "tiny_coco/train2017", "tiny_coco/val2017")
TRANSFORM = training_transform(Preprocessing(), Augmentation())
Ways = dict[str, Callable[[], Iterator[Sample]]]


def link(shared: Path, folder: Path) -> None:
    """A class folder for each source."""
    for source in SOURCES:
        name = folder / source.replace("/", "_")
        name.mkdir(parents=True)
        for file in sorted((shared / "data" / source).glob("*.jpg")):
            (name / file.name).symlink_to(file.resolve())


def unpack(shards: Path, folder: Path) -> None:
    """The pictures of shards as files in class folders."""
    part = open_classification_data(f"{shards}/*.tar").parts["train"]
    assert isinstance(part, Shards)
    for sample in part.span(range(len(part.files)), 0, len(part)):
        (folder / f"class{sample.target}").mkdir(parents=True, exist_ok=True)
        content = sample.read.args[0]  # type: ignore[attr-defined]
        (folder / f"class{sample.target}" / f"{sample.name.split(':')[1]}.jpg").write_bytes(content)


def from_folder(folder: Path) -> Callable[[], Iterator[Sample]]:
    part = open_classification_data(str(folder)).parts["all"]
    assert isinstance(part, SampleList)
    return lambda: iter(part.samples)


def from_shards(folder: Path) -> Callable[[], Iterator[Sample]]:
    part = open_classification_data(f"{folder}/*.tar").parts["train"]
    assert isinstance(part, Shards)
    return lambda: part.span(range(len(part.files)), 0, len(part))


def drafted(folder: Path, side: int, enlarged: bool = False) -> Callable[[], Iterator[Sample]]:
    """From files, decoded at a size of which both sides are no less than ``side``; enlarged again if asked."""

    def read(file: str) -> Image.Image:
        with Image.open(io.BytesIO(Path(file).read_bytes())) as picture:
            size = picture.size
            picture.draft("RGB", (side, side))
            decoded = picture.convert("RGB")
        return decoded.resize(size, Image.Resampling.BILINEAR) if enlarged else decoded

    def samples() -> Iterator[Sample]:
        for sample in from_folder(folder)():
            yield Sample(sample.name, lambda name=sample.name: read(name), sample.target)  # type: ignore[misc]

    return samples


def inputs(samples: Iterator[Sample], seed: int) -> list[torch.Tensor]:
    """Training inputs of all pictures; the chance of each depends on its name alone."""
    made = []
    for sample in samples:
        seed_chance(derived_seed(seed, sample.name))
        made.append(prepared(sample, TRANSFORM)["image"])
    return made


def difference(folder: Path, side: int) -> dict[str, float]:
    """How many pictures a draft changes, and by how much."""
    std = torch.tensor(Preprocessing().std).view(3, 1, 1) * 255
    # enlarged again, so that the same chance takes the same crop
    pairs = zip(inputs(drafted(folder, side, True)(), 1), inputs(from_folder(folder)(), 1), strict=True)
    off = [value for a, b in pairs if (value := float(((a - b) * std).abs().mean())) > 0]
    return {"changed": len(off), "difference": round(statistics.mean(off), 2) if off else 0.0}


def main(shared: str, out: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        link(Path(shared), root / "pictures")
        folders = {"": root / "pictures", f", resized to {RESIZED}": root / "small"}
        # a single part: what is held out would be other pictures
        whole = root / "parts"
        (whole / "val").mkdir(parents=True)
        (whole / "train").symlink_to(root / "pictures")
        for folder in (root / "pictures").iterdir():
            (whole / "val" / folder.name).mkdir()
            first = min(folder.iterdir())
            (whole / "val" / folder.name / first.name).symlink_to(first)
        for kind, resize in (("", None), (f", resized to {RESIZED}", RESIZED)):
            prepare(str(whole), str(root / f"shards{kind}"), resize=resize, workers=0)
        unpack(root / f"shards, resized to {RESIZED}/train", root / "small")
        ways: Ways = {}
        for kind, folder in folders.items():
            ways[f"folder{kind}"] = from_folder(folder)
            ways[f"shards{kind}"] = from_shards(root / f"shards{kind}/train")
        for side in (256, 128):
            ways[f"draft {side}"] = drafted(root / "pictures", side)
        measure(ways, folders, Path(out))


def measure(ways: Ways, folders: dict[str, Path], out: Path) -> None:
    """Time all ways round by round; the first round warms up and is not counted."""
    wall: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    count = len(inputs(ways["folder"](), 0))
    for number in range(ROUNDS + 1):
        for way in random.sample(list(ways), len(ways)):
            began, used = time.perf_counter(), time.process_time()
            inputs(ways[way](), number)
            wall[way].append(time.perf_counter() - began)
            processor[way].append(time.process_time() - used)
    rows = []
    for way in ways:
        files = [file for file in folders[way[way.index(",") :] if "," in way else ""].rglob("*") if file.is_file()]
        sizes = [read_size(file) for file in files]
        rows.append(
            {
                "way": way,
                "pictures": count,
                "median_width": statistics.median(width for width, _ in sizes),
                "median_height": statistics.median(height for _, height in sizes),
                "mean_kilobytes": round(statistics.mean(file.stat().st_size for file in files) / 1000, 1),
                "per_processor_second": round(count / statistics.median(processor[way][1:]), 1),
                "per_second": round(count / statistics.median(wall[way][1:]), 1),
                "times_folder": round(
                    statistics.median(processor["folder"][1:]) / statistics.median(processor[way][1:]), 3
                ),
                **(
                    {"changed": "", "difference": ""}
                    | (difference(folders[""], int(way[6:])) if "draft" in way else {})
                ),
                "rounds": ROUNDS,
                **machine(["pillow", "torchvision", "webdataset"]),
            }
        )
        print(rows[-1])
    write_csv(out, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
